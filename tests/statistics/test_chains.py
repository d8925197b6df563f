"""Correlated chains against closed forms."""

import numpy as np
import pytest
from scipy.signal import lfilter

from boltzflow.statistics.chains import (
    bulk_ess,
    effective_samples,
    split_rhat,
    statistical_inefficiency,
    tail_ess,
)


def autoregressive(n_chains, n, a, seed=0):
    """Stationary AR(1) chains of unit variance; g = (1 + a)/(1 − a)."""
    noise = np.random.default_rng(seed).normal(size=(n_chains, n + 500)) * np.sqrt(1 - a**2)
    return lfilter([1.0], [1.0, -a], noise, axis=1)[:, 500:]


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9])
def test_inefficiency_of_an_autoregressive_process(a):
    chains = autoregressive(4, 50_000, a)
    assert statistical_inefficiency(list(chains)) == pytest.approx((1 + a) / (1 - a), rel=0.08)
    assert effective_samples(list(chains)) == pytest.approx(200_000 * (1 - a) / (1 + a), rel=0.08)


def test_stuck_chains_count_as_one_sample_each():
    assert statistical_inefficiency([np.full(100, 3.0)]) == 100
    assert effective_samples([np.full(100, 3.0), np.full(100, 3.0)]) == 2
    # each stuck at its own value: no more than one sample per chain either
    stuck = [np.full(1000, float(i)) for i in range(4)]
    assert effective_samples(stuck) < 5


def test_chains_that_disagree_are_inefficient_though_each_mixes():
    chains = autoregressive(2, 2000, 0.0) + np.array([[0.0], [8.0]])
    assert statistical_inefficiency([chains[0]]) < 2
    assert effective_samples(list(chains)) < 5


def test_rhat_that_is_not_ranked_is_the_ratio_of_variances():
    chains = autoregressive(4, 500, 0.7, seed=3) + 0.3 * np.arange(4)[:, None]
    halves = np.concatenate([chains[:, :250], chains[:, 250:]])
    within, between = halves.var(1, ddof=1).mean(), halves.mean(1).var(ddof=1)
    assert split_rhat(chains, ranked=False) == pytest.approx(np.sqrt(249 / 250 + between / within), abs=1e-12)
    # ranks do not change with the scale of the tails
    assert split_rhat(np.sinh(chains)) == pytest.approx(split_rhat(chains), abs=1e-3)


def test_rhat_of_good_bad_and_stuck_chains():
    good = autoregressive(4, 5000, 0.3)
    assert split_rhat(good) < 1.01
    # same means, different widths: only the folded ranks see it
    assert split_rhat(good * np.array([[1.0], [1.0], [1.0], [3.0]])) > 1.05
    assert split_rhat(np.linspace(0, 1, 100)[None]) > 2
    assert split_rhat(np.zeros((2, 100))) == np.inf
    assert np.isnan(split_rhat(np.zeros((2, 100)), ranked=False))
    assert split_rhat(np.arange(3.0)[:, None].repeat(100, 1)) == np.inf  # each stuck at its own value
    with pytest.raises(ValueError, match="NaN"):
        split_rhat(np.full((2, 100), np.nan))


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9])
def test_bulk_and_tail_sizes_of_an_autoregressive_process(a):
    # the standard error is about 3.5 % at a = 0.9
    chains, expected = autoregressive(4, 80_000, a), 320_000 * (1 - a) / (1 + a)
    assert bulk_ess(chains) == pytest.approx(expected, rel=0.12)
    # an indicator forgets faster than the process itself
    assert (0.9 if a == 0 else 1.0) * expected < tail_ess(chains) < (1.1 if a == 0 else 3.0) * expected


def test_sizes_of_chains_that_disagree_are_stuck_or_hold_no_number():
    apart = autoregressive(2, 2000, 0.0) + np.array([[0.0], [8.0]])
    assert bulk_ess(apart) < 10
    assert tail_ess(apart) < 100
    assert bulk_ess(np.zeros((3, 100))) == tail_ess(np.zeros((3, 100))) == 3
    assert bulk_ess(np.arange(4.0)[:, None].repeat(100, 1)) < 5
    # tails that only one chain visits: the centre does not know
    one = autoregressive(4, 2000, 0.0)
    one[0, :200] *= 30.0
    assert tail_ess(one) < 0.5 * bulk_ess(one)
    for size in (bulk_ess, tail_ess):
        with pytest.raises(ValueError, match="NaN"):
            size(np.full((2, 100), np.nan))
        with pytest.raises(ValueError, match="n_frames >= 4"):
            size(np.zeros((2, 3)))
