"""Flat fields of one hidden layer: closed forms against autograd."""

import pytest
import torch

from boltzflow.networks import GatedField, PairField, ShallowField, VectorField
from boltzflow.run import make_rng

KINDS = pytest.mark.parametrize("kind", [ShallowField, lambda d, hidden: GatedField(d, hidden, n_seen=3)])


def field(kind, d=4, hidden=7):
    made, rng = kind(d, hidden).double(), make_rng(1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, generator=rng)
    return made


@KINDS
def test_closed_forms_are_those_of_autograd(kind):
    made, x = field(kind), torch.randn(5, 4, dtype=torch.float64, generator=make_rng(2))
    t = torch.rand(5, dtype=torch.float64, generator=make_rng(3))
    expected = VectorField.jacobian(made, x, t)
    torch.testing.assert_close(made.jacobian(x, t), expected)
    torch.testing.assert_close(made.divergence(x, t), expected.diagonal(dim1=1, dim2=2).sum(1))
    v, jacobian = made.velocity_and_jacobian(x, t)
    torch.testing.assert_close(v, made(x, t))
    torch.testing.assert_close(jacobian, expected)
    torch.testing.assert_close(made(x[:1], float(t[0])), made(x, t)[:1])


@KINDS
@pytest.mark.parametrize("default", [True, False])
def test_products_with_the_jacobian(kind, default):
    made, x = field(kind), torch.randn(5, 4, dtype=torch.float64, generator=make_rng(2))
    tangent = torch.randn(5, 4, dtype=torch.float64, generator=make_rng(3))
    v, pushed = VectorField.jvp(made, x, tangent, 0.3) if default else made.jvp(x, tangent, 0.3)
    torch.testing.assert_close(v, made(x, 0.3))
    torch.testing.assert_close(pushed, (made.jacobian(x, 0.3) @ tangent[..., None])[..., 0])


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("where", [{"reach": 3.0}, {"box": 2.5}])
def test_products_of_a_field_of_particles(default, where):
    made = PairField([0, 0, 1], 2, **where).double()
    torch.nn.init.normal_(made.weights, generator=make_rng(1))
    x, tangent = torch.randn(2, 4, 3, 2, dtype=torch.float64, generator=make_rng(2))
    v, pushed = VectorField.jvp(made, x, tangent) if default else made.jvp(x, tangent)
    torch.testing.assert_close(v, made(x))
    torch.testing.assert_close(pushed.flatten(1), (made.jacobian(x) @ tangent.flatten(1)[..., None])[..., 0])


@KINDS
def test_untrained_it_moves_nothing(kind):
    assert not kind(3, 5)(torch.randn(2, 3, generator=make_rng(1)), 0.5).any()
