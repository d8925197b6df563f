"""Torsion moves: bond graph, rotation, volume, and the torsion marginal of a chain against quadrature."""

import itertools
import math

import pytest
import torch

from boltzflow.paths.path import MixtureLevel
from boltzflow.run import Run, make_rng
from boltzflow.state import Space
from boltzflow.targets.target import Target
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.torsion_move import TorsionMove, rotatable_axes, rotate_about_bond

BUTANE = [(0, 1), (1, 2), (2, 3)]


def dihedral(x):
    b1, b2, b3 = x[:, 1] - x[:, 0], x[:, 2] - x[:, 1], x[:, 3] - x[:, 2]
    n1, n2 = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
    return torch.atan2((torch.linalg.cross(n1, n2) * b2).sum(-1) / b2.norm(dim=-1), (n1 * n2).sum(-1))


class Chain(Target):
    """Four beads: stiff bonds and angles, and a threefold torsion with barriers of 16 kT."""

    def __init__(self):
        super().__init__({"positions": Space("line", (4, 3), dimension=6)}, name="chain")

    def torsion(self, phi):
        return 8 * (1 + torch.cos(3 * phi)) + 1.0 * torch.cos(phi - 0.5)

    def reduced_energy(self, state, context=None):
        x = state["positions"]
        bonds = x[:, 1:] - x[:, :-1]
        cosine = (bonds[:, 1:] * bonds[:, :-1]).sum(-1) / (bonds[:, 1:].norm(dim=-1) * bonds[:, :-1].norm(dim=-1))
        u = 200 * (bonds.norm(dim=-1) - 1).square().sum(1) + 20 * (cosine - 0.4).square().sum(1)
        return u + self.torsion(dihedral(x))


def start(n, rng):
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.4, 0.9, 0.0], [2.4, 0.9, 0.1]], dtype=torch.float64)
    x = (x - x.mean(0)).expand(n, 4, 3)
    return x + 0.01 * torch.randn(n, 1, 3, generator=rng, dtype=torch.float64)


def test_rotatable_bonds_of_a_graph_with_ring_and_methyl():
    ring = [(0, 1), (1, 2), (2, 0)]
    tail = [(0, 8), (2, 3), (3, 4), (4, 5), (4, 6), (4, 7)]  # ring - CH2-like 3 - methyl 4
    axes = rotatable_axes(ring + tail, n_atoms=9)
    assert axes.pairs.tolist() == [[2, 3], [3, 4]]
    assert axes.moving[0].nonzero().flatten().tolist() == [0, 1, 8]
    assert axes.moving[1].nonzero().flatten().tolist() == [5, 6, 7]
    assert axes.select([(4, 3)]).pairs.tolist() == [[3, 4]]
    with pytest.raises(ValueError, match="no rotatable bonds"):
        axes.select([(0, 1)])


def test_a_molecule_without_rotatable_bonds_and_bad_bonds_are_named():
    rigid = rotatable_axes([(0, 1), (1, 2), (2, 0)], n_atoms=3)
    assert len(rigid) == 0
    with pytest.raises(ValueError, match="leave torsion moves out"):
        TorsionMove(rigid)
    with pytest.raises(ValueError, match=r"bond \(0, 9\)"):
        rotatable_axes([(0, 9)], n_atoms=3)


def test_rotation_turns_the_dihedral_by_the_angle_and_nothing_else():
    rng = make_rng(1)
    x = torch.randn(30, 4, 3, generator=rng, dtype=torch.float64)
    axes = rotatable_axes(BUTANE, n_atoms=4)
    assert axes.pairs.tolist() == [[1, 2]]
    angle = 6 * torch.rand(30, generator=rng, dtype=torch.float64) - 3
    y = rotate_about_bond(x, axes.pairs.expand(30, 2), axes.moving.expand(30, 4), angle)
    turned = (
        torch.remainder(dihedral(y) - dihedral(x) + angle * (-1 if axes.moving[0, 3] else 1) + math.pi, 2 * math.pi)
        - math.pi
    )
    assert turned.abs().max() < 1e-9
    pairs = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)]
    for i, j in pairs:
        torch.testing.assert_close((y[:, i] - y[:, j]).norm(dim=1), (x[:, i] - x[:, j]).norm(dim=1))
    back = rotate_about_bond(y, axes.pairs.expand(30, 2), axes.moving.expand(30, 4), -angle)
    torch.testing.assert_close(back, x)


