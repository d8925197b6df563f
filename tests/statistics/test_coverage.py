"""Confidence intervals cover the truth as often as they say: independent, grouped, lineage and chain data."""

import itertools

import numpy as np
import pytest
from scipy.signal import lfilter

from boltzflow.statistics.groups import Groups
from boltzflow.statistics.means import elbo, eubo, expectation, log_z

REPEATS = 400
# 3.5 binomial standard errors about 0.95
LOW, HIGH = 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / REPEATS), 0.95 + 3.5 * np.sqrt(0.95 * 0.05 / REPEATS)


def coverage(estimates, truth):
    intervals = np.array([e.interval(0.95) for e in estimates])
    return np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))


def gaussian_weights(x, stiffness):
    """log w of a harmonic target k x²/2 from samples of N(0, 1) with u = x²/2; log Z ratio −log(k)/2, ⟨x²⟩ = 1/k."""
    return 0.5 * (1 - stiffness) * x**2


@pytest.mark.parametrize("error", ["linear", "bootstrap"])
def test_independent_rows(error):
    x = np.random.default_rng(0).normal(size=(REPEATS if error == "linear" else 100, 400))
    log_w = gaussian_weights(x, 1.6)
    z = [log_z(w, error=error, seed=i) for i, w in enumerate(log_w)]
    assert LOW < coverage(z, -0.5 * np.log(1.6)) < HIGH
    a = [expectation(b, log_weights=w, error=error, seed=i) for i, (b, w) in enumerate(zip(x, log_w, strict=True))]
    assert LOW < coverage(a, 0.0) < HIGH


def test_bounds_of_log_z():
    rng = np.random.default_rng(1)
    below = [elbo(gaussian_weights(x, 1.6)) for x in rng.normal(size=(REPEATS, 300))]
    assert LOW < coverage(below, -0.3) < HIGH
    above = [eubo(gaussian_weights(x, 1.6)) for x in rng.normal(size=(REPEATS, 300)) / np.sqrt(1.6)]
    assert LOW < coverage(above, -0.3 / 1.6) < HIGH
    assert -0.3 < -0.5 * np.log(1.6) < -0.3 / 1.6


def test_few_populations_need_students_t():
    """Eight populations with a common shift each: rows are far from independent."""
    rng = np.random.default_rng(2)
    ids = np.repeat(np.arange(8), 50)
    x = rng.normal(size=(REPEATS, 8, 1)) + 0.3 * rng.normal(size=(REPEATS, 8, 50))
    x = x.reshape(REPEATS, -1)
    grouped = [expectation(b, groups=Groups.of(ids, 400)) for b in x]
    assert LOW < coverage(grouped, 0.0) < HIGH
    assert coverage([expectation(b) for b in x], 0.0) < 0.5
    weighted = [log_z(0.3 * b, groups=Groups.of(ids, 400)) for b in x]
    assert LOW < coverage(weighted, 0.5 * 0.09 * 1.09) < HIGH


def smc(rng, n, *, stiffness=12.0, n_levels=8, step=0.15):
    """One population of sequential Monte Carlo from N(0, 1) to a harmonic target: x, log w, lineage.

    Resampling at every level and one small Metropolis step, so that copies stay close to their parents.
    """
    ladder = np.geomspace(1.0, stiffness, n_levels + 1)
    x, lineage, log_z_running = rng.normal(size=n), np.arange(n), 0.0
    for k0, k1 in itertools.pairwise(ladder):
        increment = 0.5 * (k0 - k1) * x**2
        log_z_running += np.log(np.mean(np.exp(increment)))
        parent = rng.choice(n, size=n, p=np.exp(increment) / np.sum(np.exp(increment)))
        x, lineage = x[parent], lineage[parent]
        trial = x + step * rng.normal(size=n) / np.sqrt(k1)
        x = np.where(np.log(rng.random(n)) < 0.5 * k1 * (x**2 - trial**2), trial, x)
    return x, np.full(n, log_z_running), lineage


def test_lineages_of_one_population():
    rng = np.random.default_rng(3)
    n = 300
    runs = [smc(rng, n) for _ in range(REPEATS)]
    groups = [Groups.of(lineage, n, sizes=np.ones(n)) for _, _, lineage in runs]
    truth = -0.5 * np.log(12.0)
    # weights inside a population are equal, so that only the lineages, dead ones included, know the error of log Z
    found = [log_z(w, groups=g) for (_, w, _), g in zip(runs, groups, strict=True)]
    assert coverage(found, truth) > LOW
    spread = np.std([e.value for e in found])
    assert 0.8 * spread < np.mean([e.error for e in found]) < 2.5 * spread
    moment = [expectation(x**2, groups=g) for (x, _, _), g in zip(runs, groups, strict=True)]
    assert LOW - 0.02 < coverage(moment, 1 / 12) < 0.995
    naive = [expectation(x**2) for x, _, _ in runs]
    assert coverage(naive, 1 / 12) < 0.8


def test_populations_of_sequential_monte_carlo():
    rng = np.random.default_rng(4)
    n, populations = 60, 10
    ids = np.repeat(np.arange(populations), n)
    found, moment, naive = [], [], []
    for _ in range(REPEATS):
        parts = [smc(rng, n, n_levels=4) for _ in range(populations)]
        x, w = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        groups = Groups.of(ids, x.size)
        found.append(log_z(w, groups=groups))
        moment.append(expectation(x**2, log_weights=w, groups=groups))
        naive.append(log_z(w))
    truth = -0.5 * np.log(12.0)
    assert LOW - 0.02 < coverage(found, truth) < HIGH
    assert LOW - 0.02 < coverage(moment, 1 / 12) < HIGH
    assert coverage(naive, truth) < 0.5


@pytest.mark.parametrize("error", ["linear", "bootstrap"])
def test_chains_of_correlated_frames(error):
    rng = np.random.default_rng(5)
    a, n_chains, n = 0.8, 4, 400
    chain, frame = np.divmod(np.arange(n_chains * n), n)
    noise = rng.normal(size=(REPEATS, n_chains, n + 100)) * np.sqrt(1 - a**2)
    x = lfilter([1.0], [1.0, -a], noise, axis=-1)[..., 100:].reshape(REPEATS, -1)
    groups = Groups.of_chains(chain, frame)
    repeats = REPEATS if error == "linear" else 100
    found = [expectation(b, log_weights=0.4 * b, groups=groups, error=error) for b in x[:repeats]]
    assert LOW - 0.03 < coverage(found, 0.4) < 0.99
    assert coverage([expectation(b, log_weights=0.4 * b) for b in x], 0.4) < 0.6
    assert np.median([e.n_effective for e in found]) < 0.25 * n_chains * n


def test_row_order_does_not_matter_for_chains():
    rng = np.random.default_rng(6)
    chain, frame = np.divmod(np.arange(600), 200)
    x = np.cumsum(rng.normal(size=600)) * 0.1
    shuffled = rng.permutation(600)
    straight = expectation(x, groups=Groups.of_chains(chain, frame))
    assert expectation(x[shuffled], groups=Groups.of_chains(chain[shuffled], frame[shuffled])).error == pytest.approx(
        straight.error, rel=1e-12
    )


def test_bootstrap_over_blocks_of_many_groups_agrees_with_the_linear_error():
    log_w = gaussian_weights(np.random.default_rng(7).normal(size=20_000), 1.6)
    linear, bootstrap = log_z(log_w), log_z(log_w, error="bootstrap")
    assert bootstrap.value == linear.value
    assert bootstrap.error == pytest.approx(linear.error, rel=0.12)
    assert "bootstrap" in bootstrap.method
