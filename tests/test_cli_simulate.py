"""`boltzflow simulate`: by name and by configuration, cold or all temperatures, where it writes, interrupts."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from boltzflow.analysis.summary import summary
from boltzflow.analysis.verdict import verdict
from boltzflow.citation import cite
from boltzflow.cli import simulate, train  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.cli.common import is_shipped, run_folder
from boltzflow.ensemble import Ensemble
from boltzflow.simulation import ParallelTempering
from boltzflow.simulation.molecular_dynamics import molecular_dynamics
from boltzflow.systems import load_system

SIMULATION = {"n": 96, "chains": 12, "stride": 2, "burn_in": 15, "keep": "all", "seed": 5}


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A system folder of a user with recipes, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "recipes").mkdir(parents=True)
    for name in ("system.xml", "topology.pdb"):
        shutil.copy(load_system("alanine_dipeptide").folder / name, "mine")
    definition = {"name": "mine", "description": "a copy", "temperature": 300.0, "data": "data"}
    (tmp_path / "mine" / "system.yaml").write_text(yaml.safe_dump(definition))
    write("tempering", {"system": "..", "simulation": SIMULATION})
    write(
        "likelihood",
        {"system": "..", "simulation": {**SIMULATION, "keep": "cold"}, "objective": {"data": "../data/reference.h5"}},
    )
    return tmp_path / "mine"


def write(name, recipe):
    with open(f"mine/recipes/{name}.yaml", "w") as file:
        yaml.safe_dump(recipe, file)


def test_a_run_says_how_and_options_override_it(mine):
    result = invoke("simulate", "mine/recipes/tempering.yaml", "-o", "all.h5", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    ensemble = Ensemble.load("all.h5")
    # 4 temperatures: 96 frames are 2 of each of 48 walkers
    assert len(ensemble) == found["n"] == 96
    assert ensemble.normalisation == "none"
    assert ensemble.chain is None
    assert ensemble.provenance.seed == 5
    assert "mbar" in ensemble.provenance.methods
    mbar = ensemble.provenance.extra["simulation"]["mbar"]
    assert mbar["free_energies"][-1] == mbar["errors"][-1] == 0
    assert all(0 < error < 5 for error in mbar["errors"][:-1])
    assert "540 K" in mbar["meaning"]
    assert ensemble.mean_reduced_energy().error > 0
    overridden = invoke("simulate", "mine/recipes/tempering.yaml", "-o", "cold.h5", "--keep", "cold", "-n", 24)
    assert overridden.exit_code == 0, overridden.output
    cold = Ensemble.load("cold.h5")
    assert (len(cold), len(np.unique(cold.chain)), np.ptp(cold.log_weights)) == (24, 12, 0.0)


def test_hot_frames_weigh_less_and_energies_are_those_of_the_file(mine):
    invoke("simulate", "mine/recipes/tempering.yaml", "-o", "all.h5", "-n", 480)
    ensemble = Ensemble.load("all.h5")
    target = load_system("mine").target
    state = ensemble.to_state()
    u = target.reduced_energy(target.state(state["positions"].double()))
    np.testing.assert_allclose(u.numpy(), ensemble.reduced_energies, rtol=1e-9)
    by_rung = ensemble.weights.reshape(10, 4, 12).sum((0, 2))
    assert (np.diff(by_rung) < 0).all()
    # for one temperature the weight falls with the energy
    order = np.argsort(ensemble.reduced_energies)
    assert (np.diff(ensemble.log_weights[order]) <= 1e-9).all()


def test_ladders_are_judged_as_chains(mine):
    invoke("simulate", "mine/recipes/tempering.yaml", "-o", "all.h5", "-n", 480)
    ensemble = Ensemble.load("all.h5")
    found = summary(ensemble)
    simulation = ensemble.provenance.extra["simulation"]
    assert found["n_chains"] == 12
    assert found["n_effective"] == simulation["series"]["reduced_energy"]["n_effective"] <= 120
    assert found["round_trips"] == simulation["round_trips"]
    names = [check.name for check in verdict(found).checks]
    assert "Pareto k-hat" in names
    assert any(name.startswith("R-hat") for name in names)
    assert "reference" not in names  # it is not the output of a generator
    well = {
        **found,
        "ess": 400.0,
        "pareto_k": 0.0,
        "r_hat": 1.0,
        "n_effective": 110.0,
        "bulk_ess": 110.0,
        "tail_ess": 110.0,
        "round_trips": 50,
    }
    assert verdict(well).text.startswith("weighted samples of chains that agree")


def test_too_few_frames_are_said_to_be_too_few(mine):
    result = invoke("simulate", "mine", "-n", 6, "--chains", 3, "--burn-in", 5, "--json", "-o", "few.h5")
    assert json.loads(result.stdout)["series"]["reduced_energy"]["split_r_hat"] is None
    assert "NaN" not in result.stdout
    result = invoke("simulate", "mine", "-n", 6, "--chains", 3, "--burn-in", 5, "-o", "few.h5")
    assert "unknown, too few frames" in result.stdout


def test_files_go_where_the_next_command_looks(mine):
    assert invoke("simulate", "mine/recipes/likelihood.yaml", "-n", 12).exit_code == 0
    assert len(Ensemble.load("mine/data/reference.h5")) == 12
    assert load_system("mine").reference() is not None
    os.remove("mine/data/reference.h5")
    assert invoke("simulate", "mine", "-n", 8, "--chains", 4, "--burn-in", 5, "--stride", 1).exit_code == 0
    assert len(load_system("mine").reference()) == 8


def test_run_folders_of_different_systems_do_not_collide(mine, tmp_path):
    assert str(run_folder(mine / "recipes" / "likelihood.yaml")) == "runs/mine-likelihood"
    os.chdir(mine / "recipes")
    assert str(run_folder(Path("likelihood.yaml"))) == "runs/mine-likelihood"
    os.chdir(tmp_path)
    shipped = load_system("alanine_dipeptide")
    assert str(run_folder(shipped.folder / "recipes" / "likelihood.yaml")) == "runs/likelihood"
    assert str(run_folder(Path("my_run.yaml"))) == "runs/my_run"
    assert str(run_folder(Path("runs/any"))) == "runs/any"
    assert is_shipped(shipped)
    assert not is_shipped(load_system(mine))


def test_an_interrupt_keeps_the_frames_that_are_finished(mine, monkeypatch):
    count, sweep = [], ParallelTempering._sweep

    def stop(simulation):
        count.append(1)
        if len(count) == 15 + 2 * 5 + 1:  # burn-in, five records, and one sweep more
            raise KeyboardInterrupt
        return sweep(simulation)

    monkeypatch.setattr(ParallelTempering, "_sweep", stop)
    result = invoke("simulate", "mine/recipes/tempering.yaml", "-o", "part.h5", "-n", 480)
    assert result.exit_code == 130
    part = Ensemble.load("part.h5")
    assert part.provenance.interrupted
    assert len(part) == 5 * 48
    count.clear()
    monkeypatch.setattr(ParallelTempering, "_sweep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    result = invoke("simulate", "mine/recipes/tempering.yaml", "-o", "none.h5")
    assert result.exit_code == 130
    assert not os.path.exists("none.h5")


def test_an_interrupt_of_dynamics_keeps_the_replicas_that_are_finished():
    system = load_system("alanine_dipeptide")
    count = []

    def stop(_):
        count.append(1)
        if len(count) == 6:
            raise KeyboardInterrupt

    result = molecular_dynamics(
        system.openmm_system,
        system.positions,
        temperature=300.0,
        n_frames=2,
        stride=2,
        n_replicas=3,
        n_equilibration=2,
        platform="Reference",
        seed=1,
        on_steps=stop,
    )
    assert result.reduced_energies.shape == (2, 1)
    assert result.chains.tolist() == [0]
    assert result.ledger.n_force() == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine/recipes/none.yaml"], "no such file"),
        (["mine/recipes/empty.yaml"], "has no section `simulation`"),
        (["mine", "--stride", "0"], "--stride: expected a number >= 1, got 0"),
        (["mine", "--burn-in", "-3"], "--burn-in"),
        (["mine", "--max-temperature", "0.9"], "--max-temperature: expected a factor >= 1"),
        (["mine", "--device", "cuda:17"], "available: cpu"),
        (["mime"], "unknown system"),
        (["mine/recipes/wrong.yaml"], "burn_in"),
    ],
)
def test_wrong_input_is_one_line(mine, words, message):
    write("empty", {"system": ".."})
    write("wrong", {"system": "..", "simulation": {"burnin": 3}})
    result = invoke("simulate", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_simulation_cannot_be_trained(mine):
    result = invoke("train", "mine/recipes/tempering.yaml")
    assert result.exit_code == 2
    assert "boltzflow simulate mine/recipes/tempering.yaml" in result.stderr


def test_help_names_the_defaults():
    text = " ".join(invoke("simulate", "--help").stdout.split())
    for default in ("(default: 20000)", "(default: 5 or 1000", "(default: 500 or 10000", "(default: 1.8)"):
        assert default in text


def test_learned_moves_come_from_a_run_a_checkpoint_or_a_system(mine):
    shipped = load_system("alanine_dipeptide").checkpoint_path
    (mine.parent / "runs" / "x").mkdir(parents=True)
    shutil.copy(shipped, "runs/x/checkpoint.pt")
    short = ["-n", 24, "--chains", 12, "--burn-in", 5, "--stride", 2, "--seed", 1]
    frames = []
    for moves in ("runs/x", shipped, "alanine_dipeptide"):
        result = invoke("simulate", "alanine_dipeptide", *short, "--moves", moves, "--moves-every", 2, "-o", "e.h5")
        assert result.exit_code == 0, result.output
        ensemble = Ensemble.load("e.h5")
        frames.append(ensemble.samples["positions"])
    assert np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[0], frames[2])
    found = ensemble.provenance.extra["simulation"]
    assert found["moves"] == {"source": str(shipped.resolve()), "every": 2}
    accepted = found["acceptance"][found["kernels"].index("LearnedMove")]
    assert 0.5 < accepted[0] < 1
    assert set(accepted[1:]) == {0.0}
    assert f"learned moves        {accepted[0]:.2%} accepted at 300 K, {2 * accepted[0]:.1f} on every" in result.stdout
    assert {"LearnedMove", "SplineCoupling", "SelfWeightedKL"} <= set(ensemble.provenance.methods)
    # one of three sweeps a call, of the cold walkers only
    sweeps, per_sweep = 5 + 2 * 2, 4 * 12 * (5 + 5 + 1)
    relaxed = invoke("simulate", "alanine_dipeptide", *short, "-o", "plain.h5")
    assert relaxed.exit_code == 0, relaxed.output
    without = Ensemble.load("plain.h5").provenance
    assert "LearnedMove" not in without.methods
    assert without.n_force > sweeps * per_sweep
    assert ensemble.provenance.n_force - without.n_force == 12 * 5
    assert ensemble.provenance.n_energy == ensemble.provenance.n_force


def test_a_run_names_learned_moves_relative_to_its_file(mine):
    shutil.copy(load_system("alanine_dipeptide").checkpoint_path, "mine/model.pt")
    write("moved", {"system": "..", "simulation": {**SIMULATION, "moves": "../model.pt", "moves_every": 3}})
    result = invoke("simulate", "mine/recipes/moved.yaml", "-n", 48, "-o", "e.h5", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["moves"] == {"source": str(mine / "model.pt"), "every": 3}
    assert "gabrie2022" in cite("mine/recipes/moved.yaml")
    assert "gabrie2022" in cite("e.h5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--moves", "runs/none"], "neither a run, a checkpoint nor a system"),
        (["--moves", "mine"], "no trained checkpoint"),
        (["--moves", "alanine_dipeptide", "--method", "md"], "molecular dynamics has no learned moves"),
        (["--moves-every", 3], "name their generator by --moves"),
        (["--moves", "alanine_dipeptide", "--moves-every", 0], "--moves-every: expected a number >= 1"),
        (["--moves", "mine/topology.pdb"], "checkpoint"),
    ],
)
def test_learned_moves_that_cannot_be_made_are_refused(mine, options, message):
    result = invoke("simulate", "mine", *options, "-n", 8, "--chains", 4)
    assert result.exit_code != 0
    assert message in result.output
    assert not (mine / "data" / "reference.h5").exists()


def test_learned_moves_of_another_system_are_refused(mine):
    system = (
        (mine / "system.xml")
        .read_text()
        .replace('mass="1.008"', 'mass="1.009"')
        .replace('mass="12.01"', 'mass="12.02"')
    )
    (mine / "system.xml").write_text(system)
    result = invoke("simulate", "mine", "--moves", "alanine_dipeptide", "-n", 8, "--chains", 4)
    assert result.exit_code != 0
    assert "trained for system 'alanine_dipeptide'" in result.output


def test_chains_that_disagree_are_said_to(tmp_path):
    words = ["--chains", 4, "--stride", 1, "--burn-in", 1, "--seed", 1, "-o", tmp_path / "few.h5"]
    short = invoke("simulate", "lj13", "-n", 64, *words)
    assert "the chains disagree, do not use the frames; sample longer" in short.output
    assert json.loads(invoke("simulate", "lj13", "-n", 64, *words, "--json").stdout)["chains_agree"] is False
