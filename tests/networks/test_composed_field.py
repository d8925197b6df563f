import pytest
import torch

from boltzflow.networks import ComposedField, NeighbourField, PairField, ShallowField
from boltzflow.run import make_rng
from boltzflow.testing import check_vector_field


def composed(types=(0, 0, 1, 1), dim=3, n=3, size=0.2):
    sizes = {"hidden": 8, "n_features": 5, "n_basis": 7}
    field = ComposedField([NeighbourField(types, dim, reach=4.0, **sizes) for _ in range(n)]).double()
    rng = make_rng(1)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=size, generator=rng)
    return field


def positions(n=3, n_particles=4, dim=3):
    return torch.randn(n, n_particles, dim, dtype=torch.float64, generator=make_rng(2))


def test_symmetries_and_closed_forms():
    check_vector_field(composed(), positions(), rng=make_rng(3), permuted=[[0, 1], [2, 3]])


def test_one_part_is_that_part():
    field = composed(n=1)
    for mine, its in zip(
        field.velocity_and_jacobian(positions(), 0.3),
        field.fields[0].velocity_and_jacobian(positions(), 0.3),
        strict=True,
    ):
        assert torch.equal(mine, its)


def test_its_parts_are_cited():
    assert composed().methods == ("ComposedField", "NeighbourField")


def test_parts_are_of_the_same_particles():
    with pytest.raises(ValueError, match="of the same particles"):
        ComposedField([])
    with pytest.raises(ValueError, match="of the same particles"):
        ComposedField([PairField([0, 0], 2, reach=1.0), PairField([0, 1], 2, reach=1.0)])
    flat = ComposedField([ShallowField(2, 4), ShallowField(2, 4)])
    assert flat.types is None
    assert not flat.rotates
