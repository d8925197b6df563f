"""Two-sided log Z: exact in the mean, with intervals that cover, and refused where nothing overlaps."""

import numpy as np
import pytest
import torch

from boltzflow.analysis import summary, two_sided
from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.errors import LowOverlapError, NonFiniteEnergyError
from boltzflow.generators import annealed_importance, smc
from boltzflow.run import make_rng
from boltzflow.statistics import bar, mbar
from boltzflow.targets import Gaussian, Harmonic, harmonic_pair
from boltzflow.testing import assert_crooks
from boltzflow.transitions import MALA, RandomWalkMetropolis
from boltzflow.workflow import path_log_weights

LEVELS = [0.25, 0.5, 0.75, 1.0]


def exact(target, n, seed):
    """Exact samples of a target as an Ensemble without normalisation."""
    state = target.sample(n, make_rng(seed))
    return Ensemble(
        samples={"x": state["x"]},
        log_weights=np.zeros(n),
        reduced_energies=target.reduced_energy(state),
        target=target.name,
    )


def gaussian_work(sigma, n, seed, *, extra=None):
    """An ensemble and a reference whose work is N(σ²/2, σ²) both ways, as Crooks' relation has it for ΔF = 0."""
    rng = np.random.default_rng(seed)
    log_w, back = -rng.normal(0.5 * sigma**2, sigma, n), rng.normal(0.5 * sigma**2, sigma, n)
    common = {"samples": {"x": np.zeros((n, 1))}, "reduced_energies": np.zeros(n), "target": "t"}
    provenance = Provenance(extra=extra or {})
    ensemble = Ensemble(log_weights=log_w, base="b", log_z_base=0.0, provenance=provenance, **common)
    return ensemble, Ensemble(log_weights=np.zeros(n), **common), back


def test_annealed_paths_between_a_harmonic_pair_give_its_log_z_and_cover_it():
    base, target = (t.double() for t in harmonic_pair(2))
    generator = annealed_importance(base, RandomWalkMetropolis(0.5), LEVELS)
    assert_crooks(generator, target, n=5_000, rng=make_rng(1))
    n, n_runs = 200, 60
    forward = generator.sample(n * n_runs, target, seed=2, batch_size=n * n_runs)
    reference = exact(target, n * n_runs, 3)
    backward = path_log_weights(generator, reference, target, batch_size=n * n_runs, seed=4)
    runs = []
    for k in range(n_runs):
        rows = slice(k * n, (k + 1) * n)
        runs.append(two_sided(forward.select(rows), reference.select(rows), path_log_weights=backward[rows]))
    z = np.array([run.log_z.z_score(target.log_z) for run in runs])
    # 60 z-scores: mean 0 ± 0.13, spread 1 ± 0.09, 57 ± 1.7 intervals cover
    assert abs(z.mean()) < 0.45
    assert 0.7 < z.std() < 1.35
    assert sum(low < target.log_z < high for low, high in (run.log_z.interval() for run in runs)) >= 52
    assert np.mean([run.log_z.error for run in runs]) < np.mean([run.forward.error for run in runs])
    whole = two_sided(forward, reference, path_log_weights=backward)
    for estimate in (whole.log_z, whole.forward, whole.reverse):
        assert abs(estimate.z_score(target.log_z)) < 3.5
    assert 0.1 < whole.overlap < 0.5
    assert whole.n_shared == pytest.approx(whole.overlap * n * n_runs)


def test_of_two_states_mbar_is_the_same_estimate():
    ensemble, reference, back = gaussian_work(2.0, 500, 1)
    found = two_sided(ensemble, reference, path_log_weights=back)
    work = np.concatenate([-ensemble.log_weights, -back])
    other = mbar(np.stack([np.zeros(1000), work]), [500, 500])
    assert found.log_z.value == pytest.approx(-other.Delta_f[0, 1], abs=1e-6)
    assert found.log_z.error == pytest.approx(other.dDelta_f[0, 1], rel=0.05)
    assert found.overlap == pytest.approx(other.overlap[0, 1], rel=0.05)


