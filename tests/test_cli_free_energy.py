"""`boltzflow free-energy` between structures and between systems: answers, JSON keys, errors that are one line."""

import json
import math

import mdtraj
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from boltzflow.cli import free_energy  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.ensemble import Ensemble
from boltzflow.systems import load_system

SYSTEM_KEYS = {
    *("from", "to", "delta_f", "error", "interval_95", "unit", "note", "method", "error_method", "n_effective"),
    *("states", "overlap", "diagnostics", "n_energy", "n_force", "seconds", "seed", "warnings"),
}
SMALL = ["--method", "bar", "-n", "104", "--chains", "8", "--burn-in", "30", "--max-temperature", "1", "--seed", "1"]


def invoke(*words):
    return CliRunner().invoke(app, ["free-energy", *(str(word) for word in words)])


def refused(*words):
    """The message of a command that must fail cleanly."""
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: "), result.stderr
    return last


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """ensemble.h5: 2000 frames of the reference without their chains; A.pdb in αR and B.pdb in β."""
    folder = tmp_path_factory.mktemp("states")
    reference = load_system("alanine_dipeptide").reference()
    rows = np.arange(0, len(reference), len(reference) // 2000)
    x = reference.samples["positions"][rows]
    Ensemble(
        samples={"positions": x},
        log_weights=np.zeros(len(x)),
        reduced_energies=reference.reduced_energies[rows],
        target=reference.target,
        topology=reference.topology,
        context={"temperature": 300.0},
    ).save(folder / "ensemble.h5")
    trajectory = mdtraj.Trajectory(x, reference.topology)
    angles = [np.degrees(f(trajectory)[1][:, 0]) for f in (mdtraj.compute_phi, mdtraj.compute_psi)]
    for name, (phi, psi) in {"A": (-70, -20), "B": (-120, 130)}.items():
        row = int((abs(angles[0] - phi) + abs(angles[1] - psi)).argmin())
        trajectory[row].save_pdb(str(folder / f"{name}.pdb"))
    return folder


def test_states_near_structures(files):
    words = [files / "ensemble.h5", "--state", files / "A.pdb", "--state", files / "B.pdb", "--rmsd", "0.05"]
    found = json.loads(invoke(*words, "--json").stdout)
    assert [row["state"] for row in found["states"]] == ["A.pdb", "B.pdb"]
    p = [row["population"] for row in found["states"]]
    assert found["delta_f"] == pytest.approx(-math.log(p[0] / p[1]))
    assert 1 < found["delta_f"] < 3.5
    text = invoke(*words, "--unit", "kJ/mol").stdout
    assert text.startswith("F(A.pdb) - F(B.pdb) = ")
    assert "kJ/mol   (RMSD of heavy atoms, within 0.05 nm)" in text
    nearest = json.loads(invoke(*words[:-2], "--nearest", "--json").stdout)
    assert sum(row["population"] for row in nearest["states"]) == pytest.approx(1.0)
    alone = json.loads(invoke(*words[:3], "--rmsd", "0.05", "--rmsd-atoms", "backbone", "--json").stdout)
    assert alone["states"][1]["state"] == "rest"


def test_states_of_named_atoms(files):
    by_name = "torsion:ACE1-C,ALA2-N,ALA2-CA,ALA2-C"
    found = [
        json.loads(invoke(files / "ensemble.h5", "--cv", cv, "--state", "-100:-20", "--json").stdout)["delta_f"]
        for cv in ("phi", by_name)
    ]
    assert found[0] == found[1]
    text = invoke(files / "ensemble.h5", "--cv", by_name, "--state", "-100:-20").stdout
    assert f"F({by_name} in -100:-20°) - F(rest)" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--state", "A.pdb"], "--rmsd: give the RMSD in nm"),
        (["--state", "A.pdb", "--state", "0:130", "--rmsd", "0.1"], "not both"),
        (["--state", "A.pdb", "--rmsd", "0.1", "--cv", "phi"], "leave it out"),
        (["--state", "A.pdb", "--state", "B.pdb", "--rmsd", "0.3"], "within 0.3 nm of both A.pdb and B.pdb"),
        (["--state", "none.pdb", "--rmsd", "0.1"], "no such file"),
        (["--state", "A.pdb", "--rmsd", "0.0001"], "holds 1 of"),
        (["--state", "0:130"], "Name it with --cv"),
        (["--state", "0:130", "--cv", "phi", "--rmsd", "0.1"], "are for states near structures"),
        (["--cv", "phi"], "name a state with --state"),
        (["--from", "alanine_dipeptide", "--to", "alanine_dipeptide@310"], "give one or the other"),
    ],
)
def test_wrong_states_are_one_line(files, monkeypatch, words, message):
    monkeypatch.chdir(files)
    if message == "holds 1 of":
        # a state that holds one frame has an answer, but says how little it rests on
        assert "1.0 effective samples" in invoke("ensemble.h5", *words).stdout
        return
    assert message in refused("ensemble.h5", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give an ENSEMBLE with --state, or two systems"),
        (["--from", "alanine_dipeptide"], "--to is missing"),
        (["--to", "alanine_dipeptide"], "--from is missing"),
        (["--from", "alanine_dipeptide", "--to", "alanine_dipeptid@310"], "did you mean 'alanine_dipeptide'"),
        (["--from", "alanine_dipeptide", "--to", "alanine_dipeptide"], "the difference is zero"),
        (["--from", "alanine_dipeptide", "--to", "alanine_dipeptide@310", "--unit", "kJ/mol"], "temperatures differ"),
        (["--from", "alanine_dipeptide", "--to", "alanine_dipeptide@310", "-n", "3"], "at least 100 samples"),
        (["--from", "alanine_dipeptide", "--to", "alanine_dipeptide@310", "--chains", "0"], "--chains"),
        (["--from", "alanine_dipeptide", "--to", "alanine_dipeptide@310", "--seed", "-1"], "--seed"),
    ],
)
def test_wrong_systems_are_one_line(words, message):
    assert message in refused(*words)


