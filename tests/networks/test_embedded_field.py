import pytest
import torch

from boltzflow.networks import EmbeddedField
from boltzflow.run import make_rng
from boltzflow.testing import check_vector_field


def random_field(types, dim, **sizes):
    field = EmbeddedField(types, dim, **{"reach": 4.0, "hidden": 8, "n_features": 5, "n_basis": 7, **sizes}).double()
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


def test_surroundings_matter():
    field = random_field([0] * 3, 2)
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 50.0]], [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    messages, edges, _ = field._edges(field._separations(x)[1], 0.3)
    _, n = field._surroundings(messages)
    phi = field._strength(edges, n)[-1]
    assert (phi[0, 0] - phi[1, 0]).abs() > 1e-3  # the same pair, another third particle


def test_untrained_it_moves_nothing():
    field = EmbeddedField([0] * 4, 2, reach=3.0)
    assert field(torch.randn(2, 4, 2, generator=make_rng(0)), 0.5).abs().max() == 0


@pytest.mark.parametrize("wrong", [{"types": [0]}, {"reach": 0.0}, {"n_basis": 1}])
def test_sizes_that_make_no_field(wrong):
    with pytest.raises(ValueError, match="EmbeddedField"):
        EmbeddedField(**{"types": [0, 0], "n_dimensions": 2, "reach": 1.0, **wrong})
