"""BAR and MBAR: Gaussian pairs with known Delta_f, pymbar as oracle, errors where pymbar answers 0 ± 0."""

import numpy as np
import pytest

from boltzflow.errors import LowOverlapError, NonFiniteEnergyError
from boltzflow.statistics._pymbar import quiet_pymbar
from boltzflow.statistics.bar import bar, bar_overlap, mbar
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


def test_overlap_is_a_half_for_one_state_and_falls_with_distance():
    w = np.zeros(100)
    assert bar_overlap(w, w) == pytest.approx(0.5)
    near, far = (bar_overlap(*harmonic_work(2000, 2000, offset=offset)) for offset in (1.0, 10.0))
    assert 0.5 > near > 0.1 > far > 0


def three_states(n, seed, *, copies=1):
    """u_kn of samples of three Gaussians that are shifted and scaled, every sample `copies` times."""
    rng = np.random.default_rng(seed)
    means, scales = np.array([0.0, 1.0, 1.5]), np.array([1.0, 0.8, 0.5])
    x = np.repeat(means[:, None] + scales[:, None] * rng.normal(size=(3, n)), copies, axis=1).ravel()
    u = 0.5 * ((x - means[:, None]) / scales[:, None]) ** 2
    return u, [n * copies] * 3, -np.log(scales[2])


def test_mbar_between_rows_is_the_asymptotic_error():
    u, n, exact = three_states(1000, 0)
    plain, grouped = mbar(u, n), mbar(u, n, groups=Groups.rows(3000))
    assert grouped.Delta_f == pytest.approx(plain.Delta_f)
    assert grouped.dDelta_f == pytest.approx(plain.dDelta_f, rel=0.1)
    assert abs(grouped.estimate(0, 2).z_score(exact)) < 4
    assert "between 3000 groups" in grouped.estimate(0, 2).method


def test_mbar_between_groups_counts_groups_not_copies():
    ids = np.tile(np.repeat(np.arange(20), 10 * 5), 3)
    u, n, _ = three_states(200, 1, copies=5)
    repeated = mbar(u, n, groups=Groups.of(ids, 3000))
    u, n, exact = three_states(200, 1)
    alone = mbar(u, n, groups=Groups.of(ids[::5], 600))
    assert repeated.dDelta_f == pytest.approx(alone.dDelta_f, rel=1e-6)
    assert alone.estimate(0, 2).degrees == 19
    low, high = alone.estimate(0, 2).interval()
    assert low < exact + 0.2
    assert high > exact - 0.2


def test_mbar_of_one_sampled_state_is_the_exponential_average():
    u, _, _ = three_states(500, 2)
    ids = Groups.of(np.arange(500) // 25, 500)
    found = mbar(u[:, :500], [500, 0, 0], groups=ids)
    for k in (1, 2):
        oracle = exp_free_energy(u[k, :500] - u[0, :500], groups=ids)
        assert found.Delta_f[0, k] == pytest.approx(oracle.value)
        assert found.dDelta_f[0, k] == pytest.approx(oracle.error)


def test_mbar_intervals_cover_when_groups_are_correlated():
    """Groups share an offset of their samples; 95 % intervals with Student's t cover, and those of rows do not."""
    repeats, hits, naive = 120, 0, 0
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        common = rng.normal(size=(16, 1, 1)) * 0.6
        x = common + 0.8 * rng.normal(size=(16, 2, 20))
        x[:, 1] += 1.0
        x = x.transpose(1, 0, 2).reshape(2, 320)
        u = np.stack([0.5 * x.ravel() ** 2, 0.5 * (x.ravel() - 1) ** 2])
        ids = np.tile(np.repeat(np.arange(16), 20), 2)
        low, high = mbar(u, [320, 320], groups=Groups.of(ids, 640)).estimate(0, 1).interval()
        hits += low < 0 < high
        low, high = mbar(u, [320, 320], groups=Groups.rows(640)).estimate(0, 1).interval()
        naive += low < 0 < high
    assert abs(hits / repeats - 0.95) < 3 * np.sqrt(0.95 * 0.05 / repeats)
    assert naive / repeats < 0.7
