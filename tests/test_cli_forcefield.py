"""`boltzflow forcefield check`: a table, one JSON object, exit status 1 when a force is off, and wrong input."""

import functools
import json
import shutil

import openmm
import pytest
import torch
from typer.testing import CliRunner

from boltzflow import load_system
from boltzflow.cli import forcefield
from boltzflow.cli.app import app
from boltzflow.forcefield import speed as speed_module


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(speed_module, "BUDGET", 0.005)
    monkeypatch.setattr(forcefield, "speeds", functools.partial(speed_module.speeds, batches=(1, 8)))


@pytest.fixture
def files(tmp_path):
    """A serialised System with its structure beside it."""
    system = load_system("alanine_dipeptide")
    shutil.copy(system.folder / "system.xml", tmp_path / "mine.xml")
    shutil.copy(system.folder / "topology.pdb", tmp_path / "mine.pdb")
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(app, ["forcefield", "check", *(str(word) for word in words)])


def test_the_shipped_system_passes():
    result = invoke("alanine_dipeptide", "--frames", 1)
    assert result.exit_code == 0, result.output
    assert "alanine_dipeptide: 22 atoms, 6 forces" in result.stdout
    assert "1 of each: perturbed 2 pm" in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if "PeriodicTorsionForce" in line]
    assert row.split()[:4] == ["2", "0", "PeriodicTorsionForce", "compiled"]
    assert "CMMotionRemover          none      has no energy" in result.stdout
    assert "OpenMM Reference" in result.stdout
    assert result.stdout.rstrip().splitlines()[-1].startswith("passed: 5 forces within the limits (1e-06 in the energy")


def test_json_of_a_serialised_system(files):
    result = invoke(files / "mine.xml", "--json", "--frames", 1)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["system"], found["atoms"], found["passed"]) == ("mine.xml", 22, True)
    assert [force["kind"] for force in found["forces"]][:2] == ["HarmonicBondForce", "HarmonicAngleForce"]
    assert found["total"]["energy"] < 1e-9
    assert {"compiled", "eager", "OpenMM Reference", "OpenMM CPU"} == {speed["backend"] for speed in found["speeds"]}
    assert all(speed["conformations_per_second"] > 0 for speed in found["speeds"])


def test_a_corrupted_parameter_in_the_cache_is_found(tmp_path, monkeypatch):
    """The parameters that a run would use are those of the cache."""
    monkeypatch.setenv("BOLTZFLOW_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "system"
    shutil.copytree(load_system("alanine_dipeptide").folder, folder)
    # without recorded energies, which would have refused it
    text = (folder / "system.yaml").read_text()
    (folder / "system.yaml").write_text("\n".join(line for line in text.splitlines() if "energies" not in line))
    assert load_system(folder).potential.n_atoms == 22
    (cached,) = (tmp_path / "forcefields").glob("*.pt")
    state = torch.load(cached, weights_only=True)
    (bonds,) = [term for term in state["terms"] if term["kind"] == "HarmonicBonds"]
    bonds["tensors"]["k"][2] *= 1.01
    torch.save(state, cached)
    result = invoke(folder, "--frames", 1)
    assert result.exit_code == 1
    verdict, remedy = result.stdout.rstrip().splitlines()[-2:]
    assert verdict.startswith("FAILED: the sum of all forces beyond the limits")
    assert remedy.endswith(str(cached.parent))
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("  all ")]
    assert row.endswith("FAILED")
    assert "relaxed" in row or "perturbed" in row


def test_a_wrong_force_is_named(files, monkeypatch):
    from boltzflow.forcefield import registry

    right = registry.CONVERTERS["HarmonicAngleForce"]

    def wrong(force, system, dtype):
        term = right(force, system, dtype)
        term.theta0[5] += 1e-3
        return term

    monkeypatch.setitem(registry.CONVERTERS, "HarmonicAngleForce", wrong)
    result = invoke(files / "mine.xml", "--frames", 1)
    assert result.exit_code == 1
    assert "FAILED: HarmonicAngleForce (force 1) beyond the limits" in result.stdout
    found = json.loads(invoke(files / "mine.xml", "--frames", 1, "--json").stdout)
    assert not found["passed"]
    assert [force["index"] for force in found["forces"] if force["deviation"] and not force["deviation"]["passed"]] == [
        1
    ]


def test_an_unknown_force_is_shown_and_does_not_fail(files):
    system = openmm.XmlSerializer.deserialize((files / "mine.xml").read_text())
    system.addForce(openmm.RMSDForce([openmm.Vec3(0.1 * k, 0, 0) for k in range(22)]))
    (files / "other.xml").write_text(openmm.XmlSerializer.serialize(system))
    result = invoke(files / "other.xml", "--pdb", files / "mine.pdb", "--frames", 1)
    assert result.exit_code == 0, result.output
    assert "RMSDForce                bridge    has no torch converter" in result.stdout
    assert "OpenMM has to evaluate this System" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alanine_dipeptid"], "did you mean 'alanine_dipeptide'"),
        (["alanine_dipeptide", "--frames", "0"], "--frames: expected a number >= 1"),
        (["alanine_dipeptide", "--pdb", "x.pdb"], "is for a serialised System"),
        (["{}/none.xml", "--pdb", "{}/mine.pdb"], "none.xml: no such file"),
        (["{}/alone/other.xml"], "name the structure with --pdb"),
        (["{}/mine.xml", "--pdb", "{}/short.pdb"], "22 particles, but"),
        (["{}/short.xml", "--pdb", "{}/mine.pdb"], "cannot be read as a serialised openmm.System"),
    ],
)
def test_wrong_input_is_one_line(files, words, message):
    (files / "alone").mkdir()
    shutil.copy(files / "mine.xml", files / "alone" / "other.xml")
    lines = (files / "mine.pdb").read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith(("ATOM", "HETATM")))
    kept = [line for line in [*lines[:first], *lines[first + 1 :]] if not line.startswith("CONECT")]
    (files / "short.pdb").write_text("\n".join(kept))
    (files / "short.xml").write_text((files / "mine.xml").read_text()[:500])
    result = invoke(*(word.replace("{}", str(files)) for word in words))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