def test_two_temperatures():
    result = invoke("--from", "alanine_dipeptide", "--to", "alanine_dipeptide@310", *SMALL, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == SYSTEM_KEYS
    assert (found["from"], found["to"], found["method"]) == ("alanine_dipeptide", "alanine_dipeptide@310", "bar")
    assert (found["unit"], found["seed"]) == ("kT", 1)
    assert "300 K -> 310 K" in found["note"]
    # 60 harmonic degrees of freedom alone would give −30 log(310/300) = −0.98; the energy of the minimum, −70 kT at
    # 300 K, adds 70 (1 − 300/310) = 2.26
    assert 0.8 < found["delta_f"] < 1.8
    assert found["n_force"] > 0
    assert [row["lambda"] for row in found["states"]] == [0.0, 1.0]


def test_two_force_fields_in_another_unit(tmp_path):
    """The second system has weaker torsions; the text names both, the unit and how it was found."""
    import openmm

    system = load_system("alanine_dipeptide")
    made = openmm.XmlSerializer.deserialize((system.folder / "system.xml").read_text())
    force = next(f for f in made.getForces() if isinstance(f, openmm.PeriodicTorsionForce))
    for k in range(force.getNumTorsions()):
        *atoms, n, phase, strength = force.getTorsionParameters(k)
        force.setTorsionParameters(k, *atoms, n, phase, 0.9 * strength)
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(made))
    (tmp_path / "topology.pdb").write_text((system.folder / "topology.pdb").read_text())
    definition = {"name": "softer", "description": "weaker torsions", "temperature": 300.0, "data": "."}
    (tmp_path / "system.yaml").write_text(yaml.safe_dump(definition))
    result = invoke("--from", "alanine_dipeptide", "--to", tmp_path, *SMALL, "--unit", "kJ/mol")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert text.startswith("F(softer) - F(alanine_dipeptide) = ")
    assert "kJ/mol" in text.splitlines()[0]
    for words in ("λ = 0", "R-hat", "overlap", "cost", "seed 1"):
        assert words in text