def test_rotation_preserves_volume():
    x = torch.randn(1, 4, 3, generator=make_rng(2), dtype=torch.float64)
    axes = rotatable_axes(BUTANE, n_atoms=4)
    angle = torch.tensor([0.83], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda p: rotate_about_bond(p.reshape(1, 4, 3), axes.pairs, axes.moving, angle).flatten(), x.flatten()
    )
    assert torch.linalg.slogdet(jacobian).logabsdet.abs() < 1e-12


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (1.0, 1.0, 1.0)])
def test_torsion_marginal_of_a_chain_equals_quadrature(weights):
    # given bonds and angles the torsion is independent, so its marginal is exp(-u(phi)) exactly
    target, rng = Chain(), make_rng(3)
    run = Run(rng, level=MixtureLevel(((1.0, target),)))
    n = 1500
    state = target.state(start(n, rng))
    turn = TorsionMove(rotatable_axes(BUTANE, n_atoms=4), weights=weights, n_steps=3)
    hmc = HMC(0.03, n_leapfrog=4)
    for _ in range(40):
        state = turn.step(hmc.step(state, run), run)
    phi = dihedral(state["positions"])
    grid = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    p = torch.exp(-target.torsion(grid))
    edges = torch.linspace(-math.pi, math.pi, 4, dtype=torch.float64)  # the three wells, which HMC alone never joins
    for low, high in itertools.pairwise(edges):
        inside = (grid >= low) & (grid <= high)
        exact = float(torch.trapezoid(p[inside], grid[inside]) / torch.trapezoid(p, grid))
        found = float(((phi >= low) & (phi < high)).double().mean())
        assert abs(found - exact) / math.sqrt(exact * (1 - exact) / n) < 3.5
    within = torch.cos(3 * phi)
    exact = float(torch.trapezoid(p * torch.cos(3 * grid), grid) / torch.trapezoid(p, grid))
    assert abs(float(within.mean()) - exact) / float(within.std()) * math.sqrt(n) < 3.5
    assert state["positions"].mean(1).sub(start(n, make_rng(3)).mean(1)).abs().max() < 1e-9


def test_hmc_alone_stays_in_its_well():
    target, rng = Chain(), make_rng(3)
    run = Run(rng, level=MixtureLevel(((1.0, target),)))
    state = target.state(start(500, rng))
    before = dihedral(state["positions"])
    state = HMC(0.03, n_leapfrog=4, n_steps=60).step(state, run)
    turned = torch.remainder(dihedral(state["positions"]) - before + math.pi, 2 * math.pi) - math.pi
    assert (turned.abs() < 1.2).double().mean() > 0.99


def test_force_is_evaluated_with_the_energy_only_where_the_state_carries_one():
    target = Chain()
    turn = TorsionMove(rotatable_axes(BUTANE, n_atoms=4), n_steps=2)
    for gradient in (False, True):
        run = Run(make_rng(4), level=MixtureLevel(((1.0, target),)))
        state = target.state(start(10, run.rng))
        state = (run.energy_and_force(state) if gradient else run.energy(state))[-1]
        moved = turn.step(state, run)
        assert run.ledger.n_energy() == 30
        assert run.ledger.n_force() == (30 if gradient else 0)
        HMC(0.01, n_leapfrog=1).step(moved, run)
        assert run.ledger.n_force() == (40 if gradient else 20)


def test_wrong_molecule_is_named():
    target = Chain()
    run = Run(make_rng(4), level=MixtureLevel(((1.0, target),)))
    with pytest.raises(ValueError, match="expected positions"):
        TorsionMove(rotatable_axes(BUTANE, n_atoms=5)).step(target.state(start(3, run.rng)), run)
