"""The XML of a System without OpenMM."""

import openmm
import pytest
import torch
from openmm import app

from boltzflow.errors import FormatError
from boltzflow.forcefield import read_serialized
from boltzflow.forcefield.constraints import read_constraints
from tests.forcefield.waterbox import build


@pytest.mark.parametrize("method", [app.NoCutoff, app.CutoffNonPeriodic, app.CutoffPeriodic, app.Ewald, app.PME])
@pytest.mark.parametrize("rigid", [True, False])
def test_size_and_box(method, rigid):
    omm = build("tip4pew", method, rigidWater=rigid)
    found = read_serialized(openmm.XmlSerializer.serialize(omm))
    assert (found.n_particles, found.n_sites) == (omm.getNumParticles(), omm.getNumParticles() // 4)
    assert found.n_constraints == omm.getNumConstraints() == (3 * found.n_sites if rigid else 0)
    expected = read_constraints(omm)
    assert (found.constraints is None) == (expected is None)
    for mine, theirs in zip(found.constraints or (), expected or (), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-15, atol=0)
    assert (found.box is not None) == omm.usesPeriodicBoundaryConditions()
    assert found.dimension == 9 * found.n_sites - found.n_constraints - (6 if found.box is None else 3)
    if found.box is not None:
        assert found.box.tolist() == [list(vector._value) for vector in omm.getDefaultPeriodicBoxVectors()]


def test_periodic_bonds_alone():
    omm = openmm.System()
    omm.addParticle(1.0)
    bonds = openmm.HarmonicBondForce()
    omm.addForce(bonds)
    assert read_serialized(openmm.XmlSerializer.serialize(omm)).box is None
    bonds.setUsesPeriodicBoundaryConditions(True)
    assert read_serialized(openmm.XmlSerializer.serialize(omm)).box is not None


@pytest.mark.parametrize(("text", "message"), [("<System", "not valid XML"), ("<State/>", "found 'State'")])
def test_other_files_are_refused(text, message):
    with pytest.raises(FormatError, match=message):
        read_serialized(text)
