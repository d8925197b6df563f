"""Annealed samplers from the command line: the pilot as a checkpoint, what it costs, and what is refused."""

import json

import pytest
import torch
from typer.testing import CliRunner

from boltzflow import cite
from boltzflow.cli import analyze, sample, train  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.ensemble import Ensemble
from boltzflow.errors import AnnealingError, CheckpointMismatchError, FormatError, UnsupportedForceError
from boltzflow.generators import build_generator
from boltzflow.io import load_checkpoint, parse_config
from boltzflow.pilot import finished_pilot, pilot
from boltzflow.run import Ledger
from boltzflow.systems import load_system
from boltzflow.transitions import EulerFlow
from boltzflow.workflow import train as train_in_folder

RUN = """
system: snf_double_well
generator:
  family: FAMILY
  annealing: {base_scale: 2.0, n_leapfrog: 3, pilot_size: 200, cess: 0.7}
training: {seed: 1, dtype: float64}
sampling: {n: 400, batch_size: 20, dtype: float64}
"""


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def config(family="smc", system="snf_double_well", **annealing):
    settings = {"base_scale": 2.0, "n_leapfrog": 3, "pilot_size": 200, "cess": 0.7} | annealing
    generator = {"family": family, "annealing": settings}
    return parse_config({"system": system, "generator": generator, "training": {"seed": 1, "dtype": "float64"}})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sampling_a_run_file_makes_its_pilot_once(here):
    (here / "wells.yaml").write_text(RUN.replace("FAMILY", "smc"))
    assert run("sample", "wells.yaml", "-o", "a.h5", "--seed", 3).exit_code == 0
    checkpoint = load_checkpoint(here / "runs/wells/checkpoint.pt")
    levels = checkpoint.config.generator.annealing.levels
    assert levels[-1] == 1.0
    lines = [json.loads(line) for line in (here / "runs/wells/metrics.jsonl").read_text().splitlines()]
    assert [line["level"] for line in lines] == list(levels)
    assert Ledger.from_dict(checkpoint.cost["ledger"]).n_force("snf_double_well") > 200 * len(levels)
    written = (here / "runs/wells/checkpoint.pt").stat().st_mtime_ns
    assert run("sample", "runs/wells", "-o", "b.h5", "--seed", 3).exit_code == 0
    assert run("sample", "wells.yaml", "-o", "c.h5", "--seed", 3).exit_code == 0
    assert (here / "runs/wells/checkpoint.pt").stat().st_mtime_ns == written
    a, b, c = (Ensemble.load(here / f"{name}.h5") for name in "abc")
    assert (a.log_weights == b.log_weights).all()
    assert (a.log_weights == c.log_weights).all()
    assert abs(a.log_z().z_score(10.293480)) < 4
    assert len(a.provenance.extra["populations"]) == 20
    assert "zhou2016" in cite(a)
    found = run("analyze", "a.h5")
    assert found.exit_code == 0
    assert "ESS (Kish)" in found.output
    assert "log Z, exact  10.2935" in found.output
    steps = [step["step_sizes"] for step in lines]
    generator = load_system("snf_double_well").load_generator(checkpoint=here / "runs/wells/checkpoint.pt")
    moves = [t for t in generator.transitions if hasattr(t, "step_size")]
    assert [[pytest.approx(float(m.step_size), rel=1e-6)] for m in moves] == steps


def test_independent_paths_are_compared_with_the_exact_reference(here):
    (here / "ais.yaml").write_text(RUN.replace("FAMILY", "annealed_importance"))
    trained = run("train", "ais.yaml", "--set", "generator.annealing.cess=0.9")
    assert trained.exit_code == 0
    assert "levels, found in" in trained.output
    assert run("sample", "runs/ais", "-n", 500, "-o", "a.h5", "--seed", 3).exit_code == 0
    found = json.loads(run("analyze", "a.h5", "--json").stdout)
    assert abs(found["log_z_two_sided"] - 10.293480) < 4 * found["log_z_two_sided_error"]
    assert found["elbo"] < 10.293480 < found["eubo"]
    assert 0.1 < found["overlap"] < 0.5


