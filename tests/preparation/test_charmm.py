"""CHARMM force fields from OpenMM's XML: patches, caps and templates that are alike."""

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from boltzflow.errors import FormatError
from boltzflow.generators.internal import _domain
from boltzflow.preparation import prepare
from boltzflow.preparation.build import build_system
from boltzflow.preparation.sequence import from_sequence


@pytest.fixture(scope="module")
def charmm():
    return app.ForceField("charmm36.xml")


@pytest.fixture(scope="module")
def dipeptide(charmm):
    return from_sequence("ACE ALA NME", forcefield=charmm)


def energy(system, positions):
    """kJ/mol."""
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(positions)
    return context.getState(energy=True).getPotentialEnergy()._value


def as_one_residue(topology, name):
    copied = app.Topology()
    residue = copied.addResidue(name, copied.addChain())
    atoms = [copied.addAtom(atom.name, atom.element, residue) for atom in topology.atoms()]
    for a, b in topology.bonds():
        copied.addBond(atoms[a.index], atoms[b.index])
    return copied


def test_patched_caps_have_the_energy_of_the_residue_that_is_the_whole_molecule(charmm, dipeptide):
    topology, positions = dipeptide
    with pytest.raises(Exception, match="Multiple non-identical"):
        charmm.createSystem(topology)
    patched = energy(build_system(topology, charmm), positions)
    whole = energy(build_system(as_one_residue(topology, "ALAD"), charmm), positions)
    other = energy(build_system(as_one_residue(topology, "AANM"), charmm), positions)
    assert patched == pytest.approx(whole, abs=1e-6)
    assert abs(patched - other) > 1.0


@pytest.mark.parametrize("sequence", ["ACE PRO HIS NME", "ACE CYS NH2 | GGH", "ACE GLY NME | ACE LYS NME"])
def test_chains_with_caps(charmm, sequence):
    topology, positions = from_sequence(sequence, forcefield=charmm)
    system = build_system(topology, charmm)
    charges = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    total = sum(charges.getParticleParameters(k)[0]._value for k in range(system.getNumParticles()))
    assert total == pytest.approx(round(total), abs=1e-6)
    assert np.isfinite(energy(system, positions))


def test_missing_hydrogens_are_named_and_caps_are_not(charmm, dipeptide):
    topology, positions = dipeptide
    model = app.Modeller(topology, positions * unit.nanometer)
    model.delete([atom for atom in topology.atoms() if atom.element.symbol == "H"])
    with pytest.raises(FormatError, match=r"missing hydrogens in 1 residues: 1:ALA2 lacks"):
        build_system(model.topology, charmm)


def test_dipeptide_has_widths_of_its_bonded_terms(tmp_path):
    system = prepare(tmp_path / "ala", sequence="ACE ALA NME", forcefield="charmm36.xml")
    expected = energy(system.openmm_system, system.positions.numpy())
    assert system.potential(system.positions[None])[0].item() == pytest.approx(expected, abs=1e-5)
    domain = _domain(system)
    sibling = torch.as_tensor(~system.zmatrix.proper)
    for widths, least, most in [
        (domain.bond_std, 0.002, 0.004),
        (domain.angle_std, 0.04, 0.08),
        (domain.torsion_std[sibling], 0.08, 0.25),
    ]:
        assert least < widths.min() <= widths.max() < most
