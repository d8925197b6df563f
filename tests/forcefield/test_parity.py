"""Energies and forces against OpenMM's Reference platform: per System and per force, eager and compiled."""

import openmm
import pytest
import torch

from boltzflow.forcefield import from_openmm

FLOAT64 = (1e-6, 1e-5)
# Rounding positions of some 0.5 nm to float32 moves a bond by 3e-8 nm, and a stiff bond (4e5 kJ/mol/nm^2) pushes back
# with 0.01 kJ/mol/nm; energies cancel to about 1 part in 10 of their largest terms.
FLOAT32 = (1e-4, 1e-2)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_whole_system(system, geometries, reference, errors, backend):
    forcefield = from_openmm(system)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    energy, force = errors(forcefield.energy_and_force(geometries), reference(system, geometries))
    assert energy < FLOAT64[0]
    assert force < FLOAT64[1]


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_float32(system, geometries, reference, errors, backend):
    forcefield = from_openmm(system, dtype=torch.float32)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    physical = geometries[:28]  # the others reach 1e20 kJ/mol, where float32 overflows on the way
    energy, force = forcefield.energy_and_force(physical)
    assert energy.dtype == torch.float64
    assert force.dtype == torch.float64
    du, df = errors((energy, force), reference(system, physical))
    assert du < FLOAT32[0]
    assert df < FLOAT32[1]


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_each_force(system, geometries, reference, errors, backend):
    """Alone, so that the huge Lennard-Jones term of a clash cannot hide an error of another."""
    clone = openmm.XmlSerializer.clone(system)
    for group, force in enumerate(clone.getForces()):
        force.setForceGroup(group)
    n_compared = 0
    for group in range(clone.getNumForces()):
        single = openmm.XmlSerializer.clone(clone)
        for other in reversed(range(clone.getNumForces())):
            if other != group:
                single.removeForce(other)
        forcefield = from_openmm(single)
        if not forcefield.terms:
            continue
        forcefield = forcefield.compiled() if backend == "compiled" else forcefield
        du, df = errors(forcefield.energy_and_force(geometries), reference(clone, geometries, group))
        assert du < FLOAT64[0], single.getForce(0)
        assert df < FLOAT64[1], single.getForce(0)
        n_compared += 1
    assert n_compared >= 4


@pytest.mark.parametrize("sasa", ["ACE", None])
@pytest.mark.parametrize("model", ["obc1", "obc2"])
def test_dielectrics_and_surface_term(make_system, geometries, reference, errors, model, sasa):
    system = make_system(model, sasaMethod=sasa, soluteDielectric=2.0, solventDielectric=60.0)
    forcefield = from_openmm(system)
    assert (forcefield.terms[-1].options["surface"] > 0) == (sasa == "ACE")
    du, df = errors(forcefield.energy_and_force(geometries), reference(system, geometries))
    assert du < FLOAT64[0]
    assert df < FLOAT64[1]
