"""Recipes: chosen by size, valid as written for a folder anywhere, and consistent between their stages."""

import itertools
import shutil

import pytest
import torch
import yaml

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators import Generator
from boltzflow.io.config import SimulationConfig, load_config
from boltzflow.objectives import build_objective
from boltzflow.preparation.recipes import recipes_for
from boltzflow.simulation.settings import complete, forces_per_sweep, ladder, n_sweeps, records
from boltzflow.systems import System, load_system
from boltzflow.targets import Gaussian
from boltzflow.transitions.affine import Affine


@pytest.fixture
def system(tmp_path):
    """The shipped molecule as a folder of a user, with its recipes written into it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shipped = load_system("alanine_dipeptide")
    for name in ("system.xml", "topology.pdb"):
        shutil.copy(shipped.folder / name, folder)
    definition = {"name": "mine", "description": "a copy", "temperature": 310.0, "data": "data"}
    (folder / "system.yaml").write_text(yaml.safe_dump(definition))
    return load_system(folder)


def written(system):
    (system.folder / "recipes").mkdir()
    for name, text in recipes_for(system).items():
        (system.folder / "recipes" / f"{name}.yaml").write_text(text)
    return {name: system.recipe(name) for name in system.recipes}


def of_dimension(monkeypatch, system, dimension):
    monkeypatch.setattr(System, "dimension", property(lambda _: dimension))
    return recipes_for(system)


def test_small_molecules_get_two_stages_of_one_flow(system, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nothing may depend on it
    assert next(iter(recipes_for(system))) == "likelihood"
    found = written(system)
    first, second = found["likelihood"], found["self_weighted"]
    assert first.generator == second.generator
    assert first.objective.likelihood > 0
    assert first.system == second.system == str(system.folder)
    assert first.objective.data == second.objective.data == str(system.folder / "data" / "reference.h5")
    assert second.objective.likelihood == 0
    assert min(second.objective.coverage, second.objective.self_forward_kl) > 0
    assert "simulation" in first.model_fields_set
    assert first.simulation.n >= 100_000
    assert found["parallel_tempering"].simulation.keep == "all"


def test_comments_hold_the_commands_with_the_name_of_the_folder(system):
    texts = recipes_for(system)
    assert "#   boltzflow simulate mine/recipes/likelihood.yaml\n" in texts["likelihood"]
    assert "#   boltzflow train mine/recipes/likelihood.yaml\n" in texts["likelihood"]
    assert "--initial runs/mine-likelihood/checkpoint.pt" in texts["self_weighted"]
    assert "--moves runs/mine-likelihood -o ensemble.h5\n" in texts["parallel_tempering"]
    for text in texts.values():
        assert max(map(len, text.splitlines())) <= 120
        assert "Cost: " in text


TRAINED = ["likelihood", "self_weighted", "parallel_tempering"]


def test_two_stages_of_one_flow_need_the_energy_alone(system):
    found, generator = (
        written(system),
        Generator(Gaussian(1), [Affine(torch.zeros(1), torch.ones(1), field="x", learnable=True)]),
    )
    first, second = found["energy_only_1_cooling"], found["energy_only"]
    assert first.generator == second.generator
    for config in (first, second):
        assert config.objective.likelihood == config.objective.coverage == 0
        assert "simulation" not in config.model_fields_set
        build_objective(generator, Gaussian(1), config.objective)
    # it cools from four times the temperature to the system's own, and stays there for a while
    annealing, training = first.objective.annealing, first.training
    assert (annealing.method, annealing.hottest, annealing.n_buffers) == ("cooling", 4.0, 0)
    assert 0 < annealing.hot_steps < annealing.hot_steps + annealing.cooling_steps < 0.7 * training.steps
    # every buffer is used to its end
    annealing, training = second.objective.annealing, second.training
    assert annealing.n_buffers * annealing.stage_steps == training.steps
    assert annealing.chi_squared > 0.0 == annealing.clip_fraction
    texts = recipes_for(system)
    evaluations = first.training.steps * first.training.reverse_batch_size
    assert f"{evaluations:.1e}" in texts["energy_only_1_cooling"]
    assert f"{annealing.n_buffers * annealing.buffer_size:.1e}" in texts["energy_only"]
    assert "--initial runs/mine-energy_only_1_cooling/checkpoint.pt" in texts["energy_only"]


@pytest.mark.parametrize(
    ("dimension", "names"),
    [
        (100, [*TRAINED[:2], "energy_only_1_cooling", "energy_only", "parallel_tempering"]),
        (101, TRAINED),
        (250, TRAINED),
        (251, ["parallel_tempering"]),
        (2000, ["parallel_tempering"]),
    ],
)
def test_size_decides(system, monkeypatch, dimension, names):
    assert list(of_dimension(monkeypatch, system, dimension)) == names


def test_medium_flows_are_larger_and_train_longer(system, monkeypatch):
    small, medium = (yaml.safe_load(of_dimension(monkeypatch, system, d)["likelihood"]) for d in (60, 200))
    assert medium["generator"]["n_couplings"] > small["generator"]["n_couplings"]
    assert medium["training"]["steps"] > small["training"]["steps"]


def test_forces_unknown_to_torch_leave_molecular_dynamics(system, monkeypatch):
    def refuse(_):
        raise UnsupportedForceError("CustomHbondForce (force 4)\nis not known")

    monkeypatch.setattr(System, "potential", property(refuse))
    found = recipes_for(system)
    assert list(found) == ["molecular_dynamics"]
    assert "CustomHbondForce" in found["molecular_dynamics"]
    assert yaml.safe_load(found["molecular_dynamics"])["simulation"]["method"] == "md"


def test_stated_cost_is_what_a_simulation_evaluates(system):
    config = written(system)["likelihood"].simulation
    settings = complete(config, dimension=system.dimension)
    # 4 temperatures; 5 leapfrog steps, 5 rotations about soft bonds and 1 about any per sweep
    assert len(ladder(300.0, settings.max_temperature, dimension=60)) == 4
    assert forces_per_sweep(system, settings) == settings.chains * 4 * 11
    sweeps = n_sweeps(settings, dimension=60)
    assert sweeps == settings.burn_in + settings.stride * settings.n // settings.chains
    assert f"{sweeps * forces_per_sweep(system, settings):.1e}" in recipes_for(system)["likelihood"]


def test_large_simulations_are_planned_by_sweeps_and_keep_what_was_given():
    for keep, dimension in (("cold", 900), ("all", 900), ("all", 3000)):
        settings = complete(SimulationConfig(keep=keep), dimension=dimension)
        sweeps = settings.stride * records(settings, dimension=dimension)
        assert 4000 <= sweeps <= 5000
        assert settings.chains == (16 if dimension == 900 else 10)
    given = complete(SimulationConfig(n=100, chains=4, stride=7, burn_in=3, keep="all"), dimension=900)
    assert (given.n, given.chains, given.stride, given.burn_in) == (100, 4, 7, 3)


def test_ladder_has_one_temperature_at_least_and_ends_where_it_should():
    assert ladder(300.0, 1.0, dimension=60) == [300.0]
    temperatures = ladder(300.0, 1.8, dimension=900)
    assert temperatures[0] == 300.0
    assert temperatures[-1] == pytest.approx(540.0)
    assert all(b / a < 1.07 for a, b in itertools.pairwise(temperatures))


def test_recipes_load_from_any_folder(system, tmp_path):
    written(system)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.move(system.folder, moved)
    config = load_config(moved / "recipes" / "likelihood.yaml")
    assert config.system == str(moved)
