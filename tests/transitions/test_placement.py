"""Place and orientation as auxiliary variables: exact weights, and what the wrong density of the centre costs."""

import math

import pytest
import torch

from boltzflow.coordinates import ZMatrix
from boltzflow.generators import Generator
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import Gaussian, MeanFreeGaussian, MoleculeTarget, ProductBase, Target
from boltzflow.testing import check_transition
from boltzflow.transitions import DropPlacement, InternalToCartesian

N = 3
KT = 0.00831446261815324 * 300.0


class Springs(torch.nn.Module):
    """Three atoms, every pair on a soft spring: U in kJ/mol."""

    def __init__(self, lengths=(0.3, 0.35, 0.4), width=0.1):
        super().__init__()
        self.register_buffer("lengths", torch.tensor(lengths, dtype=torch.float64))
        self.width = width

    def forward(self, positions):
        ends = positions[:, [0, 1, 0]] - positions[:, [1, 2, 2]]
        return 0.5 * KT * ((ends.norm(dim=2) - self.lengths) / self.width).square().sum(1)


def molecule(**options):
    return MoleculeTarget(Springs(**options), n_atoms=N, temperature=300.0, name="springs")


def by_quadrature(target, n=60):
    """log ∫ exp(−u) r² s² sin θ dr ds dθ of three atoms, from a grid."""
    r = s = (torch.arange(n, dtype=torch.float64) + 0.5) * (1.2 / n)
    theta = (torch.arange(n, dtype=torch.float64) + 0.5) * (math.pi / n)
    r, s, theta = (x.flatten() for x in torch.meshgrid(r, s, theta, indexing="ij"))
    zero = torch.zeros_like(r)
    second = torch.stack([r, zero, zero], 1)
    third = second + torch.stack([-s * theta.cos(), s * theta.sin(), zero], 1)
    positions = torch.stack([torch.zeros_like(second), second, third], 1)
    u = target.reduced_energy(State({"positions": positions}, target.fields))
    cell = (1.2 / n) ** 2 * (math.pi / n)
    return float(torch.logsumexp(-u + 2 * r.log() + 2 * s.log() + theta.sin().log(), 0)) + math.log(cell)


def placed(n=8, shape=(4, 3), scale=1.0):
    return Gaussian(shape, scale=scale, name="positions").double().sample(n, make_rng(1))


class Tethered(Target):
    """A mean-free normal density as one modulo rigid motions: dx = N^{3/2} dx_free dc = J dq dω dc, and ∫ dω = 8π²."""

    measure = "cartesian modulo rigid motions"

    def __init__(self, n):
        log_z = 1.5 * math.log(n) - math.log(8 * math.pi**2)
        super().__init__({"positions": Space("line", (n, 3), 3 * n - 6)}, log_z=log_z)
        self.free = MeanFreeGaussian(n, 3)

    def reduced_energy(self, state, context=None):
        return self.free.reduced_energy(state)

    def sample(self, n, rng, context=None):
        return self.state(self.free.sample(n, rng)["positions"])


@pytest.mark.parametrize("rotate", [True, False])
def test_contract(rotate):
    base, target = Gaussian((4, 3), scale=1.1, name="positions"), Tethered(4) if rotate else MeanFreeGaussian(4, 3)
    check_transition(
        DropPlacement(0.5, rotate=rotate), placed(), Run(make_rng(2)), base=base.double(), target=target.double()
    )


def test_mean_free_particles_have_exact_weights():
    base, target = Gaussian((N, 2), name="positions").double(), MeanFreeGaussian(N, 2).double()
    drop = DropPlacement(N**-0.5, rotate=False)
    assert drop.forward(base.sample(2, make_rng(1)), Run(make_rng(1)))[0].spaces == target.fields
    log_w = Generator(base, [drop]).sample(500, target, seed=1).log_weights
    assert abs(log_w).max() < 1e-12  # the model is exact, and its log Z that of the target, 0


def test_the_density_of_the_distance_in_place_of_that_of_the_centre_costs_two_fifths():
    base, target = Gaussian((5, 3), name="positions").double(), MeanFreeGaussian(5, 3).double()
    generator = Generator(base, [DropPlacement(5**-0.5, rotate=False)]).double()
    trajectory = generator.rollout(200_000, target, make_rng(3))
    right, distance = trajectory.log_weights, trajectory.start["positions"].mean(1).norm(dim=1)
    assert float(right.std()) < 1e-12

    def ess(log_w):
        return float(torch.exp(2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0))) / len(log_w)

    assert ess(right) == pytest.approx(1.0, abs=1e-9)
    assert ess(right + 2 * distance.log()) == pytest.approx(0.6, abs=0.01)


def test_log_z_of_a_molecule_is_that_of_its_internal_coordinates():
    target = molecule()
    exact = by_quadrature(target)
    base = Gaussian((N, 3), scale=0.17, name="positions").double()
    lab = Generator(base, [DropPlacement(0.17 * N**-0.5)]).sample(100_000, target, seed=1).log_z()
    assert abs(lab.z_score(exact)) < 4
    assert lab.error < 0.02
    zmatrix = ZMatrix.from_bonds(N, [(0, 1), (1, 2)])
    mean, scale = torch.tensor([0.3, 0.35, 1.2]).double(), torch.tensor([0.09, 0.09, 0.3]).double()
    to_cartesian = InternalToCartesian(zmatrix, mean=mean, scale=scale, circular=torch.zeros(3, dtype=torch.bool))
    internal = Generator(ProductBase(["line"] * 3).double(), [to_cartesian]).double()
    found = internal.sample(50_000, target, seed=2).log_z()
    assert abs(found.z_score(exact)) < 4
    assert abs(lab.value - found.value) < 4 * math.hypot(lab.error, found.error)


def test_orientations_are_uniform_and_frames_keep_their_shape():
    x = placed(1)["positions"].expand(20_000, 4, 3)
    state = State({"positions": x}, {"positions": Space("line", (4, 3), 6)})
    turned, _ = DropPlacement(0.3).reverse(state, Run(make_rng(5)))
    y = turned["positions"]
    torch.testing.assert_close(torch.cdist(y[:50], y[:50]), torch.cdist(x[:50], x[:50]))
    arm = torch.nn.functional.normalize(y[:, 0] - y[:, 1], dim=1)
    along = torch.nn.functional.normalize(torch.linalg.cross(arm, y[:, 2] - y[:, 1]), dim=1)
    for axis in (arm, along):
        assert (axis.mean(0) * 20_000**0.5 * 3**0.5).abs().max() < 4.5
        assert ((axis.square().mean(0) - 1 / 3) * 20_000**0.5 / math.sqrt(4 / 45)).abs().max() < 4.5
    # handedness stays
    volume = torch.linalg.det(y[:, 1:] - y[:, :1])
    torch.testing.assert_close(volume, torch.linalg.det(x[:, 1:] - x[:, :1]))
    centre = y.mean(1) / 0.3
    assert ((centre.square().mean(0) - 1) * (20_000 / 2) ** 0.5).abs().max() < 4.5
