import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from boltzflow.coordinates import couple, match, matched_distances, matching
from boltzflow.coordinates.matching_kernel import library
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


@pytest.mark.parametrize("groups", [[[0, 1, 5]], [[0, 9]]])
def test_groups_are_checked(groups):
    with pytest.raises(ValueError, match="groups of the particles 0 to 4, none of them twice"):
        match(draw(2, 5, 2), draw(2, 5, 2, seed=1), permuted=[*groups, [1, 2]])


needs_compiler = pytest.mark.skipif(library() is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("rotations", ["none", "proper", "all"])
@pytest.mark.parametrize(
    ("n", "dim", "groups"),
    [
        (13, 3, [range(13)]),
        (4, 2, [range(4)]),
        (7, 3, [[0, 2, 3], [6, 1]]),
        (5, 3, []),
        (5, 2, []),
        (20, 3, [range(20)]),
    ],
)
def test_the_kernel_is_its_eager_twin(n, dim, groups, rotations, monkeypatch):
    x, y = draw(12, n, dim, seed=1), draw(12, n, dim, seed=2)
    options = {"permuted": groups, "rotations": rotations, "rounds": 3}
    rows, pairs = match(x, y, **options), matched_distances(x, y, **options)
    monkeypatch.setattr(matching, "library", lambda: None)
    torch.testing.assert_close(rows, match(x, y, **options), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(pairs, matched_distances(x, y, **options), rtol=1e-5, atol=1e-4)


@needs_compiler
def test_assignments_of_the_kernel_are_the_best_where_costs_tie():
    x, y = (torch.randint(0, 3, (300, 12, 2), generator=make_rng(k)).double() for k in (1, 2))
    moved = match(x, y, permuted=[range(12)], rotations="none", rounds=1)
    best = []
    for a, b in zip(x, y, strict=True):
        cost = torch.cdist(b, a).square().round().numpy()
        best.append(float(cost[linear_sum_assignment(cost)].sum()))
    assert torch.equal(squared(moved, y), torch.tensor(best, dtype=torch.float64))


@needs_compiler
def test_rotations_of_the_kernel_where_singular_values_coincide():
    line = draw(6, 5, 1).expand(-1, -1, 3) * torch.tensor([1.0, 2.0, 0.0])
    square = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    for x in (line, square.expand(6, 4, 3).double(), torch.zeros(6, 4, 3, dtype=torch.float64)):
        moved = x @ rotation(3, proper=True)
        for rotations in ("proper", "all"):
            found = matched_distances(moved, x, permuted=[range(x.shape[1])], rotations=rotations, rounds=4)
            assert torch.isfinite(found).all()
            assert (match(moved, x, rotations=rotations) - x).abs().max() < 1e-10
            assert matched_distances(moved, x, rotations=rotations).diagonal().max() < 1e-4


def test_rows_that_are_not_finite_are_left_to_the_caller():
    x, y = draw(4, 5, 3), draw(4, 5, 3, seed=1)
    x[1, 2, 0] = torch.nan
    if library() is not None:
        cost = matched_distances(x, y, permuted=[range(5)])
        assert torch.isnan(cost[:, 1]).all()
        assert torch.isfinite(cost[:, [0, 2, 3]]).all()


def test_a_coupling_finds_the_partners_of_scrambled_rows():
    y = draw(20, 6, 3)
    order, back = torch.randperm(20, generator=make_rng(3)), torch.randperm(6, generator=make_rng(4))
    near = 0.05 * rotation(3, proper=True)
    moved = couple((y @ torch.matrix_exp(near - near.T))[order][:, back], y, permuted=[range(6)], rounds=3)
    assert squared(moved, y).max() < 1e-20


def test_a_coupling_takes_every_row_once_and_beats_assignment_before_matching():
    x, y = 0.7 * draw(64, 5, 3, seed=1), 0.7 * draw(64, 5, 3, seed=2)
    moved = couple(x, y, permuted=[range(5)])
    invariant = x.norm(dim=2).sort().values.sum(1).sort().values
    torch.testing.assert_close(moved.norm(dim=2).sort().values.sum(1).sort().values, invariant)
    cost = torch.cdist(y.flatten(1), x.flatten(1)).square().numpy()
    first = match(x[torch.from_numpy(linear_sum_assignment(cost)[1])], y, permuted=[range(5)], rounds=8)
    assert squared(moved, y).mean() < 0.85 * squared(first, y).mean()


def test_a_coupling_keeps_the_hand_of_every_row():
    x = draw(16, 4, 3)
    signs = torch.linalg.det(x[:, 1:] - x[:, :1]).sign()
    moved = couple(x, draw(16, 4, 3, seed=1), rotations="proper")
    radii, rows = x.norm(dim=2), moved.norm(dim=2)
    partner = torch.cdist(rows, radii).argmin(1)
    assert torch.equal(torch.linalg.det(moved[:, 1:] - moved[:, :1]).sign(), signs[partner])


def test_shapes_of_a_coupling_are_compared():
    with pytest.raises((ValueError, TypeError), match="couple"):
        couple(draw(2, 4, 2), draw(3, 4, 2))
    with pytest.raises((ValueError, TypeError), match="matched_distances"):
        matched_distances(draw(2, 4, 2), draw(3, 5, 2))
