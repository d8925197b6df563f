"""Forecasts: what is counted is right, what is measured agrees with what runs, what is said fits the size."""

import itertools
import math
import shutil
import time

import pytest
import torch
import yaml

import boltzflow.preparation.forecast as module
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import OpenMMPotential
from boltzflow.preparation.expectation import expectation
from boltzflow.preparation.forecast import forecast
from boltzflow.simulation.settings import complete, molecule_tempering, n_sweeps
from boltzflow.systems import System, load_system
from boltzflow.transitions.compiled import compiler

RECIPES = {
    "first": {
        "system": "..",
        "simulation": {"n": 64, "chains": 8, "stride": 2, "burn_in": 20, "keep": "all"},
        "generator": {"n_couplings": 2, "hidden": [8], "n_bins": 4, "n_marginal_bins": 4},
        "training": {"steps": 300, "batch_size": 16, "threads": 1},
    },
    "buffers": {
        "system": "..",
        "generator": {"n_couplings": 2, "hidden": [8], "n_bins": 4, "n_marginal_bins": 4},
        "objective": {
            "likelihood": 0.0,
            "path_forward_kl": 1.0,
            "annealing": {"method": "cooling", "hot_steps": 0, "cooling_steps": 0, "cold_stages": 7, "stage_steps": 20},
        },
        "training": {"steps": 140, "batch_size": 16, "threads": 1},
    },
    "second": {"system": "..", "simulation": {"method": "md", "n": 8, "chains": 2, "stride": 10, "burn_in": 20}},
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems") / "mine"
    (folder / "recipes").mkdir(parents=True)
    for name in ("system.xml", "topology.pdb"):
        shutil.copy(load_system("alanine_dipeptide").folder / name, folder)
    definition = {"name": "mine", "description": "a copy", "temperature": 300.0, "data": "data", "recipe": "second"}
    (folder / "system.yaml").write_text(yaml.safe_dump(definition))
    for name, recipe in RECIPES.items():
        (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return load_system(folder)


@pytest.fixture(scope="module")
def found(mine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BUDGET", 0.2)
        patch.setattr(module, "BATCHES", (1, 16))
        patch.setattr(compiler, "off", True)  # compiling takes longer than all the rest
        return forecast(mine)


def test_the_molecule_is_counted(found):
    assert (found.atoms, found.residues, found.molecules, found.dimension) == (22, 3, 1, 60)
    # C-C and C-N of ACE, N-CA, CA-CB, CA-C, C-N and N-CH3
    assert found.rotatable_torsions == 7


def test_forces_are_measured_for_every_dtype_number_of_threads_and_batch(found):
    assert found.reason == ""
    assert {t.dtype for t in found.forces} == {"float32", "float64"}
    assert {t.batch for t in found.forces} == {1, 16}
    assert {1} <= {t.threads for t in found.forces}
    assert {t.backend for t in found.forces} == {found.backend} <= {"compiled", "eager"}
    assert all(0 < t.seconds < 0.1 for t in found.forces)


def test_default_recipe_comes_first_and_is_the_next_command(found, mine):
    assert [recipe.name for recipe in found.recipes] == ["second", "buffers", "first"]
    assert found.recommended.endswith("recipes/second.yaml")


def test_predicted_simulation_takes_that_long(found, mine):
    first = found.recipes[2]
    settings = complete(mine.recipe("first").simulation, dimension=60)
    # 4 temperatures, so 64 frames are 2 records of 32 walkers
    assert n_sweeps(settings, dimension=60) == 24
    assert first.simulation_seconds == pytest.approx(24 * first.step_seconds["sweep"])
    simulation = molecule_tempering(mine, settings, seed=1)
    simulation.burn_in(2)
    stamps = [time.perf_counter()]
    simulation.burn_in(20, on_sweep=lambda: stamps.append(time.perf_counter()))
    fastest = min(b - a for a, b in itertools.pairwise(stamps))
    # the machine is shared: a factor of two belongs to a quiet one
    assert 0.2 < first.step_seconds["sweep"] / fastest < 20


def test_training_and_dynamics_are_predicted_from_their_steps(found):
    second, _, first = found.recipes
    assert first.training_seconds == pytest.approx(300 * first.step_seconds["training step"])
    assert second.simulation_seconds == pytest.approx(2 * (20 + 4 * 10) * second.step_seconds["MD step"])
    assert second.training_seconds is None


def test_the_time_of_filling_buffers_is_in_the_forecast(found, mine):
    buffers, first = found.recipes[1:]
    rows = 7 * mine.recipe("buffers").objective.annealing.buffer_size
    filling = buffers.training_seconds - 140 * buffers.step_seconds["training step"]
    # each of its rows costs a sample and an energy; a whole buffer is never filled for a forecast
    assert rows == 1_400_000
    assert 1e-6 * rows < filling < 1e-2 * rows
    assert found.seconds < 0.2 * filling or found.seconds < 120
    assert first.training_seconds == pytest.approx(300 * first.step_seconds["training step"])


def test_sizes_are_those_of_the_files(found):
    second, _, first = found.recipes
    assert first.file_bytes == 64 * (12 * 22 + 40)
    assert second.file_bytes == 8 * (12 * 22 + 40)
    assert first.checkpoint_bytes > 16 * 1000
    assert found.conformation_bytes == 5 * 66 * 8


def test_number_of_threads_is_left_as_it_was(found):
    assert torch.get_num_threads() == 1


def test_unknown_forces_are_timed_in_openmm_with_the_reason(mine, monkeypatch):
    def refuse(_):
        raise UnsupportedForceError("CustomHbondForce is not known")

    monkeypatch.setattr(System, "potential", property(refuse))
    monkeypatch.setattr(module, "BUDGET", 0.1)
    monkeypatch.setattr(OpenMMPotential, "_faster", lambda *_: "Reference")
    monkeypatch.setattr(module, "_md_step", lambda _: 1e-3)
    monkeypatch.setattr(System, "recipes", property(lambda _: []))
    result = forecast(mine)
    assert result.backend == "OpenMM Reference"
    assert "CustomHbondForce" in result.reason
    assert [recipe.name for recipe in result.recipes] == ["molecular_dynamics"]
    assert "dynamics" in result.expectation[0]


@pytest.mark.parametrize("dimension", [20, 90, 180, 900])
def test_expectations_fit_the_size(dimension):
    text = " ".join(expectation(dimension))
    assert ("one effective sample" in text) == (dimension > 250)
    assert ("92%" in text) == (dimension <= 250)  # what was measured says nothing about larger ones
    if 60 < dimension <= 250:
        assert f"{math.exp(math.log(0.92) * dimension / 60):.0%} in {dimension} dimensions" in text
    assert "--moves" in text
    assert ("they are for small molecules" in text) == (dimension > 250)


def test_expected_acceptance_of_moves_is_that_of_gaussian_log_weights():
    rng = torch.Generator().manual_seed(1)
    accepted = []
    for ess in (0.47**1.5, 0.92**1.5):
        sigma = math.sqrt(-math.log(ess))
        # log-weights under the target have the mean σ²/2, under the model −σ²/2
        own, drawn = (s * sigma**2 / 2 + sigma * torch.randn(400_000, generator=rng) for s in (1, -1))
        accepted.append(f"{float((drawn - own).clamp(max=0).exp().mean()):.0%}")
    assert f"{accepted[0]} to {accepted[1]} in 90 dimensions" in " ".join(expectation(90))
