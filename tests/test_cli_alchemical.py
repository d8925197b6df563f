"""The command line along λ: folders with alchemical atoms, and a free energy against an exact integral."""

import json
import os
import subprocess
import sys

import numpy as np
import openmm
import pytest
import torch
import yaml
from openmm import app
from typer.testing import CliRunner

from boltzflow.cli import forcefield, init, simulate  # noqa: F401
from boltzflow.cli.app import app as commands
from boltzflow.forcefield import from_openmm
from boltzflow.preparation.folder import topology_text
from boltzflow.systems import load_system

STRUCTURE = load_system("alanine_dipeptide").folder / "topology.pdb"
SIDE_CHAIN = "resname ALA and (name CB HB1 HB2 HB3)"


@pytest.fixture(scope="module")
def bent(tmp_path_factory):
    """C-N-O on springs, whose ends attract and repel each other through space: two bonds and an angle tell it all."""
    folder = tmp_path_factory.mktemp("alchemical") / "bent"
    folder.mkdir()
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("CNO", topology.addChain())
    atoms = [topology.addAtom(name, app.element.get_by_symbol(name), residue) for name in "CNO"]
    bonds, angles, pairs = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.NonbondedForce()
    for mass, *parameters in ((12.0, 0.4, 0.34, 0.6), (14.0, -0.2, 0.32, 0.8), (16.0, -0.4, 0.3, 0.9)):
        system.addParticle(mass)
        pairs.addParticle(*parameters)
    for a, length, constant in ((0, 0.15, 60_000.0), (1, 0.16, 50_000.0)):
        topology.addBond(atoms[a], atoms[a + 1])
        bonds.addBond(a, a + 1, length, constant)
        pairs.addException(a, a + 1, 0, 1, 0)
    angles.addAngle(0, 1, 2, 1.9, 20.0)
    for force in (bonds, angles, pairs):
        system.addForce(force)
    relaxed = np.array([[0.15, 0, 0], [0, 0, 0], [0.16 * np.cos(1.9), 0.16 * np.sin(1.9), 0]])
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    (folder / "topology.pdb").write_text(topology_text(topology, relaxed))
    values = {"name": "bent", "description": "Three atoms", "temperature": 300.0, "alchemical": {"atoms": "name O"}}
    (folder / "system.yaml").write_text(yaml.safe_dump(values))
    return folder


def log_z(folder, lam):
    """ln of the integral of a^2 b^2 exp(-u) over the bonds a, b and the cosine of the angle, by Gauss's rule."""
    rules = [np.polynomial.legendre.leggauss(n) for n in (24, 24, 160)]
    bounds = [(0.09, 0.21), (0.10, 0.22), (-1.0, 1.0)]
    nodes = [(lo + hi) / 2 + (hi - lo) / 2 * x for (x, _), (lo, hi) in zip(rules, bounds, strict=True)]
    weights = [(hi - lo) / 2 * w for (_, w), (lo, hi) in zip(rules, bounds, strict=True)]
    a, b, cosine = (torch.from_numpy(part).flatten() for part in np.meshgrid(*nodes, indexing="ij"))
    x = torch.zeros(len(a), 3, 3, dtype=torch.float64)
    x[:, 0, 0], x[:, 2, 0], x[:, 2, 1] = a, b * cosine, b * (1 - cosine**2).sqrt()
    target = load_system(f"{folder}@lambda={lam}").target
    u = target.reduced_energy(target.state(x)).numpy()
    measure = np.einsum("i,j,k->ijk", weights[0] * nodes[0] ** 2, weights[1] * nodes[1] ** 2, weights[2]).ravel()
    return np.log(measure @ np.exp(u.min() - u)) - u.min()


def test_a_free_energy_along_lambda_against_an_integral(bent):
    words = ["free-energy", "--from", f"{bent}@lambda=1", "--to", f"{bent}@lambda=0", "--method", "mbar", "-n", "800"]
    words += ["--chains", "100", "--burn-in", "20", "--max-temperature", "1", "--seed", "1", "--json"]
    # a process of its own: as a user runs it
    ran = subprocess.run([sys.executable, "-m", "boltzflow", *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    exact = log_z(bent, 1) - log_z(bent, 0)
    assert exact > 20
    assert found["error"] < 0.1
    assert abs(found["delta_f"] - exact) < 4 * found["error"]
    assert [row["alchemical_lambda"] for row in found["states"]] == [1.0, 0.5, 0.0]
    assert any("1 alchemical atoms: charges first, then cores" in note for note in found["diagnostics"]["notes"])


def invoke(*words):
    return CliRunner().invoke(commands, [str(word) for word in words])


def test_init_writes_the_alchemical_atoms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("init", "ala", "--pdb", STRUCTURE, "--alchemical", SIDE_CHAIN)
    assert result.exit_code == 0, result.output
    assert "alchemical   4 atoms" in result.stdout
    assert "boltzflow free-energy --from ala@lambda=1 --to ala@lambda=0" in result.stdout
    system = load_system("ala")
    assert system.definition.alchemical.atoms == SIDE_CHAIN
    assert [system.topology.atom(k).name for k in system.alchemical_atoms] == ["CB", "HB1", "HB2", "HB3"]
    readme = (tmp_path / "ala" / "README.md").read_text()
    assert f"| alchemical atoms | 4, `{SIDE_CHAIN}`; λ" in readme
    assert f"--alchemical '{SIDE_CHAIN}'" in readme
    x = system.positions[None]
    gone = load_system("ala@lambda=0").potential(x)
    assert not torch.isclose(gone, system.potential(x))
    moved = x.clone()
    moved[:, list(system.alchemical_atoms)] += 5.0
    pairs = ("Nonbonded", "GeneralizedBorn")
    bonded = [term for term in from_openmm(system.openmm_system).terms if type(term).__name__ not in pairs]
    change = sum(float(term(moved) - term(x)) for term in bonded)
    assert float(load_system("ala@lambda=0").potential(moved) - gone) == pytest.approx(change, rel=1e-9)


@pytest.mark.parametrize(
    ("selection", "message"),
    [("resname WAT", "'resname WAT' are 0 of 22"), ("all", "are 22 of 22"), ("nonsense 3", "no selection of atoms")],
)
def test_selections_that_select_nothing_leave_nothing(tmp_path, monkeypatch, selection, message):
    monkeypatch.chdir(tmp_path)
    result = invoke("init", "ala", "--pdb", STRUCTURE, "--alchemical", selection)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert os.listdir() == []


@pytest.mark.parametrize(
    "words",
    [
        ["forcefield", "check", "{}@lambda=0.5"],
        ["simulate", "{}@lambda=0.5", "--method", "md", "-n", "20", "-o", "{}.h5"],
    ],
)
def test_what_openmm_does_not_know_is_refused(bent, words):
    """OpenMM's System has all interactions: it must not stand for another lambda."""
    result = CliRunner().invoke(commands, [word.replace("{}", str(bent)) for word in words])
    assert result.exit_code == 2
    assert "the openmm.System has all interactions of the alchemical atoms; leave lambda out," in result.stderr
    assert not bent.with_suffix(".h5").exists()
