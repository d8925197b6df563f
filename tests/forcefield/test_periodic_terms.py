"""Bonded terms, Custom forces and implicit solvents between nearest images in a triclinic box."""

import openmm
import pytest
import torch
from openmm import app, unit

from boltzflow.forcefield import ForceField, from_openmm
from tests.forcefield.waterbox import evaluate

BOX = torch.tensor([[2.0, 0.0, 0.0], [0.7, 1.9, 0.0], [-0.6, 0.5, 1.8]], dtype=torch.float64)
CUTOFF = 0.6


@pytest.fixture(scope="module")
def scattered(geometries) -> torch.Tensor:
    """Atoms moved by whole boxes, each for itself."""
    rng = torch.Generator().manual_seed(5)
    x = geometries[:24]
    return x + torch.randint(-2, 3, x.shape, generator=rng).double() @ BOX


def _agree(system, positions, errors, tolerance: float = 1e-10) -> ForceField:
    system.setDefaultPeriodicBoxVectors(*BOX.tolist())
    forcefield = ForceField.from_state(from_openmm(system).to_state())
    assert forcefield.periodic
    assert torch.equal(forcefield.box, BOX)
    du, df = errors(forcefield.energy_and_force(positions), evaluate(system, positions))
    assert du < tolerance
    assert df < tolerance
    du, df = errors(forcefield.compiled().energy_and_force(positions), forcefield.energy_and_force(positions))
    assert du == df == 0
    return forcefield


def _system(force: openmm.Force) -> openmm.System:
    system = openmm.System()
    for _ in range(22):
        system.addParticle(12.0)
    system.addForce(force)
    return system


def test_bonded_terms(make_system, scattered, errors):
    """As in the force field of a polymer that is bonded to its own image."""
    system = make_system("vacuum")
    for k in reversed(range(system.getNumForces())):
        if hasattr(system.getForce(k), "setUsesPeriodicBoundaryConditions"):
            system.getForce(k).setUsesPeriodicBoundaryConditions(True)
        else:
            system.removeForce(k)
    assert system.getNumForces() == 3
    forcefield = _agree(system, scattered, errors)
    x = scattered[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(forcefield, x, eps=1e-7, rtol=1e-5, atol=1e-3, fast_mode=True)


@pytest.mark.parametrize("kind", ["RBTorsionForce", "CMAPTorsionForce"])
def test_other_torsions(scattered, errors, kind):
    force = getattr(openmm, kind)()
    if kind == "RBTorsionForce":
        force.addTorsion(1, 6, 9, 14, 1.0, 0.5, -0.3, 0.2, 0.7, -0.4)
    else:
        angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
        force.addMap(8, (angle.sin() + 2 * angle[:, None].cos()).flatten().tolist())
        force.addTorsion(0, 4, 6, 8, 14, 6, 8, 14, 16)
    force.setUsesPeriodicBoundaryConditions(True)
    _agree(_system(force), scattered, errors)


CUSTOM = {
    "bond": (lambda: openmm.CustomBondForce("3*(r-0.2)^2+r^4"), [(0, 5), (7, 20)]),
    "angle": (lambda: openmm.CustomAngleForce("cos(theta)+theta^2"), [(0, 5, 9), (7, 20, 1)]),
    "torsion": (lambda: openmm.CustomTorsionForce("cos(2*theta+0.3)"), [(0, 5, 9, 14), (7, 20, 1, 2)]),
    "compound": (
        lambda: openmm.CustomCompoundBondForce(
            4,
            "distance(p1,p3)^2*cos(angle(p1,p2,p3))+cos(dihedral(p1,p2,p3,p4))"
            "+pointdistance(x1,y1,z1,x4,y4,z4)+pointangle(x1,y1,z1,x2,y2,z2,x4,y4,z4)",
        ),
        [([0, 5, 9, 14],), ([7, 20, 1, 2],)],
    ),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_bonds(scattered, errors, name):
    make, rows = CUSTOM[name]
    force = make()
    for row in rows:
        getattr(force, "addBond" if name in ("bond", "compound") else f"add{name.title()}")(*row)
    force.setUsesPeriodicBoundaryConditions(True)
    _agree(_system(force), scattered, errors)


def test_centroids(scattered, errors):
    force = openmm.CustomCentroidBondForce(2, "distance(g1,g2)^2")
    force.addGroup([0, 1, 2])
    force.addGroup([9, 20])
    force.addBond([0, 1])
    force.setUsesPeriodicBoundaryConditions(True)
    _agree(_system(force), scattered, errors)


def test_restraints_to_places_in_the_box(scattered, errors):
    force = openmm.CustomExternalForce("k*periodicdistance(x,y,z,0.1,0.2,1.7)^2")
    force.addPerParticleParameter("k")
    for atom in range(22):
        force.addParticle(atom, [1.0 + atom])
    _agree(_system(force), scattered, errors, 1e-6)  # OpenMM has this function in single precision


@pytest.mark.parametrize("switch", [0.0, 0.4])
def test_custom_pairs(scattered, errors, switch):
    force = openmm.CustomNonbondedForce("q1*q2*exp(-3*r)/r")
    force.addPerParticleParameter("q")
    for atom in range(22):
        force.addParticle([0.3 * (-1) ** atom + 0.01 * atom])
    force.addExclusion(0, 21)
    force.setNonbondedMethod(force.CutoffPeriodic)
    force.setCutoffDistance(CUTOFF)
    force.setUseSwitchingFunction(switch > 0)
    force.setSwitchingDistance(switch or 0.1)
    forcefield = _agree(_system(force), scattered, errors)
    with pytest.raises(ValueError, match=r"twice the cutoff of 0\.6 nm"):
        forcefield(scattered, 0.6 * BOX)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", ["gbsaobc", "obc2", "gbn2", "hct"])
def test_implicit_solvents(make_system, scattered, errors, monkeypatch, name, known):
    """By the terms of their own, and by the compiler of expressions."""
    if not known:
        monkeypatch.setattr("boltzflow.forcefield.custom_generalized_born.recognise", lambda force, dtype: None)
    cut = {"nonbondedMethod": app.CutoffNonPeriodic, "nonbondedCutoff": CUTOFF * unit.nanometer}
    system = make_system(name, **cut)
    for k in reversed(range(system.getNumForces())):
        force = system.getForce(k)
        if isinstance(force, openmm.GBSAOBCForce | openmm.CustomGBForce):
            force.setNonbondedMethod(force.CutoffPeriodic)
        else:
            system.removeForce(k)
    assert system.getNumForces() == 1
    _agree(system, scattered[:8], errors)
