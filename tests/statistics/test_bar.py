"""BAR and MBAR: Gaussian pairs with known Delta_f, pymbar as oracle, errors where pymbar answers 0 ± 0."""

import numpy as np
import pytest

from boltzflow.errors import LowOverlapError, NonFiniteEnergyError
from boltzflow.statistics._pymbar import quiet_pymbar
from boltzflow.statistics.bar import bar, mbar
from boltzflow.statistics.groups import Groups
from boltzflow.statistics.means import exp_free_energy

DELTA_F = -0.7


def harmonic_work(n_f, n_r, seed=0, offset=1.0):
    """Work between u_A = x²/2 and u_B = k (x − b)²/2, Delta_f = log(k)/2."""
    rng, stiffness = np.random.default_rng(seed), np.exp(2 * DELTA_F)

    def work(x):
        return 0.5 * stiffness * (x - offset) ** 2 - 0.5 * x**2

    return work(rng.normal(size=n_f)), -work(offset + rng.normal(size=n_r) / np.sqrt(stiffness))


@pytest.mark.parametrize(("n_f", "n_r"), [(2000, 2000), (300, 3000)])
def test_bar_agrees_with_pymbar(n_f, n_r):
    w_F, w_R = harmonic_work(n_f, n_r)
    found = bar(w_F, w_R)
    oracle = quiet_pymbar().bar(w_F, w_R, relative_tolerance=1e-14)
    assert found.value == pytest.approx(oracle["Delta_f"], abs=1e-9)
    assert found.error == pytest.approx(oracle["dDelta_f"], rel=0.06)


def test_bar_covers_the_exact_difference():
    z = np.array([bar(*harmonic_work(200, 100, seed=s)).z_score(DELTA_F) for s in range(300)])
    assert abs(np.mean(z)) < 3.5 / np.sqrt(300)
    assert 0.91 < np.mean(np.abs(z) < 1.96) < 0.985


def test_bar_counts_groups_not_copies():
    w_F, w_R = harmonic_work(400, 400)
    alone = bar(w_F, w_R)
    repeated = bar(
        np.repeat(w_F, 5),
        np.repeat(w_R, 5),
        groups_F=Groups.of(np.repeat(np.arange(400), 5), 2000),
        groups_R=Groups.of(np.repeat(np.arange(400), 5), 2000),
    )
    assert repeated.value == pytest.approx(alone.value, abs=1e-10)
    assert repeated.error == pytest.approx(alone.error, rel=1e-6)
    assert bar(np.repeat(w_F, 5), np.repeat(w_R, 5)).error < 0.5 * alone.error


def test_infinite_forward_work_is_a_zero_weight_not_a_zero_answer():
    w_F, w_R = harmonic_work(500, 500)
    found = bar(np.r_[w_F, np.inf], w_R)
    assert found.value == pytest.approx(bar(np.r_[w_F, 1e4], w_R).value, abs=1e-9)
    assert found.error > 0.01


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_bar_refuses_broken_work(bad):
    with pytest.raises(NonFiniteEnergyError, match="1 of 3 values of w_R"):
        bar([0.0, 1.0, 2.0], [0.0, bad, 1.0])
    with pytest.raises(NonFiniteEnergyError, match="0 of 2 values of w_F"):
        bar([np.inf, np.inf], [0.0, 1.0])


def test_bar_without_overlap_raises():
    w_F, w_R = harmonic_work(50, 50, offset=60.0)
    with pytest.raises(LowOverlapError, match="effective samples"):
        bar(w_F, w_R)


def test_one_sided_estimate_has_the_sign_of_bar():
    w_F, _ = harmonic_work(20_000, 1)
    found = exp_free_energy(w_F)
    assert abs(found.z_score(DELTA_F)) < 4
    assert found.unit == "kT"


def harmonic_ladder(n_per_state, offsets, seed=0):
    rng = np.random.default_rng(seed)
    stiffness = np.array([1.0, 2.0, 4.0])[: len(offsets)]
    x = np.concatenate([b + rng.normal(size=n_per_state) / np.sqrt(k) for k, b in zip(stiffness, offsets, strict=True)])
    u_kn = 0.5 * stiffness[:, None] * (x - np.asarray(offsets)[:, None]) ** 2
    return u_kn, [n_per_state] * len(offsets), 0.5 * np.log(stiffness)


def test_mbar_matches_the_exact_differences():
    u_kn, N_k, f = harmonic_ladder(2000, [0.0, 0.5, 1.0])
    result = mbar(u_kn, N_k)
    for j in (1, 2):
        assert abs(result.estimate(0, j).z_score(f[j] - f[0])) < 4
    assert np.allclose(result.overlap.sum(axis=1), 1)
    assert np.all(result.n_effective > 2000)
    with pytest.raises(ValueError, match="two different states"):
        result.estimate(1, 1)


def test_mbar_is_unmoved_by_offsets_of_samples():
    u_kn, N_k, _ = harmonic_ladder(500, [0.0, 0.5, 1.0])
    shifted = mbar(u_kn + 1e5 * np.random.default_rng(1).normal(size=1500), N_k)
    assert np.allclose(shifted.Delta_f, mbar(u_kn, N_k).Delta_f, atol=1e-6)


def test_mbar_raises_where_states_are_apart_or_energies_broken():
    u_kn, N_k, _ = harmonic_ladder(200, [0.0, 40.0])
    with pytest.raises(LowOverlapError, match="intermediate states"):
        mbar(u_kn, N_k)
    u_kn[0, 0] = np.inf
    with pytest.raises(NonFiniteEnergyError, match="1 of 800"):
        mbar(u_kn, N_k)
    with pytest.raises(ValueError, match="counts that sum to N"):
        mbar(u_kn, [200, 100])
