import itertools

import pytest
import torch

from boltzflow.coordinates import match
from boltzflow.run import make_rng


def draw(*shape, seed=0):
    x = torch.randn(*shape, dtype=torch.float64, generator=make_rng(seed))
    return x - x.mean(-2, keepdim=True)


def rotation(dim, *, proper, seed=5):
    q = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=make_rng(seed))).Q
    if (torch.linalg.det(q) > 0) != proper:
        q[:, 0] = -q[:, 0]
    return q


def squared(x, y):
    return (x - y).square().sum((1, 2))


@pytest.mark.parametrize(("dim", "proper"), [(2, True), (3, True), (3, False)])
def test_a_rotated_and_permuted_copy_is_found_from_nearby(dim, proper):
    x = draw(4, 5, dim)
    order = torch.tensor([0, 2, 1, 3, 4])
    small = torch.matrix_exp(0.05 * (r := rotation(dim, proper=True)) - 0.05 * r.T)
    mirrored = small if proper else small @ rotation(dim, proper=False)
    moved = match((x @ mirrored)[:, order], x, permuted=[[0, 1, 2]], rotations="proper" if proper else "all", rounds=8)
    distance = squared(moved, x)
    assert (distance <= squared((x @ mirrored)[:, order], x) + 1e-12).all()
    if proper:
        assert distance.max() < 1e-20


def test_reflections_only_where_they_are_allowed():
    x = draw(3, 5, 3)
    mirror = x * torch.tensor([1.0, 1.0, -1.0])
    assert squared(match(mirror, x, rotations="all"), x).max() < 1e-20
    proper = match(mirror, x, rotations="proper")
    assert squared(proper, x).min() > 1e-3
    assert (torch.linalg.det(proper[:, :3]).sign() == torch.linalg.det(mirror[:, :3]).sign()).all()


def test_the_assignment_is_the_best_of_all_permutations():
    x, y = draw(6, 4, 2, seed=1), draw(6, 4, 2, seed=2)
    found = squared(match(x, y, permuted=[[0, 1, 2, 3]], rotations="none", rounds=1), y)
    every = torch.stack([squared(x[:, list(order)], y) for order in itertools.permutations(range(4))])
    assert torch.allclose(found, every.amin(0))


def test_labelled_particles_keep_their_places():
    x, y = draw(6, 4, 2, seed=1), draw(6, 4, 2, seed=2)
    moved = match(x, y, permuted=[[0, 3]], rotations="none")
    assert torch.equal(moved[:, 1:3], x[:, 1:3])


def test_shapes_are_compared():
    with pytest.raises((ValueError, TypeError), match="match"):
        match(draw(2, 4, 2), draw(2, 5, 2))
