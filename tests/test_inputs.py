"""Ten inputs that nobody prepared: each goes from its file to a report, or stops with an error that says what to do."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from boltzflow.cli import analyze, forecast, free_energy, init, report, sample, simulate, train  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.ensemble import Ensemble
from boltzflow.systems import load_system
from boltzflow.transitions import spline_kernels

INPUTS = Path(__file__).parent / "inputs"
LARGEST_FLOW = 250
"""Degrees of freedom above which the default recipe is parallel tempering."""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spline_kernels._compiler, "off", True)  # splines run eagerly, which starts faster


def invoke(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, f"{words}: {result.output}\n{result.exception!r}"
    return result.stdout


WORKING = {
    "mini-protein with prolines": (["--pdb", "trp_cage.pdb", "--add-hydrogens"], 304, 1),
    "disulphide": (["--pdb", "disulphide.pdb"], 136, 1),
    "cyclic peptide": (["--pdb", "cyclic.pdb"], 68, 1),
    "charged ends": (["--pdb", "alanylglycine.pdb"], 20, 1),
    "crystal": (["--pdb", "alternate_locations.pdb", "--add-hydrogens", "--remove-solvent"], 114, 1),
    "two chains": (["--pdb", "two_strands.pdb", "--add-hydrogens"], 156, 2),
    "ligand": (
        ["--pdb", "acetamide.pdb", "--forcefield", "acetamide.xml", "--forcefield", "implicit/obc2.xml"],
        9,
        1,
    ),
    "sequence": (["--sequence", "ACE LYS HIS GLU NME"], 66, 1),
    "solvated": (["--pdb", "solvated.pdb", "--remove-solvent"], 22, 1),
    "nucleotides": (["--pdb", "dinucleotide.pdb", "--add-hydrogens"], 63, 1),
}


def located(words):
    return [INPUTS / word if (INPUTS / word).is_file() else word for word in words]


SLOW = {"mini-protein with prolines": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in WORKING])
def test_from_input_to_report(name):
    words, n_atoms, n_molecules = WORKING[name]
    said = invoke("init", "mine", *located(words))
    system = load_system("mine")
    assert f"{system.n_atoms} atoms" in said
    assert f"{n_molecules} molecule" in said
    assert system.n_atoms == n_atoms
    assert "torch: all forces known" in said
    tiny = ["-n", "12", "--chains", "2", "--burn-in", "1", "--stride", "1", "--max-temperature", "1.05", "--seed", "1"]
    invoke("simulate", "mine", *tiny, "-o", "reference.h5")
    reference = Ensemble.load("reference.h5")
    assert len(reference) >= 12
    assert np.isfinite(reference.reduced_energies).all()
    ensemble = "reference.h5"
    if system.dimension <= LARGEST_FLOW:
        sizes = ["steps=2", "warmup_steps=0"]
        words = [f"training.{size}" for size in sizes] + ["generator.n_couplings=2", "generator.hidden=[8]"]
        words += ["objective.data=reference.h5"]
        recipe = Path("mine/recipes/likelihood.yaml")
        invoke("train", recipe, "-o", "run", *(word for value in words for word in ("--set", value)))
        invoke("sample", "run", "-n", "40", "-o", "samples.h5", "--seed", "1")
        ensemble = "samples.h5"
    else:
        assert system.recipes == ["parallel_tempering"]
    invoke("report", ensemble, "-o", "report.html")
    assert "</html>" in Path("report.html").read_text(encoding="utf-8")


def test_forecast_and_free_energy_of_a_sequence():
    invoke("init", "mine", "--sequence", "ACE GLY NME")
    found = json.loads(invoke("forecast", "mine", "--json"))
    assert (found["atoms"], found["dimension"]) == (19, 51)
    invoke("simulate", "mine", "-n", "400", "--chains", "8", "--burn-in", "20", "--seed", "1", "-o", "reference.h5")
    states = ["--state", "-120:0", "--state", "0:120"]
    said = json.loads(invoke("free-energy", "reference.h5", "--cv", "psi", *states, "--json"))
    # glycine has no hand: the two states are mirror images
    assert abs(said["delta_f"]) < 4 * said["error"]


REFUSED = {
    "explicit solvent": (["--pdb", "solvated.pdb"], "--remove-solvent"),
    "no hydrogens": (["--pdb", "trp_cage.pdb"], "--add-hydrogens"),
    "water in a crystal": (["--pdb", "alternate_locations.pdb", "--add-hydrogens"], "HOH2001"),
    "modified residue": (["--pdb", "selenomethionine.pdb", "--add-hydrogens", "--remove-solvent"], "MSE"),
    "ligand without a force field": (["--pdb", "acetamide.pdb"], "ACM"),
    "modified residue in a sequence": (["--sequence", "ACE SEP NME"], "no residue 'SEP'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_within_seconds(name):
    words, message = REFUSED[name]
    start = time.process_time()
    result = CliRunner().invoke(app, [str(word) for word in ["init", "mine", *located(words)]])
    assert result.exit_code != 0
    assert time.process_time() - start < 10
    assert message in str(result.exception) + result.output
    assert not Path("mine").exists()