@pytest.mark.parametrize(("name", "log_z"), [("many_well_32", 164.695675), ("gmm40", 0.0)])
def test_recipes_of_the_benchmarks_leave_the_schedule_to_the_pilot(name, log_z):
    system = load_system(name)
    recipe = system.recipe("smc")
    assert (recipe.system, recipe.generator.annealing.levels) == (name, None)
    assert system.target.log_z == pytest.approx(log_z, abs=1e-5)
    assert [t.level for t in build_generator(system, recipe.generator).transitions] == [1.0]
    assert "zhou2016" in cite(recipe)
    assert "loshchilov2019" not in cite(recipe)
    text = (system.folder / "README.md").read_text(encoding="utf-8")
    assert all(f"recipes/{r}.yaml" in text for r in system.recipes)


def test_given_levels_are_kept(here):
    given = pilot(config(levels=(0.5, 1.0)), here / "run")
    assert [t.level for t in given.transitions] == [0.5, 0.5, 1.0]
    again = pilot(config(levels=(0.5, 1.0)), here / "run", resume=True)
    for a, b in zip(given.state_dict().values(), again.state_dict().values(), strict=True):
        assert a == b


def test_a_folder_of_another_pilot_is_not_taken_for_this_one(here):
    pilot(config(cess=0.5), here / "run")
    assert finished_pilot(config(cess=0.5), here / "run")
    with pytest.raises(
        CheckpointMismatchError, match=r"another configuration \(generator\.annealing\.cess: 0\.5 there"
    ):
        finished_pilot(config(cess=0.6), here / "run")
    with pytest.raises(FileExistsError, match="holds a run already"):
        pilot(config(cess=0.5), here / "run")
    with pytest.raises(FormatError, match="learns nothing"):
        train_in_folder(config(cess=0.5), here / "other", initial=here / "run/checkpoint.pt")
    (here / "run/run.json").write_text("{")
    with pytest.raises(FormatError, match=r"run\.json is missing or damaged"):
        finished_pilot(config(cess=0.5), here / "run")


def test_schedules_and_systems_that_cannot_be_annealed_are_refused(here):
    with pytest.raises(AnnealingError, match="not the target"):
        pilot(config(levels=(0.5, 0.9)), here / "run")
    with pytest.raises(UnsupportedForceError, match="from the frames of an ensemble at a higher"):
        pilot(config(system="alanine_dipeptide"), here / "run")
    assert not (here / "run").exists()
    (here / "bad.yaml").write_text(RUN.replace("FAMILY", "smc").replace("cess: 0.7", "levels: [0.2, 0.8]"))
    found = CliRunner().invoke(app, ["sample", "bad.yaml"])
    assert found.exit_code != 0


def test_maps_are_fitted_in_the_pilot_and_kept_in_the_checkpoint(here):
    (here / "dw4").mkdir()
    (here / "dw4/system.yaml").write_text("name: dw4\ndescription: four particles\ntarget: DoubleWellCluster\n")
    maps = {"maps": "pair", "map_reach": 7.0, "map_rows": 150, "map_basis": 6, "levels": (0.5, 1.0)}
    generator = pilot(config(system="./dw4", pilot_size=50, pilot_rounds=2, kernel="mala", **maps), here / "flow")
    weights = [t.field.weights for t in generator.transitions if isinstance(t, EulerFlow)]
    assert len(weights) == 2
    assert all(w.abs().max() > 0 for w in weights)
    checkpoint = load_checkpoint(here / "flow/checkpoint.pt")
    # the rows of the fit are in the cost, each with a force at every level
    assert Ledger.from_dict(checkpoint.cost["ledger"]).n_force() > 150 * 2
    again = load_system("./dw4").generator_from(checkpoint)
    kept = [t.field.weights for t in again.transitions if isinstance(t, EulerFlow)]
    assert all(torch.equal(a.float(), b) for a, b in zip(weights, kept, strict=True))
    assert "fit_transport" in again.methods
    lines = [json.loads(line) for line in (here / "flow/metrics.jsonl").read_text().splitlines()]
    assert all(line["explained"] < 1.0 for line in lines)


def test_maps_of_anything_but_particles_are_refused():
    with pytest.raises(UnsupportedForceError, match=r"leave generator\.annealing\.maps out"):
        build_generator(load_system("snf_double_well"), config(maps="pair").generator)
