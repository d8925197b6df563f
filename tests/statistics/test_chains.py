"""Correlated chains against closed forms, pymbar and arviz."""

import numpy as np
import pytest
from scipy.signal import lfilter

from boltzflow.statistics.chains import effective_samples, split_rhat, statistical_inefficiency


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


@pytest.mark.parametrize(("n", "drift"), [(100, 0.0), (501, 0.0), (501, 0.3), (1000, 2.0)])
def test_rhat_agrees_with_arviz(n, drift):
    arviz = pytest.importorskip("arviz_stats.base").array_stats
    chains = autoregressive(4, n, 0.7, seed=n) + drift * np.arange(4)[:, None]
    assert split_rhat(chains) == pytest.approx(float(arviz.rhat(chains)), abs=1e-12)


def test_rhat_of_good_bad_and_stuck_chains():
    good = autoregressive(4, 5000, 0.3)
    assert split_rhat(good) < 1.01
    # same means, different widths: only the folded ranks see it
    assert split_rhat(good * np.array([[1.0], [1.0], [1.0], [3.0]])) > 1.05
    assert split_rhat(np.linspace(0, 1, 100)[None]) > 2
    assert split_rhat(np.zeros((2, 100))) == np.inf
    with pytest.raises(ValueError, match="NaN"):
        split_rhat(np.full((2, 100), np.nan))