def test_normalisations_are_those_of_the_ensemble():
    ensemble, reference, back = gaussian_work(1.0, 500, 1)
    found = two_sided(ensemble, reference, path_log_weights=back)
    shifted = two_sided(ensemble._like(log_z_base=3.0), reference, path_log_weights=back)
    assert shifted.log_z.value == pytest.approx(found.log_z.value + 3.0)
    assert shifted.reverse.value == pytest.approx(found.reverse.value + 3.0)
    relative = ensemble._like(log_z_base=None, normalisation=None)
    assert two_sided(relative, reference, path_log_weights=back).log_z.note == "relative to b"


def test_without_overlap_the_error_is_too_small_and_the_estimate_is_refused():
    bold = []
    for seed in range(60):
        ensemble, reference, back = gaussian_work(6.5, 1000, seed)
        try:
            # what the formula gives where it is not refused for less than one shared sample
            naive = bar(-ensemble.log_weights, back)
            bold.append(naive.z_score(0.0))
        except LowOverlapError:
            pass
        with pytest.raises(LowOverlapError, match=r"share \S+ effective samples.*Anneal more slowly"):
            two_sided(ensemble, reference, path_log_weights=back)
    # 95 % intervals of honest errors would cover all but 5 %
    assert np.mean(np.abs(bold) > 1.96) > 0.12
    covered = []
    for seed in range(60):
        ensemble, reference, back = gaussian_work(4.0, 1000, seed)
        covered.append(abs(two_sided(ensemble, reference, path_log_weights=back).log_z.z_score(0.0)) < 1.96)
    assert sum(covered) >= 53


def test_a_generator_that_does_not_reach_the_target_is_refused():
    base, target = Gaussian(2).double(), Harmonic(torch.full((2,), 4.0), mean=torch.full((2,), 12.0)).double()
    generator = annealed_importance(base, MALA(0.01), [0.5, 1.0])
    reference = exact(target, 400, 1)
    back = path_log_weights(generator, reference, target, seed=2)
    with pytest.raises(LowOverlapError, match="train the generator further"):
        two_sided(generator.sample(400, target, seed=3), reference, path_log_weights=back)


def test_what_does_not_fit_is_refused():
    ensemble, reference, back = gaussian_work(1.0, 50, 1)
    with pytest.raises(ValueError, match=r"one path per reference row, \(50,\), got \(49,\)"):
        two_sided(ensemble, reference, path_log_weights=back[1:])
    with pytest.raises(ValueError, match="reference has weights"):
        two_sided(ensemble, reference._like(log_weights=np.arange(50.0)), path_log_weights=back)
    with pytest.raises(ValueError, match="reweight one of them"):
        two_sided(ensemble, reference._like(target="other"), path_log_weights=back)
    back[3] = np.nan
    with pytest.raises(NonFiniteEnergyError, match="w_R are NaN or -inf"):
        two_sided(ensemble, reference, path_log_weights=back)
    base, target = (t.double() for t in harmonic_pair(2))
    resampled = smc(base, MALA(0.1), LEVELS, threshold=1.0).sample(100, target, seed=1)
    with pytest.raises(ValueError, match=r"resampled on the way.*annealed_importance"):
        two_sided(resampled, exact(target, 100, 1), path_log_weights=np.zeros(100))


def test_the_summary_has_it_where_both_sides_are_of_single_paths():
    ensemble, reference, back = gaussian_work(1.0, 500, 1)
    found = summary(ensemble, reference, path_log_weights=back)
    both = two_sided(ensemble, reference, path_log_weights=back)
    assert (found["log_z_two_sided"], found["overlap"]) == (both.log_z.value, both.overlap)
    apart, reference, back = gaussian_work(9.0, 500, 1)
    found = summary(apart, reference, path_log_weights=back)
    assert found["log_z_two_sided"] is None
    assert any("Anneal more slowly" in w for w in found["warnings"])
    ensemble, reference, back = gaussian_work(1.0, 500, 1, extra={"populations": []})
    assert "log_z_two_sided" not in summary(ensemble, reference, path_log_weights=back)
