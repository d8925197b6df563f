"""`boltzflow simulate` of analytic energies, in latent coordinates, by i-SIR, and with a generator that learns."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from boltzflow.cli import analyze, simulate, train  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.ensemble import Ensemble
from boltzflow.io.config import SimulationConfig
from boltzflow.reference import simulate as simulate_in_python
from boltzflow.simulation import ParallelTempering
from boltzflow.systems import load_system
from boltzflow.transitions.compiled import uncompiled

torch.set_num_threads(1)
FLOW = """
system: many_well_32
generator:
  family: stochastic_flow
  n_couplings: 2
  hidden: [16]
  stochastic: {n_transforms: 1, coupling: affine, kernel: none}
objective: {likelihood: 1.0}
training: {steps: 20, batch_size: 64, dtype: float64}
"""
SHORT = ["-n", 24, "--chains", 4, "--burn-in", 40, "--stride", 1, "--seed", 1]


def invoke(*words):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == 0, result.output[-2000:]
    return result.output


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    (folder / "flow.yaml").write_text(FLOW)
    invoke("train", folder / "flow.yaml", "-o", folder / "run")
    return folder / "run"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("options", "methods"),
    [
        ([], {"HMC", "dual averaging", "mass adaptation"}),
        (["--moves", "FLOW", "--moves-every", 1, "--moves-proposals", 3], {"ISIR", "HMC"}),
        (["--moves", "FLOW", "--moves-training", 1, "--max-temperature", 1], {"LearnedMove", "flow-MCMC"}),
        (["--moves", "FLOW", "--method", "neutra"], {"NeuTra", "mass adaptation"}),
    ],
    ids=["tempering", "i-sir", "learning", "neutra"],
)
def test_an_analytic_system_is_simulated(flow, options, methods):
    options = [flow if word == "FLOW" else word for word in options]
    text = invoke("simulate", "many_well_32", *SHORT, *options, "-o", "e.h5")
    ensemble = Ensemble.load("e.h5")
    target = load_system("many_well_32").target
    assert ensemble.samples["x"].shape == (24, 32)
    u = target.reduced_energy(ensemble.to_state())
    torch.testing.assert_close(u, torch.from_numpy(ensemble.reduced_energies))
    assert methods <= set(ensemble.provenance.methods)
    assert " K" not in text
    assert ("learned moves" in text) == ("--moves" in options and "neutra" not in options)
    found = json.loads(invoke("analyze", "e.h5", "--json"))
    assert (found["system"], found["n_chains"]) == ("many_well_32", 4)


def test_many_modes_of_a_mixture_are_found_at_their_energies():
    system = load_system("gmm40")
    settings = SimulationConfig(n=6000, chains=60, stride=3, burn_in=60, max_temperature=300.0, seed=3)
    ensemble = simulate_in_python(system, settings)
    exact = system.reference().mean_reduced_energy()
    mean = ensemble.reduced_energies.reshape(-1, 60).mean(0)
    z = (mean.mean() - exact.value) / math.hypot(mean.std() / math.sqrt(60), exact.error)
    assert abs(z) < 3.5
    assert len(np.unique(system.target.component(ensemble.to_state()))) == 40


def test_an_interrupted_simulation_with_a_generator_that_learns_goes_on(flow, tmp_path, monkeypatch):
    system = load_system("many_well_32")
    settings = SimulationConfig(
        n=12, chains=3, stride=1, burn_in=8, moves=str(flow), moves_every=1, moves_training=1, seed=5
    )
    sweep, count = ParallelTempering._sweep, []

    def stop(simulation):
        count.append(1)
        if len(count) > 8 + 2:
            raise KeyboardInterrupt
        return sweep(simulation)

    monkeypatch.setattr(ParallelTempering, "_sweep", stop)
    path = tmp_path / "e.h5"
    assert simulate_in_python(system, settings, path=path, save_every=0.0).provenance.interrupted
    monkeypatch.setattr(ParallelTempering, "_sweep", sweep)
    assert Path(f"{path}.unfinished").exists()
    found = simulate_in_python(system, settings, path=path, resume=True)
    whole = simulate_in_python(system, settings)
    assert np.array_equal(found.samples["x"], whole.samples["x"])
    assert found.provenance.ledger == whole.provenance.ledger


def test_a_molecule_is_simulated_in_latent_coordinates_and_by_i_sir():
    latent = ["--method", "neutra", "--moves", "alanine_dipeptide"]
    chosen = ["--moves", "alanine_dipeptide", "--moves-every", 1, "--moves-proposals", 2, "--max-temperature", 1]
    few = ["-n", 8, "--chains", 4, "--burn-in", 2, "--stride", 1, "--seed", 1]
    with uncompiled():
        for options in (latent, chosen):
            text = invoke("simulate", "alanine_dipeptide", *few, *options, "-o", "e.h5")
            ensemble = Ensemble.load("e.h5")
            assert ensemble.samples["positions"].shape == (8, 22, 3)
            assert np.isfinite(ensemble.reduced_energies).all()
            assert ensemble.temperature == 300.0
            assert ensemble.provenance.extra["method"] == ("neutra" if options is latent else "pt")
    assert "accepted at 300 K" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "neutra"], "name its run or checkpoint by simulation.moves"),
        (["--method", "neutra", "--moves", "FLOW", "--keep", "all"], "no ladder of temperatures"),
        (
            ["--method", "neutra", "--moves", "FLOW", "--moves-proposals", 2],
            "--moves-proposals 2: there are no learned",
        ),
        (["--moves-training", 2], "--moves-training 2: there are no learned moves"),
        (["--method", "md"], "analytic energy ManyWell"),
    ],
)
def test_what_cannot_be_done_is_said(flow, options, message):
    words = [str(flow) if word == "FLOW" else str(word) for word in options]
    result = CliRunner().invoke(app, ["simulate", "many_well_32", *words, "-o", "e.h5"])
    assert result.exit_code != 0
    assert message in result.output
