"""Systems: the registry, what a folder holds, fingerprints, recorded energies, and work without OpenMM."""

import math
import shutil
import subprocess
import sys

import mdtraj
import numpy as np
import openmm
import pytest
import torch

from boltzflow.errors import CheckpointMismatchError, FormatError, UnitError, UnknownNameError
from boltzflow.io.checkpoint import Checkpoint
from boltzflow.io.config import RunConfig
from boltzflow.systems import cache_folder, list_systems, load_system, probe_positions


@pytest.fixture(scope="module")
def alanine():
    return load_system("alanine_dipeptide")


@pytest.fixture
def copy(alanine, tmp_path):
    """A folder of the user's own, with the same system."""
    folder = tmp_path / "mine"
    shutil.copytree(alanine.folder, folder)
    return folder


def edit(folder, old, new):
    path = folder / "system.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_registry_is_the_folder_listing(alanine):
    assert "alanine_dipeptide" in list_systems()
    assert (alanine.name, alanine.n_atoms, alanine.dimension, alanine.temperature) == (
        "alanine_dipeptide",
        22,
        60,
        300.0,
    )


def test_bonds_and_elements_are_those_of_the_molecule(alanine):
    assert len(alanine.bonds) == 21
    assert sorted(alanine.elements) == sorted([1] * 12 + [6] * 6 + [7] * 2 + [8] * 2)


def test_soft_torsions_are_phi_psi_and_the_other_rotors(alanine):
    proper = {
        tuple(sorted(row[1:3]))
        for row, soft in zip(alanine.zmatrix.torsion_atoms.tolist(), alanine.zmatrix.proper, strict=True)
        if soft
    }
    names = {tuple(sorted(str(alanine.topology.atom(i)).split("-")[1] for i in pair)) for pair in proper}
    assert names == {("C", "CH3"), ("C", "N"), ("CA", "N"), ("C", "CA"), ("CA", "CB")}
    assert len(proper) == 7


@pytest.mark.parametrize("wrong", ["alanine_dipeptid", "alanine", "dialanine_peptide"])
def test_unknown_name_is_answered_with_the_nearest(wrong):
    with pytest.raises(UnknownNameError, match=r"did you mean .*'alanine_dipeptide'"):
        load_system(wrong)


def test_temperature(alanine):
    hot = load_system("alanine_dipeptide@350")
    assert hot.temperature == 350.0
    assert hot.name == "alanine_dipeptide@350"
    assert hot.fingerprint == alanine.fingerprint
    assert load_system(hot.name).name == hot.name
    assert load_system("alanine_dipeptide", temperature=350 * openmm.unit.kelvin).temperature == 350.0
    x = hot.target.state(alanine.positions[None])
    torch.testing.assert_close(hot.target.reduced_energy(x) * 350, alanine.target.reduced_energy(x) * 300)


@pytest.mark.parametrize("temperature", [0.0, -300.0, math.nan, math.inf, "300"])
def test_impossible_temperature(temperature):
    with pytest.raises(UnitError, match="kelvin"):
        load_system("alanine_dipeptide", temperature=temperature)


def test_temperature_that_is_no_number():
    with pytest.raises(FormatError, match="NAME@TEMPERATURE"):
        load_system("alanine_dipeptide@warm")


def test_energies_are_those_of_openmm(alanine):
    context = openmm.Context(
        alanine.openmm_system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    x = probe_positions(alanine.positions, 4)
    expected = []
    for frame in x:
        context.setPositions(frame.numpy())
        expected.append(context.getState(getEnergy=True).getPotentialEnergy()._value)
    np.testing.assert_allclose(alanine.potential(x).numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(alanine.definition.energies, expected, rtol=1e-9)


def test_target_is_zero_outside_its_sector(alanine):
    x = torch.stack([alanine.positions, alanine.positions * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)])
    u = alanine.target.reduced_energy(alanine.target.state(x))
    assert torch.isfinite(u).tolist() == [True, False]
    assert alanine.sector.n_copies == 8
    assert "8 Z(sector)" in alanine.target.sector_description


def test_float32_force_field_returns_float64():
    system = load_system("alanine_dipeptide", dtype=torch.float32)
    energy = system.potential(system.positions[None])
    assert energy.dtype == torch.float64
    assert float(energy[0]) == pytest.approx(system.definition.energies[0], abs=1e-2)


def test_folder_of_the_users_own(copy, alanine):
    edit(copy, "name: alanine_dipeptide", "name: mine")
    system = load_system(copy)
    assert system.name == "mine"
    assert system.fingerprint == alanine.fingerprint
    assert load_system(f"{copy}@310").temperature == 310.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("temperature: 300.0", "temprature: 300.0", "did you mean 'temperature'"),
        ("temperature: 300.0", "temperature: cold", "temperature.*'cold'"),
        ("system: system.xml", "system: other.xml", "other.xml missing"),
        ("name: alanine_dipeptide", "name: [", "not valid YAML"),
    ],
)
def test_wrong_definition_names_the_key(copy, old, new, message):
    edit(copy, old, new)
    with pytest.raises(FormatError, match=message):
        load_system(copy)


