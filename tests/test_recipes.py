"""Every recipe that ships, from its first command to the report, with sizes of nearly nothing.

A recipe that is a stage of another one goes as far as the analysis, and its successor to the report.
"""

import json
import os
import re

import pytest
from typer.testing import CliRunner

from boltzflow.cli import analyze, cite, report, sample, simulate, train  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.systems import list_systems, load_system
from boltzflow.transitions.compiled import uncompiled

# of several systems with the same recipes one is run to the report, the others to the analysis
SAME = {
    *("ace_aaa_nme", "ace_aaaaa_nme", "alanine_dipeptide_ff14sb", "alanine_dipeptide_ff99sbildn", "chignolin", "lj13"),
    *("lj55", "lj55_shallow", "hexaalanine", "image_chart", "image_face", "tip4pew_box", "trp_cage"),
}
RECIPES = [(name, recipe) for name in list_systems() for recipe in load_system(name).recipes]
SMALL = {
    "generator.hidden": "[4]",
    "generator.n_couplings": 2,
    "generator.n_bins": 4,
    "generator.n_marginal_bins": 4,
    "training.steps": 4,
    "training.batch_size": 16,
    "training.reverse_batch_size": 16,
    "training.log_every": 1,
    "training.checkpoint_every": 4,
    "sampling.batch_size": 20,
}
BLOCKS = {"n_blocks": 2, "n_layers": 1, "width": 8, "head_width": 8}
STAGES = {"hot_steps": 1, "cooling_steps": 1, "cold_stages": 1, "stages": 1, "stage_steps": 1, "buffer_size": 40}
PILOT = {"cess": 0.2, "pilot_size": 100, "pilot_rounds": 3}
SIMULATION = ("-n", 24, "--burn-in", 3, "--chains", 2, "--stride", 1, "--seed", 1)


def run(*words):
    result = CliRunner().invoke(app, ["--quiet", *map(str, words)])
    assert result.exit_code == 0, f"{' '.join(map(str, words))}: {result.output}"
    return result.stdout


def small(config):
    """--set of what makes a run of this configuration small."""
    found = dict(SMALL)
    if config.generator.family == "stochastic_flow":
        found["generator.n_couplings"] = 2 * config.generator.stochastic.n_transforms
        found["generator.stochastic.n_steps"] = 2
    if config.generator.family == "autoregressive_flow":
        found |= {f"generator.autoregressive.{key}": value for key, value in BLOCKS.items()}
    if config.generator.continuous.n_moves > 1:
        found |= {"generator.continuous.n_moves": 2, "generator.continuous.n_steps": 2}
    if config.generator.is_piloted:
        found |= {f"generator.annealing.{key}": value for key, value in PILOT.items()}
        if config.generator.annealing.base not in (None, *list_systems()):
            found["generator.annealing.base"] = simulated(f"{config.system}@1")
        if config.generator.annealing.maps != "none":
            found |= {"generator.annealing.map_rows": 200, "generator.annealing.map_basis": 3}
    if config.objective.annealing.method != "none":
        found |= {f"objective.annealing.{key}": value for key, value in STAGES.items()}
    if config.training.natural_gradient.rows:
        found |= {"training.natural_gradient.rows": 16, "training.natural_gradient.batch_size": 16}
        # steps of a model that is as good as untrained, in the metric of 16 samples
        found["training.learning_rate"] = 1e-3
    if config.objective.data is not None:
        found["objective.data"] = simulated(config.system)
    return [word for key, value in found.items() for word in ("--set", f"{key}={value}")]


def simulated(what):
    """An ensemble file by `boltzflow simulate`, made once."""
    system = load_system(what.removesuffix(".yaml").split("/systems/")[-1].split("/")[0])
    output = f"{system.name}-{what.replace('/', '_')[-40:]}.h5"
    if not os.path.exists(output):
        narrow = () if system.temperature is not None and system.box is not None else ("--max-temperature", 1.1)
        run("simulate", what, *SIMULATION, *narrow, "-o", output)
    return output


def trained(system, recipe):
    """The run folder of a recipe, after the stages that its header names."""
    folder = f"runs/{system.name}-{recipe}"
    if os.path.exists(folder):
        return folder
    file = system.folder / "recipes" / f"{recipe}.yaml"
    initial = re.search(r"--initial runs/(\S+)/checkpoint\.pt", header(file))
    words = []
    if initial is not None:
        stage = initial.group(1).removeprefix(f"{system.name}-")
        words = ["--initial", f"{trained(system, stage)}/checkpoint.pt"] if stage != recipe else []
    run("train", file, "-o", folder, *words, *small(system.recipe(recipe)))
    return folder


def header(file):
    """The comment at the top of a recipe, as one line per command."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def is_stage(system, recipe):
    """Whether another recipe of the system starts from the checkpoint of this one."""
    start = re.compile(rf"--initial runs/({system.name}-)?{recipe}/checkpoint\.pt")
    others = [other for other in system.recipes if other != recipe]
    return any(start.search(header(system.folder / "recipes" / f"{other}.yaml")) for other in others)


@pytest.fixture(scope="module", autouse=True)
def work(tmp_path_factory):
    """A working folder of all recipes; splines run eagerly, which starts faster."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("recipes"))
    with uncompiled():
        yield
    os.chdir(before)


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_recipe_runs_to_its_report(name, recipe):
    system = load_system(name)
    config = system.recipe(recipe)
    is_simulation = "simulation" in config.model_fields_set and "objective" not in config.model_fields_set
    if is_simulation:
        ensemble = simulated(str(system.folder / "recipes" / f"{recipe}.yaml"))
    else:
        ensemble, folder = f"{name}-{recipe}.h5", trained(system, recipe)
        # as good as untrained, a flow on Cartesian atoms makes no molecule
        if (name in SAME and is_stage(system, recipe)) or config.generator.family == "autoregressive_flow":
            return
        run("sample", folder, "-n", 60, "--seed", 1, "-o", ensemble)
    found = json.loads(run("analyze", ensemble, "--reference-rows", 100, "--json"))
    assert found["n"] >= 20
    assert found["n_energy"] >= found["n"]
    assert found["n_failed"] == 0
    assert "@misc{boltzflow" in run("cite", ensemble)
    if name in SAME or is_stage(system, recipe):
        return
    run("report", ensemble, "--reference-rows", 100, "-o", "report.html")
    with open("report.html", encoding="utf-8") as file:
        page = file.read()
    assert page.count("<svg") >= 2
    text = re.sub(r"<(style|script|svg).*?</\1>", " ", page, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", " ", text)
    assert not re.search(r"\bnan\b|±\s*0(?![.\d])|\bNone\b", text), text
    assert system.description[:30] in text
