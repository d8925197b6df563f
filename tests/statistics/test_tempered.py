"""Weights of all temperatures for the first one, on harmonic systems whose energies are gamma distributed."""

import numpy as np
import pytest
from scipy.stats import t as student

from boltzflow.errors import LowOverlapError, NonFiniteEnergyError
from boltzflow.statistics.groups import Groups
from boltzflow.statistics.means import expectation
from boltzflow.statistics.tempered import ladder_groups, tempered_weights

D = 20
BETAS = 1.8 ** -np.linspace(0, 1, 4)
EXACT = D / 2 * np.log(BETAS)  # f = -log Z(β), Z ∝ β^(-d/2)


def energies(rng, *, n_frames=60, n_ladders=16, betas=BETAS, d=D):
    """u of a harmonic system of d dimensions at every temperature, (n_frames, n_rungs, n_ladders)."""
    return rng.gamma(d / 2, 1 / np.asarray(betas)[:, None], size=(n_frames, len(betas), n_ladders))


def groups_of(u):
    return Groups.of(np.broadcast_to(ladder_groups(u.shape[0], u.shape[2])[:, None], u.shape).reshape(-1), u.size)


def test_free_energies_and_mean_energy_are_exact_within_errors():
    u = energies(np.random.default_rng(1), n_frames=500)
    found = tempered_weights(u, BETAS)
    assert found.free_energies[-1] == found.errors[-1] == 0
    z = (found.free_energies - (EXACT - EXACT[-1]))[:-1] / found.errors[:-1]
    assert np.abs(z).max() < 3.5
    assert found.errors[:-1].max() < 0.05
    mean = expectation(u.reshape(-1), log_weights=found.log_weights.reshape(-1), groups=groups_of(u))
    assert abs(mean.value - D / 2) < 3.5 * mean.error
    assert np.exp(found.log_weights).mean() == pytest.approx(1.0)


def test_intervals_cover_and_hot_frames_make_them_shorter():
    rng = np.random.default_rng(2)
    inside = {"energy": 0, "other": 0}
    errors, cold_errors = [], []
    for _ in range(100):
        u = energies(rng)
        other = rng.normal(size=u.shape)  # a coordinate that the energy says nothing of
        weights = tempered_weights(u, BETAS).log_weights.reshape(-1)
        for name, values, exact in (("energy", u, D / 2), ("other", other, 0.0)):
            found = expectation(values.reshape(-1), log_weights=weights, groups=groups_of(u))
            inside[name] += abs(found.value - exact) < student.ppf(0.975, found.degrees) * found.error
        errors.append(found.error)
        cold = expectation(other[:, 0].reshape(-1), log_weights=np.zeros(other[:, 0].size))
        cold_errors.append(cold.error)
    # 95 ± 2 of 100; for the energy errors are a little too small, as stated
    assert inside["other"] >= 89
    assert inside["energy"] >= 84
    # three hotter rungs are worth a good half of another cold one at least
    assert np.mean(cold_errors) / np.mean(errors) > 1.2


def test_infinite_energies_have_no_weight_and_an_offset_changes_nothing():
    u = energies(np.random.default_rng(3), n_ladders=12)
    plain = tempered_weights(u, BETAS).log_weights
    np.testing.assert_allclose(tempered_weights(u - 300.0, BETAS).log_weights, plain, atol=1e-6)
    u[5, 1, 2] = np.inf
    found = tempered_weights(u, BETAS).log_weights
    assert found[5, 1, 2] == -np.inf
    assert np.isfinite(np.delete(found.reshape(-1), np.ravel_multi_index((5, 1, 2), u.shape))).all()
    assert np.exp(found).mean() == pytest.approx(1.0)


def test_what_is_hopeless_is_refused():
    rng = np.random.default_rng(4)
    with pytest.raises(LowOverlapError):
        tempered_weights(energies(rng, betas=[1.0, 0.3], d=100), np.array([1.0, 0.3]))
    u = energies(rng)
    u[0, 0, 0] = np.nan
    with pytest.raises(NonFiniteEnergyError):
        tempered_weights(u, BETAS)


@pytest.mark.parametrize(("n_frames", "n_ladders", "n_groups"), [(7, 16, 16), (9, 3, 12), (2, 1, 2), (40, 1, 10)])
def test_few_ladders_are_cut_in_time(n_frames, n_ladders, n_groups):
    groups = ladder_groups(n_frames, n_ladders)
    assert groups.shape == (n_frames, n_ladders)
    assert len(np.unique(groups)) == n_groups
    assert (np.diff(groups, axis=0) >= 0).all()  # blocks follow each other in time
    assert all(len(np.intersect1d(groups[:, 0], groups[:, k])) == 0 for k in range(1, n_ladders))
