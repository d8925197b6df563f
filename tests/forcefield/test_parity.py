"""Energies and forces against OpenMM's Reference platform: per System and per force, eager and compiled."""

from pathlib import Path

import openmm
import pytest
import torch
from openmm import app, unit
from openmm.app.internal.customgbforces import GBSAOBC1Force

from boltzflow.forcefield import from_openmm
from boltzflow.systems import load_system

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
@pytest.mark.parametrize("model", ["obc1", "obc2", "gbn2"])
def test_dielectrics_and_surface_term(make_system, geometries, reference, errors, model, sasa):
    system = make_system(model, sasaMethod=sasa, soluteDielectric=2.0, solventDielectric=60.0)
    forcefield = from_openmm(system)
    assert (forcefield.terms[-1].surface > 0) == (sasa == "ACE")
    du, df = errors(forcefield.energy_and_force(geometries), reference(system, geometries))
    assert du < FLOAT64[0]
    assert df < FLOAT64[1]


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("kind", ["GBSAOBCForce", "CustomGBForce"])
def test_an_atom_inside_the_sphere_of_another(reference, errors, kind, backend):
    """The two forces treat it differently; spheres hardly larger than the atom keep the Born radii sensitive to it."""
    system = openmm.System()
    force = openmm.GBSAOBCForce() if kind == "GBSAOBCForce" else GBSAOBC1Force(SA="ACE")
    for charge, radius, scale in [(0.4, 0.1, 0.5), (-0.7, 0.14, 0.9), (0.3, 0.12, 0.8)]:
        system.addParticle(1.0)
        force.addParticle(*([charge, radius, scale] if kind == "GBSAOBCForce" else [[charge, radius, scale]]))
    if kind == "CustomGBForce":
        force.finalize()
    system.addForce(force)
    direction = torch.tensor([0.36, 0.48, 0.8], dtype=torch.float64)
    distances = torch.tensor([0.001, 0.005, 0.01, 0.02, 0.0269, 0.0271, 0.03, 0.1, 0.2, 0.5], dtype=torch.float64)
    x = torch.zeros(len(distances), 3, 3, dtype=torch.float64)
    x[:, 1] = distances[:, None] * direction
    x[:, 2, 0] = -0.3
    forcefield = from_openmm(system)
    assert (forcefield.terms[0].scaled_radius[1] - forcefield.terms[0].offset_radius[0]).item() == pytest.approx(0.0269)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(x), reference(system, x))
    assert du < FLOAT64[0]
    assert df < FLOAT64[1]


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_two_molecules(topology, minimised, reference, errors, backend):
    """Another number of atoms, and pairs that no bond connects."""
    modeller = app.Modeller(topology, minimised.numpy() * unit.nanometer)
    x = torch.cat([minimised, minimised + torch.tensor([0.0, 0.1, 0.45], dtype=torch.float64)])
    modeller.add(topology, x[22:].numpy() * unit.nanometer)
    system = app.ForceField("amber14-all.xml", "implicit/obc2.xml").createSystem(modeller.topology)
    noise = torch.randn(12, 44, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x = x + torch.tensor([0.002, 0.01, 0.05], dtype=torch.float64).repeat(4)[:, None, None] * noise
    forcefield = from_openmm(system)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(x), reference(system, x))
    assert du < FLOAT64[0]
    assert df < FLOAT64[1]


PRMTOP = Path(__file__).parents[1] / "preparation" / "data" / "alanine_dipeptide"


@pytest.mark.filterwarnings("ignore:Non-optimal GB parameters")  # the radii in the file are those of one model
@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("model", [app.HCT, app.OBC1, app.OBC2, app.GBn, app.GBn2])
def test_amber_topologies(reference, errors, model, backend):
    """AmberPrmtopFile makes other forces than the XML force fields do: GBSAOBCForce for OBC2, for one."""
    system = app.AmberPrmtopFile(f"{PRMTOP}.prmtop").createSystem(implicitSolvent=model)
    x = torch.tensor(app.AmberInpcrdFile(f"{PRMTOP}.inpcrd").getPositions(asNumpy=True)._value, dtype=torch.float64)
    x = x + 0.02 * torch.randn(4, *x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    forcefield = from_openmm(system)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(x), reference(system, x))
    assert du < FLOAT64[0]
    assert df < FLOAT64[1]


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_float32_of_a_large_molecule_is_off_by_the_rounding_of_positions_alone(errors, backend):
    """Against float64 at the positions that float32 can hold, so that a molecule far from the origin is no worse."""
    system = load_system("trp_cage")
    noise = torch.randn(2, 304, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = system.positions + torch.tensor([1e-4, 5e-3], dtype=torch.float64)[:, None, None] * noise + 3.0
    rounded = x.float().double()
    forcefield = from_openmm(system.openmm_system, dtype=torch.float32)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    energy, force = errors(
        forcefield.energy_and_force(x), from_openmm(system.openmm_system).compiled().energy_and_force(rounded)
    )
    assert energy < 1e-4
    assert force < 1e-3
