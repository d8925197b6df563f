"""The command line: every command once on a tiny run, its JSON keys, and errors that are one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import boltzflow
from boltzflow.cli import analyze, free_energy, sample, simulate, systems, train  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.ensemble import Ensemble
from boltzflow.io.checkpoint import load_checkpoint
from boltzflow.systems import load_system
from boltzflow.transitions import spline_kernels

ANALYZE_KEYS = {
    *("system", "n", "ess", "ess_fraction", "pareto_k", "log_z", "log_z_error", "mean_reduced_energy"),
    *("mean_reduced_energy_error", "n_energy", "n_force", "n_nonfinite", "n_failed", "seconds", "device", "seed"),
}
REFERENCE_KEYS = {"forward_ess_fraction", "eubo", "elbo"}
FREE_ENERGY_KEYS = {"delta_f", "error", "unit", "method", "n_effective", "states"}

RUN = {
    "system": "alanine_dipeptide",
    "generator": {"n_couplings": 2, "hidden": [8], "n_bins": 4, "n_marginal_bins": 4},
    "objective": {"likelihood": 1.0, "data": "reference.h5"},
    "training": {"steps": 4, "batch_size": 16, "seed": 1, "checkpoint_every": 2, "log_every": 1, "warmup_steps": 1},
    "sampling": {"batch_size": 50, "dtype": "float64"},
}


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words):
    """The message of a command that must fail cleanly."""
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: "), result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    return last


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A working folder with reference.h5, runs/tiny and ensemble.h5; splines run eagerly, which starts faster."""
    folder = tmp_path_factory.mktemp("work")
    before, off = os.getcwd(), spline_kernels._compiler.off
    os.chdir(folder)
    spline_kernels._compiler.off = True
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RUN))
    words = ["simulate", "alanine_dipeptide", "-o", "reference.h5", "-n", "64", "--chains", "8", "--burn-in", "20"]
    for command in (
        [*words, "--seed", "1"],
        ["train", "tiny.yaml"],
        ["sample", "runs/tiny", "-n", "400", "--seed", "3"],
    ):
        result = invoke(*command)
        assert result.exit_code == 0, result.output
    yield folder
    os.chdir(before)
    spline_kernels._compiler.off = off


def test_systems():
    listed = invoke("systems")
    assert "alanine_dipeptide" in listed.stdout
    found = json.loads(invoke("systems", "--json").stdout)["alanine_dipeptide"]
    assert (found["atoms"], found["dimension"], found["temperature"]) == (22, 60, 300.0)
    assert "spline_flow" in found["recipes"]


def test_simulate_wrote_chains_in_the_sector(folder):
    reference = Ensemble.load(folder / "reference.h5")
    assert (len(reference), reference.normalisation, reference.temperature) == (64, "none", 300.0)
    assert len(np.unique(reference.chain)) == 8
    assert reference.provenance.n_force > 64
    target = load_system("alanine_dipeptide").target
    u = target.reduced_energy(target.state(torch.from_numpy(reference.samples["positions"]).double()))
    np.testing.assert_allclose(u.numpy(), reference.reduced_energies, rtol=1e-9)
    assert "swap_rates" in reference.provenance.extra["simulation"]


