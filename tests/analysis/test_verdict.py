"""Verdicts: what makes weights, chains and references good, doubtful or bad, in words."""

import numpy as np
import pytest

from boltzflow.analysis.summary import chain_series, summary
from boltzflow.analysis.verdict import verdict
from boltzflow.ensemble import Ensemble, Provenance

GOOD = {
    "n": 1000,
    "ess": 900.0,
    "ess_fraction": 0.9,
    "equal_weights": False,
    "pareto_k": 0.3,
    "n_failed": 0,
    "n_nonfinite": 0,
    "interrupted": False,
    "forward_ess_fraction": 0.85,
}
CHAINS = {
    "n": 1000,
    "ess": 1000.0,
    "ess_fraction": 1.0,
    "equal_weights": True,
    "pareto_k": None,
    "n_failed": 0,
    "n_nonfinite": 0,
    "interrupted": False,
    "n_chains": 8,
    "r_hat": 1.003,
    "n_effective": 700.0,
    "bulk_ess": 650.0,
    "tail_ess": 600.0,
    "round_trips": 50,
}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "good", "reliable: weights are well behaved, and the generator covers the reference"),
        ({"pareto_k": 0.71}, "bad", "not reliable: a few samples carry the weight"),
        ({"pareto_k": None}, "caution", "too few distinct weights"),
        ({"ess": 40.0}, "caution", "fewer than 100 effective samples"),
        ({"ess": 4.0}, "bad", "fewer than 10 effective samples"),
        ({"ess": None, "ess_fraction": None, "pareto_k": None}, "bad", "no sample has a weight"),
        ({"forward_ess_fraction": 0.05}, "bad", "misses part of the reference"),
        ({"forward_ess_fraction": 0.3}, "caution", "visits too rarely"),
        ({"forward_ess_fraction": None}, "caution", "weights are well behaved; modes that the generator misses"),
        ({"forward_ess_fraction": None, "mean_energy_z": 0.5}, "good", "averages agree with the reference"),
        ({"mean_energy_z": -6.0}, "bad", "differ by 6.0 standard errors"),
        ({"n_failed": 5}, "caution", "NaN or inf in 5 of 1000 rows"),
        ({"n_failed": 50}, "bad", "NaN or inf in 50 of 1000 rows"),
        ({"interrupted": True}, "good", "reliable"),
    ],
)
def test_weights_are_judged_by_their_worst_check(changes, level, words):
    found = verdict({**GOOD, **changes})
    assert found.level == level
    assert words in str(found)


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "good", "reliable: unweighted samples of chains that agree"),
        ({"r_hat": 1.05}, "caution", "R-hat > 1.01"),
        ({"r_hat": 1.3}, "bad", "have not mixed"),
        ({"r_hat": None}, "caution", "too few frames"),
        ({"n_effective": 5.0}, "bad", "fewer than 10 independent frames"),
        ({"tail_ess": 40.0}, "caution", "fewer than 100 for the centre or the 5 % and 95 %"),
        ({"bulk_ess": None, "tail_ess": None}, "good", "chains that agree"),  # of files from before they were recorded
        ({"n_chains": 1}, "caution", "one chain can only be compared with itself"),
        ({"round_trips": 3}, "caution", "round trip"),
    ],
)
def test_chains_are_judged_by_mixing(changes, level, words):
    found = verdict({**CHAINS, **changes})
    assert found.level == level
    assert words in str(found)


def test_what_decides_nothing_is_noted():
    checks = {check.name: check for check in verdict({**GOOD, "interrupted": True, "n_nonfinite": 7}).checks}
    assert checks["interrupted"].level == checks["infinite energies"].level == "note"
    assert checks["infinite energies"].value == "7"


@pytest.fixture
def chains():
    """Four chains of 100 frames, shuffled, one of them elsewhere by `shift`."""

    def make(shift, **extra):
        rng = np.random.default_rng(0)
        u = rng.normal(size=(4, 100))
        u[0] += shift
        order = rng.permutation(400)
        return Ensemble(
            samples={"x": u.reshape(400, 1)[order]},
            log_weights=np.zeros(400),
            reduced_energies=u.ravel()[order],
            target="toy",
            chain=np.repeat(np.arange(4), 100)[order],
            frame=np.tile(np.arange(100), 4)[order],
            provenance=Provenance(extra=extra),
        )

    return make


def test_chains_are_compared_in_the_order_of_time(chains):
    ensemble = chains(0.0)
    series = chain_series(ensemble, ensemble.frame.astype(float))
    assert len(series) == 4
    assert all(np.array_equal(s, np.arange(100)) for s in series)
    assert str(verdict(summary(ensemble))).startswith("reliable: unweighted samples of chains")
    found = summary(chains(3.0, simulation={"round_trips": 2}))
    assert found["n_chains"] == 4
    assert found["round_trips"] == 2
    assert verdict(found).level == "bad"


def test_rows_that_are_not_finite_do_not_spoil_the_chains(chains):
    ensemble = chains(0.0)
    log_w, u = ensemble.log_weights.copy(), ensemble.reduced_energies.copy()
    log_w[:3], u[:3] = -np.inf, np.inf
    found = summary(ensemble._like(log_weights=log_w, reduced_energies=u))
    assert found["r_hat"] < 1.05
    assert found["equal_weights"] is True
    assert verdict(found).level != "bad"


def test_samples_without_chains_have_no_series(gaussian):
    with pytest.raises(ValueError, match="not frames of chains"):
        chain_series(gaussian(10, 0), np.zeros(10))
