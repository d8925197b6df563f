"""Pairwise radial fields: closed forms, symmetry, Stein's identity, and what is refused."""

import pytest
import torch

from boltzflow.networks import PairField, VectorField
from boltzflow.run import make_rng
from boltzflow.targets import MeanFreeGaussian
from boltzflow.testing import check_vector_field

TYPES = [0, 1, 0, 2, 1]
BOX = torch.tensor([3.0, 3.0, 4.0], dtype=torch.float64)


def field(n_dimensions=3, **options):
    made = PairField(TYPES, n_dimensions, n_basis=6, **options).double()
    torch.nn.init.normal_(made.weights, std=0.3, generator=make_rng(1))
    return made


def positions(n_dimensions=3):
    return 3.0 * torch.rand(4, len(TYPES), n_dimensions, dtype=torch.float64, generator=make_rng(2))


@pytest.mark.parametrize("n_times", [1, 3])
@pytest.mark.parametrize("n_dimensions", [1, 2, 3])
def test_open(n_dimensions, n_times):
    made = field(n_dimensions, reach=4.0, n_times=n_times)
    check_vector_field(made, positions(n_dimensions), rng=make_rng(3), permuted=[[0, 2], [1, 4]])


@pytest.mark.parametrize("n_times", [1, 3])
def test_in_a_box(n_times):
    made = field(box=BOX.tolist(), start=0.2, n_times=n_times)
    check_vector_field(made, positions(), rng=make_rng(3), permuted=[[0, 2], [1, 4]], box=BOX)


def test_float32():
    made = field(box=3.0).float()
    check_vector_field(made, positions().float(), rng=make_rng(3), permuted=[[0, 2]], box=torch.full((3,), 3.0))


def test_particles_of_different_types_are_not_exchanged():
    with pytest.raises(AssertionError, match="permutation"):
        check_vector_field(field(reach=4.0), positions(), rng=make_rng(3), permuted=[[0, 1]])


def test_ends_at_the_cutoff_with_two_derivatives():
    made = PairField([0, 0], 1, box=2.0, n_basis=6).double()
    torch.nn.init.normal_(made.weights, generator=make_rng(1))
    x = torch.zeros(2, 2, 1, dtype=torch.float64)
    x[:, 1, 0] = torch.tensor([1.0 - 1e-4, 1.0 + 1e-4])
    v, jacobian = made.velocity_and_jacobian(x)
    assert v.abs().max() < 1e-10
    assert jacobian.abs().max() < 1e-6


def test_weights_between_knots_are_interpolated():
    made, x = field(reach=4.0, n_times=3), positions()
    at = [made(x, t) for t in (0.5, 1.0)]
    torch.testing.assert_close(made(x, 0.7), 0.6 * at[0] + 0.4 * at[1], rtol=0.0, atol=1e-12)


def test_strength_is_what_moves_two_particles():
    made = PairField([1, 0], 2, box=3.0, n_basis=6, n_times=3).double()
    torch.nn.init.normal_(made.weights, generator=make_rng(1))
    r = torch.linspace(0.1, 1.4, 7, dtype=torch.float64)
    x = torch.zeros(7, 2, 2, dtype=torch.float64)
    x[:, 1, 0] = r
    (f,) = made.strength(r, 0.3)
    torch.testing.assert_close(made(x, 0.3)[:, 1, 0], f * r)
    assert float(made.strength(torch.tensor([1.6], dtype=torch.float64)).detach()) == 0.0


def test_every_weight_gets_its_gradient():
    made, x = field(reach=4.0, n_times=2), positions()
    v, jacobian = made.velocity_and_jacobian(x, torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64))
    (v.square().sum() + jacobian.square().sum()).backward()
    # the one particle of type 2 has no partner of its own kind
    assert made.kinds == ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))
    assert (made.weights.grad != 0).all()


def test_stein_functions_are_those_of_the_field():
    made, x = field(box=3.0), positions()
    force = torch.randn(x.shape, dtype=torch.float64, generator=make_rng(4))
    expected = made.divergence(x) + (force * made(x)).sum((1, 2))
    torch.testing.assert_close(made.stein(x, force) @ made.weights.flatten(), expected, rtol=1e-10, atol=1e-10)


def test_stein_functions_have_no_mean():
    target, made = MeanFreeGaussian(len(TYPES), 2).double(), field(2, reach=4.0)
    state = target.sample(20_000, make_rng(5))
    functions = made.stein(state["positions"], target.energy_and_force(state)[1]["positions"])
    z = functions.mean(0) / functions.std(0) * len(functions) ** 0.5
    assert z.abs().max() < 4.5


def test_the_default_divergence_is_that_of_autograd():
    class Linear(VectorField):
        def forward(self, positions, t=0.0):
            return 0.5 * positions + positions.roll(1, 1)

    x = positions()
    torch.testing.assert_close(Linear().divergence(x), torch.full((4,), 7.5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected a distance"),
        ({"box": 3.0, "reach": 1.6}, "at most half of the shortest edge, 1.5"),
        ({"reach": 2.0, "start": 2.0}, "start"),
        ({"reach": 2.0, "n_basis": 1}, "2 Gaussians"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PairField(TYPES, 3, **options)