def test_simulate_by_molecular_dynamics(folder):
    words = ["alanine_dipeptide@320", "--method", "md", "-n", 8, "--chains", 2, "--stride", 5, "--burn-in", 10]
    result = invoke("simulate", *words, "-o", "md.h5", "--seed", 1, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["platform"]
    assert Ensemble.load(folder / "md.h5").target == "alanine_dipeptide@320"


def test_training_leaves_a_run_folder(folder):
    files = {path.name for path in (folder / "runs" / "tiny").iterdir()}
    assert {"checkpoint.pt", "metrics.jsonl"} <= files
    steps = [json.loads(line)["step"] for line in (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_cost_of_a_model_counts_the_data_it_learned_from(folder):
    spent = Ensemble.load(folder / "reference.h5").provenance
    ledger = load_checkpoint(folder / "runs/tiny/checkpoint.pt").cost["ledger"]
    assert sum(ledger["force"].values()) == spent.n_force > 0


def test_resumed_run_equals_the_unbroken_one(folder):
    def parameters(run):
        return torch.load(folder / run / "checkpoint.pt", weights_only=True)["averaged"]

    script = (
        "import os, boltzflow.workflow as w\n"
        "save, n = w.save_checkpoint, []\n"
        "def killed(*a, **k):\n    save(*a, **k)\n    os._exit(9)\n"
        "w.save_checkpoint = killed\n"
        "from boltzflow.cli import main\nmain()"
    )
    environment = {**os.environ, "BOLTZFLOW_COMPILE": "0", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", script, "train", "tiny.yaml", "-o", "killed"]
    killed = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == 9, killed.stderr
    assert "--resume" in killed.stderr
    assert invoke("train", "tiny.yaml", "-o", "killed", "--resume").exit_code == 0
    for name, value in parameters("killed").items():
        torch.testing.assert_close(value, parameters("runs/tiny")[name], rtol=0, atol=0)
    steps = [json.loads(line)["step"] for line in (folder / "killed/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_finished_run_is_not_overwritten():
    assert "--resume" in refused("train", "tiny.yaml")


def test_resuming_another_configuration_is_refused():
    assert "objective" in refused("train", "tiny.yaml", "--resume", "--set", "objective.reverse_kl=0.1")


def test_sample_records_what_made_it(folder):
    ensemble = Ensemble.load(folder / "ensemble.h5")
    assert (len(ensemble), ensemble.provenance.seed, ensemble.target) == (400, 3, "alanine_dipeptide")
    assert ensemble.provenance.extra["checkpoint"].endswith("runs/tiny/checkpoint.pt")
    assert not ensemble.provenance.interrupted


def test_same_seed_same_samples(folder):
    assert invoke("sample", "runs/tiny", "-n", 400, "-o", "again.h5", "--seed", 3).exit_code == 0
    one, two = (Ensemble.load(folder / name) for name in ("ensemble.h5", "again.h5"))
    assert (one.log_weights == two.log_weights).all()
    assert invoke("sample", "runs/tiny", "-n", 400, "-o", "other.h5").exit_code == 0
    assert (one.log_weights != Ensemble.load(folder / "other.h5").log_weights).all()


def test_sample_says_where_it_runs():
    result = invoke("sample", "runs/tiny", "-n", 50, "-o", "few.h5")
    assert "on cpu (" in result.stderr


def test_analyze_json_has_the_stable_keys():
    found = json.loads(invoke("analyze", "ensemble.h5", "--reference", "reference.h5", "--json").stdout)
    assert set(found) >= ANALYZE_KEYS | REFERENCE_KEYS
    assert (found["system"], found["n"], found["seed"], found["device"]) == ("alanine_dipeptide", 400, 3, "cpu")
    assert found["n_energy"] == 400
    assert found["eubo"] > found["elbo"]
    few = invoke("analyze", "ensemble.h5", "--reference", "reference.h5", "--reference-rows", 20, "--json")
    assert "compared with 20 of the " in few.stderr
    few = json.loads(few.stdout)
    assert few["elbo"] == found["elbo"]
    assert few["eubo"] != found["eubo"]
    alone = json.loads(invoke("analyze", "ensemble.h5", "--no-reference", "--json").stdout)
    assert set(alone) >= ANALYZE_KEYS
    assert "eubo" not in alone


def test_analyze_in_words():
    result = invoke("analyze", "ensemble.h5", "--reference", "reference.h5")
    for word in ("ESS (Kish)", "Pareto k-hat", "log Z", "EUBO", "forward ESS", "verdict: not reliable", "±"):
        assert word in result.stdout, result.output
    chains = invoke("analyze", "reference.h5")
    assert "unweighted samples of chains" in chains.stdout
    assert "warning" not in chains.stdout


def test_analyze_with_a_lost_checkpoint(folder):
    ensemble = Ensemble.load(folder / "ensemble.h5")
    ensemble.provenance.extra["checkpoint_sha256"] = "0" * 64
    ensemble.save("orphan.h5")
    assert "checkpoint that made the ensemble" in refused("analyze", "orphan.h5", "--reference", "reference.h5")


def test_free_energy_json_has_the_stable_keys(folder):
    words = ["free-energy", "reference.h5", "--cv", "phi", "--state", "-100:-20"]
    found = json.loads(invoke(*words, "--json").stdout)
    assert set(found) >= FREE_ENERGY_KEYS
    assert found["unit"] == "kT"
    assert [state["state"] for state in found["states"]] == ["-100:-20", "rest"]
    p = found["states"][0]["population"]
    assert found["delta_f"] == pytest.approx(np.log((1 - p) / p))
    joules = json.loads(invoke(*words, "--unit", "kJ/mol", "--json").stdout)
    assert joules["delta_f"] == pytest.approx(found["delta_f"] * 300 * 0.00831446261815324)
    assert "-100:-20°" in invoke(*words).stdout


def test_free_energy_between_two_states():
    words = ["free-energy", "reference.h5", "--cv", "psi", "--state", "-90:90", "--state", "90:270"]
    found = json.loads(invoke(*words, "--json").stdout)
    assert sum(state["population"] for state in found["states"]) == pytest.approx(1.0)


def test_reweight_to_another_temperature(folder):
    result = invoke("reweight", "reference.h5", "--to", "alanine_dipeptide@310", "-o", "warm.h5")
    assert result.exit_code == 0, result.output
    warm, cold = Ensemble.load(folder / "warm.h5"), Ensemble.load(folder / "reference.h5")
    assert (warm.target, warm.temperature) == ("alanine_dipeptide@310", 310.0)
    np.testing.assert_allclose(warm.reduced_energies, cold.reduced_energies * 300 / 310, rtol=1e-9)
    np.testing.assert_allclose(warm.log_weights, cold.reduced_energies - warm.reduced_energies, rtol=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "runs/tiny", "-n", "0"], "-n: expected a number >= 1, got 0"),
        (["sample", "runs/tiny", "-n", "-5"], "-n: expected a number >= 1, got -5"),
        (["sample", "runs/tiny", "--batch-size", "0"], "--batch-size"),
        (["sample", "runs/tiny", "-n", "5", "--seed", "-1"], "--seed"),
        (["simulate", "alanine_dipeptide", "-n", "0"], "-n: expected"),
        (["simulate", "alanine_dipeptide", "--chains", "0"], "--chains"),
        (["sample", "alanine_dipeptid", "-n", "5"], "did you mean 'alanine_dipeptide'"),
        (["sample", "alanine_dipeptide", "--recipe", "spline_flo", "-n", "5"], "did you mean 'spline_flow'"),
        (["sample", "runs/tiny", "--recipe", "spline_flow"], "leave --recipe out"),
        (["sample", "runs/tiny", "--device", "cuda:17"], "available: cpu"),
        (["sample", "runs/tiny", "--device", "gpu"], "available: cpu"),
        (["sample", "runs/tiny", "-o", "runs"], "is a folder"),
        (["train", "tiny.yaml", "--set", "training.stepz=3"], "did you mean 'steps'"),
        (["train", "tiny.yaml", "--set", "training.steps=many"], "training.steps"),
        (["train", "nowhere.yaml"], "no such file"),
        (["train", "gmm40"], "gmm40: is a system; give the YAML file of a run: "),
        (["train", "runs/tiny"], "runs/tiny: is a run folder; give the YAML file of the run, with -o runs/tiny"),
        (["train", "nonsense"], "nonsense: expected the YAML file of a run"),
        (
            ["sample", "many_well_32"],
            "and needs none: name a recipe, as in `boltzflow sample many_well_32 --recipe smc",
        ),
        (["analyze", "nowhere.h5"], "nowhere.h5"),
        (["analyze", "tiny.yaml"], "tiny.yaml"),
        (["free-energy", "reference.h5", "--cv", "fi", "--state", "0:1"], "'phi'"),
        (["free-energy", "reference.h5", "--cv", "phi", "--state", "0"], "lo:hi"),
        (["free-energy", "reference.h5", "--cv", "phi", "--state", "0:"], "two cuts"),
        (["reweight", "reference.h5", "--to", "alanine_dipeptid"], "did you mean 'alanine_dipeptide'"),
    ],
)
def test_bad_input_is_one_clean_line(words, message):
    assert message in refused(*words)


def test_debug_shows_the_traceback():
    result = invoke("--debug", "sample", "runs/tiny", "-n", 0)
    assert result.exception is not None
    assert "expected a number >= 1" in str(result.exception)


def test_version():
    assert invoke("--version").stdout.split() == ["boltzflow", boltzflow.__version__]


def test_unknown_option_and_command_are_refused():
    assert invoke("sample", "runs/tiny", "--nonsense").exit_code == 2
    assert invoke("nonsense").exit_code == 2


def test_interrupt_keeps_finished_shards(folder):
    environment = {**os.environ, "BOLTZFLOW_COMPILE": "0", "OMP_NUM_THREADS": "1"}
    script = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
        "import boltzflow.generators.generator as g\n"
        "make, n = g.shard_ensemble, []\n"
        "def counted(*a, **k):\n"
        "    n.append(1)\n"
        "    if len(n) == 4: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return make(*a, **k)\n"
        "g.shard_ensemble = counted\n"
        "from boltzflow.cli import main\nmain()"
    )
    words = ["sample", "runs/tiny", "-n", "1000000", "-o", "stopped.h5", "--seed", "3"]
    process = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 130, process.stderr
    assert "holds the 150 of 1000000 samples" in process.stderr
    stopped, whole = Ensemble.load(folder / "stopped.h5"), Ensemble.load(folder / "ensemble.h5")
    assert stopped.provenance.interrupted
    assert (stopped.log_weights == whole.log_weights[:150]).all()
    assert "interrupted" in invoke("analyze", "stopped.h5", "--no-reference").stdout


def test_the_installed_command_exists():
    found = subprocess.run([sys.executable, "-m", "boltzflow", "--help"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    for name in ("systems", "simulate", "train", "sample", "reweight", "analyze", "free-energy"):
        assert name in found.stdout
