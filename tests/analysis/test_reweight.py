"""Reweighting between harmonic targets: differences by z-score, normalisation, refusals."""

import numpy as np
import pytest
import torch

from boltzflow.analysis.reweight import reweight
from boltzflow.ensemble import Ensemble
from boltzflow.errors import LowOverlapError
from boltzflow.state import Space
from boltzflow.targets.target import Target


class Harmonic(Target):
    """u = k (x − b)²/2; NaN above `broken`."""

    def __init__(self, stiffness, centre=0.0, broken=np.inf):
        super().__init__({"x": Space("line", (1,))}, name=f"harmonic {stiffness}")
        self.stiffness, self.centre, self.broken = stiffness, centre, broken

    def reduced_energy(self, state, context=None):
        x = state["x"][:, 0]
        scale = 1.0 if context is None else context["scale"]
        return torch.where(x > self.broken, torch.nan, scale * 0.5 * self.stiffness * (x - self.centre) ** 2)


def test_absolute_normalisation_moves_to_the_new_target(gaussian):
    old = gaussian(20_000, 0)
    new = reweight(old, Harmonic(2.0, 0.5))
    assert abs(new.log_z().z_score(0.5 * np.log(np.pi))) < 4
    assert abs(new.expectation("x").z_score(0.5)) < 4
    assert new.normalisation == "absolute"
    assert new.target == "harmonic 2.0"
    assert new.provenance.n_energy == 20_000
    assert new.provenance.extra["reweighted_from"] == "harmonic"
    assert np.array_equal(new.samples["x"], old.samples["x"])


def test_simulation_frames_give_a_difference_to_their_target(gaussian):
    x = np.random.default_rng(1).normal(size=(20_000, 1))
    md = Ensemble(samples={"x": x}, log_weights=np.zeros(20_000), reduced_energies=x[:, 0] ** 2 / 2, target="md")
    new = reweight(md, Harmonic(2.0))
    assert new.normalisation == "relative to md"
    assert abs(new.log_z().z_score(-0.5 * np.log(2))) < 4
    # weights of unknown scale stay without normalisation
    unknown = gaussian(2000, 2, normalisation="none")
    assert reweight(unknown, Harmonic(2.0)).normalisation == "none"


def test_there_and_back_is_the_identity(gaussian):
    old = gaussian(3000, 3)
    back = reweight(reweight(old, Harmonic(1.5)), Harmonic(1.0))
    assert back.log_weights == pytest.approx(old.log_weights, abs=1e-12)


def test_context_goes_to_the_target_and_into_the_ensemble(gaussian):
    old = gaussian(3000, 3)
    new = reweight(old, Harmonic(1.0), context={"scale": 1.5})
    assert new.log_weights == pytest.approx(reweight(old, Harmonic(1.5)).log_weights)
    assert new.context == {"scale": 1.5}


def test_broken_energies_get_weight_zero_and_are_counted(gaussian):
    old = gaussian(3000, 3)
    new = reweight(old, Harmonic(1.0, broken=1.0))
    lost = int(np.sum(old.samples["x"] > 1.0))
    assert new.provenance.n_nonfinite == lost > 0
    assert np.sum(new.log_weights == -np.inf) == lost


def test_reweighting_too_far_is_refused(gaussian):
    old = gaussian(1000, 0)
    with pytest.raises(LowOverlapError, match="effective samples of 1000"):
        reweight(old, Harmonic(1.0, centre=40.0))
    with pytest.raises(LowOverlapError, match="1000 have no finite energy"):
        reweight(old, Harmonic(1.0, broken=-100.0))


def test_targets_of_other_fields_are_named(dipeptide):
    with pytest.raises(ValueError, match=r"reads the fields \['x'\]"):
        reweight(dipeptide, Harmonic(1.0))