def test_folder_without_definition(tmp_path):
    with pytest.raises(FormatError, match=r"no system\.yaml"):
        load_system(tmp_path)


def test_another_system_has_another_fingerprint_and_other_energies(copy, alanine):
    system = openmm.XmlSerializer.deserialize((copy / "system.xml").read_text())
    bonds = next(f for f in system.getForces() if isinstance(f, openmm.HarmonicBondForce))
    i, j, length, k = bonds.getBondParameters(0)
    bonds.setBondParameters(0, i, j, length * 1.01, k)
    (copy / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    changed = load_system(copy)
    assert changed.fingerprint != alanine.fingerprint
    with pytest.raises(FormatError, match="do not belong together"):
        changed.potential  # noqa: B018


def test_system_and_topology_of_different_size_are_named(copy):
    path = copy / "topology.pdb"
    lines = path.read_text().splitlines(keepends=True)
    last = max(k for k, line in enumerate(lines) if line.startswith(("ATOM", "HETATM")))
    path.write_text("".join(lines[:last] + lines[last + 1 :]))
    with pytest.raises(
        FormatError, match=r"system\.xml has 22 particles, but topology\.pdb has 21 atoms; give matching"
    ):
        load_system(copy).potential  # noqa: B018


def test_damaged_cache_is_made_anew(alanine, monkeypatch, tmp_path):
    monkeypatch.setenv("BOLTZFLOW_CACHE_DIR", str(tmp_path))
    expected = load_system("alanine_dipeptide").potential(alanine.positions[None])
    (cached,) = (cache_folder() / "forcefields").iterdir()
    cached.write_bytes(b"rubbish")
    torch.testing.assert_close(
        load_system("alanine_dipeptide").potential(alanine.positions[None]), expected, rtol=0, atol=0
    )
    assert cached.stat().st_size > 1000


def test_cache_that_cannot_be_written_is_no_obstacle(alanine, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BOLTZFLOW_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert torch.isfinite(load_system("alanine_dipeptide").potential(alanine.positions[None])).all()


def test_torch_force_field_works_without_openmm_once_cached(alanine, cache_folder):
    assert torch.isfinite(alanine.potential(alanine.positions[None])).all()
    code = """
import sys
sys.modules["openmm"] = None
import boltzflow as bf
system = bf.load_system("alanine_dipeptide")
target = system.target
u, force = target.energy_and_force(target.state(system.positions[None]))
print(float(u[0] * 300.0 * 0.00831446261815324))
"""
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) == pytest.approx(alanine.definition.energies[0], rel=1e-9)


def test_recipes(alanine):
    assert alanine.definition.recipe in alanine.recipes
    for name in alanine.recipes:
        assert alanine.recipe(name).system == "alanine_dipeptide"
    with pytest.raises(UnknownNameError, match="spline_flow"):
        alanine.recipe("spline_flows")


def test_recipe_without_checkpoint_says_how_to_make_one(copy):
    edit(copy, "recipe: spline_flow", "recipe: spline_flow\ndata: data")
    with pytest.raises(FileNotFoundError, match="boltzflow train"):
        load_system(copy).load_generator()


def test_topology_travels_with_the_target(alanine):
    assert isinstance(alanine.target.topology, mdtraj.Topology)


def test_checkpoint_of_another_system_is_refused(alanine):
    checkpoint = Checkpoint(
        RunConfig(system="other"), system="other", fingerprint="0" * 64, temperature=300.0, parameters={}
    )
    with pytest.raises(CheckpointMismatchError, match="'other'"):
        alanine.generator_from(checkpoint)
