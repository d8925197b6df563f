import pytest
import torch

from boltzflow.networks import NeighbourField
from boltzflow.run import make_rng
from boltzflow.testing import check_vector_field


def random_field(types, dim, **sizes):
    field = NeighbourField(types, dim, **{"reach": 4.0, "hidden": 8, "n_features": 5, "n_basis": 7, **sizes}).double()
    rng = make_rng(1)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=rng)
    return field


@pytest.mark.parametrize(
    ("types", "dim", "permuted"), [([0, 0, 1, 1, 2], 3, [[0, 1], [2, 3]]), ([0] * 4, 2, [[0, 1, 2, 3]])]
)
def test_symmetries_and_closed_forms(types, dim, permuted):
    x = torch.randn(3, len(types), dim, dtype=torch.float64, generator=make_rng(2))
    check_vector_field(random_field(types, dim), x, rng=make_rng(3), permuted=permuted)


def test_it_tells_angles_between_neighbours():
    """Two triples with the same two distances from the first particle: only its own angle differs."""
    field = random_field([0] * 3, 2)
    arms = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    wide = torch.stack([torch.zeros(2, dtype=torch.float64), arms[0], arms[1]])
    straight = torch.stack([torch.zeros(2, dtype=torch.float64), arms[0], -arms[0]])
    weights = []
    for x in (wide, straight):
        r, _, basis, _ = field._neighbours(x[None])
        weights.append(field._weights(basis, r, 0.3)[1][0, 0])
    assert (weights[0] - weights[1]).abs().max() > 1e-3


def test_particles_that_coincide_have_a_finite_velocity_and_jacobian():
    x = torch.zeros(1, 3, 3, dtype=torch.float64).requires_grad_()
    v, jacobian = random_field([0] * 3, 3).velocity_and_jacobian(x, 0.3)
    assert torch.isfinite(v).all()
    assert torch.isfinite(jacobian).all()


def test_untrained_it_moves_nothing():
    field = NeighbourField([0] * 4, 2, reach=3.0)
    assert field(torch.randn(2, 4, 2, generator=make_rng(0)), 0.5).abs().max() == 0


@pytest.mark.parametrize("wrong", [{"types": [0]}, {"reach": 0.0}, {"n_basis": 1}])
def test_sizes_that_make_no_field(wrong):
    with pytest.raises(ValueError, match="NeighbourField"):
        NeighbourField(**{"types": [0, 0], "n_dimensions": 2, "reach": 1.0, **wrong})
