"""Weighted means: refusals, zero weights, and what the Estimate says of itself."""

import numpy as np
import pytest
import torch

from boltzflow.errors import NonFiniteEnergyError
from boltzflow.statistics.groups import Groups
from boltzflow.statistics.means import elbo, eubo, expectation, log_z


def test_zero_weights_count_in_log_z_and_not_in_means():
    log_w = np.r_[np.zeros(50), np.full(50, -np.inf)]
    assert log_z(log_w).value == pytest.approx(np.log(0.5))
    values = np.r_[np.arange(50.0), np.full(50, np.nan)]
    assert expectation(values, log_weights=log_w).value == pytest.approx(24.5)


def test_independent_error_is_the_textbook_one():
    x = np.random.default_rng(0).normal(size=500)
    found = expectation(x)
    assert found.value == pytest.approx(x.mean())
    assert found.error == pytest.approx(x.std(ddof=1) / np.sqrt(500))
    assert found.n_effective == pytest.approx(500, rel=0.01)
    w = np.exp(x)
    assert log_z(x).error == pytest.approx(w.std(ddof=1) / w.mean() / np.sqrt(500))


def test_unequal_groups_share_the_error_by_size():
    """A group twice as large weighs twice; groups of exactly their share add nothing."""
    ids = np.repeat(np.arange(30), np.arange(1, 31))
    log_w = np.random.default_rng(1).normal(size=ids.size)
    s = np.bincount(ids, np.exp(log_w)) / np.exp(log_w).sum()
    expected = np.sqrt(30 / 29 * np.sum((s - np.arange(1, 31) / ids.size) ** 2))
    assert log_z(log_w, groups=Groups.of(ids, ids.size)).error == pytest.approx(expected, rel=1e-12)


def test_equal_weights_never_give_a_certain_answer():
    with pytest.raises(ValueError, match="all 10 weights are equal"):
        log_z(np.full(10, 3.0))
    with pytest.raises(ValueError, match="do not vary"):
        expectation(np.full(10, 0.1))
    with pytest.raises(ValueError, match="do not vary"):
        expectation(np.full(10, 0.1), log_weights=np.linspace(0, 1, 10))


def test_one_group_has_no_error():
    with pytest.raises(ValueError, match="belong to one group"):
        log_z(np.linspace(0, 1, 10), groups=Groups.of(np.zeros(10, dtype=int), 10))
    with pytest.raises(ValueError, match="fewer than 2 independent"):
        expectation([1.0], groups=Groups.of_chains(np.array([4])))


def test_two_stuck_chains_have_the_error_of_two_samples():
    found = expectation(np.repeat([0.0, 1.0], 100), groups=Groups.of_chains(np.repeat([0, 1], 100)))
    assert found.error == pytest.approx(0.5, rel=0.01)
    assert found.degrees == pytest.approx(1.0, rel=0.02)


def test_bad_values_are_counted():
    with pytest.raises(NonFiniteEnergyError, match="2 of 4 values"):
        expectation([1.0, np.nan, np.inf, 2.0])
    with pytest.raises(NonFiniteEnergyError, match="1 of 3 rows have weight zero"):
        elbo([0.0, 1.0, -np.inf])
    with pytest.raises(NonFiniteEnergyError, match="1 of 3"):
        eubo([0.0, 1.0, -np.inf])
    with pytest.raises(ValueError, match="one value per row"):
        expectation(np.zeros(3), log_weights=np.zeros(4))


def test_heavy_tails_are_said():
    rng = np.random.default_rng(2)
    assert any("k-hat" in w for w in log_z(4 * rng.normal(size=2000)).warnings)
    assert log_z(0.3 * rng.normal(size=2000)).warnings == ()


@pytest.mark.parametrize(
    ("ids", "sizes", "match"),
    [
        ([0, 1], None, "one integer per row"),
        ([0.0, 1.0, 2.0], None, "one integer per row"),
        ([0, 1, 2], [1.0, 1.0], "ids must lie in"),
        ([0, 1, 1], [1.0, -1.0], "sizes >= 0"),
        (None, [1.0], "without the group"),
    ],
)
def test_groups_refuse_what_does_not_fit(ids, sizes, match):
    with pytest.raises(ValueError, match=match):
        Groups.of(None if ids is None else np.array(ids), 3, sizes=sizes)


def test_groups_take_tensors_and_any_labels():
    groups = Groups.of(torch.tensor([7, -3, 7]), 3)
    assert groups.ids.tolist() == [1, 0, 1]
    assert groups.sizes.tolist() == [1.0, 2.0]
