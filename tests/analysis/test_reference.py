"""Comparison with reference samples, and the summary that `analyze --json` prints."""

import json

import numpy as np
import pytest

from boltzflow.analysis.reference import compare
from boltzflow.analysis.summary import summary
from boltzflow.ensemble import Ensemble
from boltzflow.errors import NonFiniteEnergyError

SPREAD = 1.3
LOG_Z = 0.5 * np.log(2 * np.pi)
STABLE_KEYS = {
    *("system", "n", "ess", "ess_fraction", "pareto_k", "log_z", "log_z_error", "device", "seed"),
    *("mean_reduced_energy", "mean_reduced_energy_error", "n_energy", "n_force", "n_nonfinite", "n_failed", "seconds"),
}


def reference(n=20_000, seed=9, **changes):
    """Exact samples of the target and the weights p/q · Z of their (trivial) paths."""
    x = np.random.default_rng(seed).normal(size=(n, 1))
    e = Ensemble(
        samples={"x": x},
        log_weights=np.zeros(n),
        reduced_energies=0.5 * x[:, 0] ** 2,
        target="harmonic",
        **changes,
    )
    return e, 0.5 * (x[:, 0] / SPREAD) ** 2 - 0.5 * x[:, 0] ** 2


def test_bounds_enclose_log_z_by_the_divergences(gaussian):
    ref, paths = reference()
    found = compare(gaussian(20_000, 0, spread=SPREAD), ref, path_log_weights=paths)
    # KL(p‖q) and KL(q‖p) of two Gaussians of widths 1 and s
    forward = np.log(SPREAD) + 0.5 / SPREAD**2 - 0.5
    backward = -np.log(SPREAD) + 0.5 * SPREAD**2 - 0.5
    assert abs(found.eubo.z_score(LOG_Z + forward)) < 4
    assert abs(found.elbo.z_score(LOG_Z - backward)) < 4
    assert abs(found.gap.z_score(forward + backward)) < 4
    # E_p[w] E_p[1/w] with E_p[w] = s² / sqrt(2 s² − 1) up to Z
    assert found.forward_ess_fraction == pytest.approx(np.sqrt(2 * SPREAD**2 - 1) / SPREAD**2, rel=0.02)


def test_relative_bounds_say_so(gaussian):
    ref, paths = reference()
    found = compare(gaussian(2000, 0, log_z_base=None), ref, path_log_weights=paths)
    assert found.eubo.note == found.elbo.note == "relative to wide"


def test_correlated_references_have_larger_errors(gaussian):
    ref, paths = reference(2000)
    order = np.argsort(ref.samples["x"][:, 0])
    slow = Ensemble(
        samples={"x": ref.samples["x"][order]},
        log_weights=np.zeros(2000),
        reduced_energies=ref.reduced_energies[order],
        target="harmonic",
        chain=np.zeros(2000, dtype=int),
    )
    ensemble = gaussian(2000, 0)
    correlated = compare(ensemble, slow, path_log_weights=paths[order]).eubo
    assert correlated.error > 5 * compare(ensemble, ref, path_log_weights=paths).eubo.error


@pytest.mark.parametrize("bad", [-np.inf, np.inf, np.nan])
def test_reference_rows_without_a_path_are_counted_or_raised(gaussian, bad):
    ref, paths = reference(2000)
    broken = paths.copy()
    broken[:10] = bad
    found = compare(gaussian(2000, 0), ref, path_log_weights=broken)
    assert found.n_failed == 10
    assert "10 reference rows" in str(found.eubo)
    assert found.eubo.value == pytest.approx(paths[10:].mean() + gaussian(2000, 0).log_z_base)
    assert summary(gaussian(2000, 0), ref, path_log_weights=broken)["n_failed_reference"] == 10
    broken[:100] = bad
    with pytest.raises(NonFiniteEnergyError, match="100 of 2000 reference rows have no path"):
        compare(gaussian(2000, 0), ref, path_log_weights=broken)


def test_references_of_another_target_are_refused(gaussian):
    ref, paths = reference(100)
    with pytest.raises(ValueError, match="is of 'other'"):
        compare(gaussian(100, 0, target="other"), ref, path_log_weights=paths)
    with pytest.raises(ValueError, match="reweight one"):
        compare(gaussian(100, 0, context={"temperature": 300.0}), ref, path_log_weights=paths)
    with pytest.raises(ValueError, match="one path per reference row"):
        compare(gaussian(100, 0), ref, path_log_weights=paths[:5])


def test_summary_has_the_stable_keys(dipeptide):
    found = json.loads(json.dumps(summary(dipeptide), allow_nan=False))
    assert set(found) >= STABLE_KEYS
    assert found["system"] == "alanine_dipeptide"
    assert (found["n"], found["n_energy"], found["n_force"], found["seed"]) == (200, 200, 3, 1)
    assert found["log_z"] == dipeptide.log_z().value
    assert found["log_z_error"] == dipeptide.log_z().error
    assert found["ess_fraction"] == pytest.approx(dipeptide.ess() / 200)


def test_summary_with_a_reference(gaussian):
    ref, paths = reference()
    found = summary(gaussian(5000, 0), ref, path_log_weights=paths)
    assert found["elbo"] < found["log_z"] < found["eubo"]
    assert 0 < found["forward_ess_fraction"] < 1
    assert found["eubo_minus_elbo"] == pytest.approx(found["eubo"] - found["elbo"])
    with pytest.raises(ValueError, match="trace_back"):
        summary(gaussian(100, 0), ref)


def test_summary_says_why_a_number_is_missing(gaussian):
    md, _ = reference(500)
    found = json.loads(json.dumps(summary(md), allow_nan=False))
    assert found["log_z"] is None
    assert found["pareto_k"] is None
    assert any("log_z" in w and "no normalisation" in w for w in found["warnings"])
    lost = summary(gaussian(50, 0, log_weights=np.full(50, -np.inf)))
    assert lost["ess"] is lost["ess_fraction"] is lost["mean_reduced_energy"] is None
    assert any("all 50 are -inf" in w for w in lost["warnings"])
    zero = summary(gaussian(50, 0, log_weights=np.r_[-np.inf, np.zeros(49)]))
    assert zero["elbo"] is None
    assert zero["log_z"] is not None
