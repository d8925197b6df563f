"""Custom forces on fixed sets of atoms against OpenMM: parity, derivatives, storage, and bad expressions."""

import math

import openmm
import pytest
import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import ForceField, from_openmm

N_ATOMS = 7


def _system(force: openmm.Force) -> openmm.System:
    system = openmm.System()
    for atom in range(N_ATOMS):
        system.addParticle(1.0 + atom)
    system.addForce(force)
    return system


def _flat_bottom() -> openmm.Force:
    force = openmm.CustomBondForce("0.5*k*max(0, r-r0)^2")
    force.addGlobalParameter("r0", 0.4)
    force.addPerBondParameter("k")
    for i, j, k in [(0, 1, 3e3), (2, 5, 2e2), (1, 6, 10.0)]:
        force.addBond(i, j, [k])
    return force


def _restraint() -> openmm.Force:
    force = openmm.CustomBondForce("0.5 * k * max(0, r-r0)^2")
    force.addPerBondParameter("k")
    force.addPerBondParameter("r0")
    for i, j, k, r0 in [(0, 1, 3e3, 0.4), (2, 5, 2e2, 0.2), (1, 6, 10.0, 0.7)]:
        force.addBond(i, j, [k, r0])
    return force


def _morse() -> openmm.Force:
    force = openmm.CustomBondForce("D*(1-exp(-a*(r-r0)))^2 + select(step(r-0.2), 1/r, 5) + erfc(r)/r; a=20; D=depth*2")
    force.addPerBondParameter("depth")
    force.addPerBondParameter("r0")
    for i, j in [(0, 1), (2, 5), (1, 6)]:
        force.addBond(i, j, [10.0 * (1 + i), 0.1 + 0.01 * j])
    return force


def _cosine_angle() -> openmm.Force:
    force = openmm.CustomAngleForce("0.5*k*(cos(theta)-cos(theta0))^2 + min(theta, 2)")
    force.addPerAngleParameter("k")
    force.addPerAngleParameter("theta0")
    force.addAngle(0, 1, 2, [100.0, 1.9])
    force.addAngle(3, 6, 2, [50.0, 1.1])
    return force


def _charmm_improper() -> openmm.Force:
    force = openmm.CustomTorsionForce("k*min(dtheta, 2*pi-dtheta)^2; dtheta = abs(theta-theta0); pi = 3.1415926535")
    force.addPerTorsionParameter("k")
    force.addPerTorsionParameter("theta0")
    force.addTorsion(0, 1, 2, 3, [80.0, 0.3])
    force.addTorsion(2, 6, 4, 1, [500.0, 3.0])
    return force


def _external() -> openmm.Force:
    force = openmm.CustomExternalForce("k*((x-x0)^2+y^4-z) + 0.1*max(0, sqrt(x^2+y^2+z^2)-0.3)^1.5")
    force.addGlobalParameter("k", 7.0)
    force.addPerParticleParameter("x0")
    for atom in (0, 3, 6):
        force.addParticle(atom, [0.1 * atom])
    return force


def _compound() -> openmm.Force:
    force = openmm.CustomCompoundBondForce(
        4,
        "k*(angle(p1,p2,p3)-1.9)^2 + 5*distance(p1, p4)^2*cos(3*dihedral(p1,p2,p3,p4)) + x1*y2 - z4"
        "+ pointdistance(x1,y1,z1,(x2+x3)/2,(y2+y3)/2,(z2+z3)/2) + pointangle(x1,y1,z1,0,0,0,x4,y4,1)"
        "+ sin(pointdihedral(x1,y1,z1,x2,y2,z2,x3,y3,z3,0,0.1,z4)) + f(distance(p2,p3)) + g(x1,y1)",
    )
    force.addPerBondParameter("k")
    force.addTabulatedFunction("f", openmm.Continuous1DFunction([1.0, 3.0, -2.0, 0.5, 0.0], 0.1, 0.9))
    force.addTabulatedFunction(
        "g", openmm.Continuous2DFunction(4, 3, torch.linspace(-1, 2, 12).sin().tolist(), -2, 2, -2, 2)
    )
    force.addBond([0, 1, 2, 3], [3.0])
    force.addBond([4, 2, 6, 5], [8.0])
    return force


def _centroids() -> openmm.Force:
    force = openmm.CustomCentroidBondForce(3, "k*(distance(g1,g2)-0.3)^2 + angle(g1,g2,g3) + x3^2")
    force.addPerBondParameter("k")
    force.addGroup([0, 1, 2])
    force.addGroup([3, 4], [1.0, 3.0])
    force.addGroup([5, 6, 0])
    force.addBond([0, 1, 2], [10.0])
    force.addBond([2, 0, 1], [4.0])
    return force


FORCES = [_flat_bottom, _restraint, _morse, _cosine_angle, _charmm_improper, _external, _compound, _centroids]


@pytest.fixture(scope="module", params=FORCES)
def single(request) -> openmm.System:
    return _system(request.param())


@pytest.fixture(scope="module")
def random_positions() -> torch.Tensor:
    """Most of molecular size, the last ones crowded into a fortieth of it."""
    x = 0.3 * torch.randn(50, N_ATOMS, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return torch.cat([x, x[:10] / 40])


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_parity(single, random_positions, reference, errors, backend):
    forcefield = ForceField.from_state(from_openmm(single).to_state())
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(random_positions), reference(single, random_positions))
    assert du < 1e-8  # OpenMM takes angles from their cosine, which costs half of the digits near 0 and 180 degrees
    assert df < 1e-6


def test_float32(single, random_positions, reference, errors):
    physical = random_positions[:50]
    forcefield = from_openmm(single, dtype=torch.float32)
    energy, force = forcefield.energy_and_force(physical)
    assert energy.dtype == torch.float64
    du, df = errors((energy, force), reference(single, physical))
    assert du < 1e-4
    assert df < 1e-3


def test_derivatives(single, random_positions):
    forcefield = from_openmm(single)
    x = random_positions[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(forcefield, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(forcefield, x, fast_mode=True, atol=1e-3)


def test_save_and_load(single, random_positions, tmp_path):
    forcefield = from_openmm(single)
    forcefield.save(tmp_path / "forcefield.pt")
    loaded = ForceField.load(tmp_path / "forcefield.pt")
    assert torch.equal(loaded(random_positions), forcefield(random_positions))
    assert loaded.float().dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("force", [_flat_bottom, _cosine_angle, _charmm_improper, _external, _centroids])
def test_coinciding_atoms_have_finite_energies_and_forces(force, dtype):
    energy, force = from_openmm(_system(force()), dtype=dtype).energy_and_force(torch.zeros(1, N_ATOMS, 3))
    assert energy.isfinite().all()
    assert force.isfinite().all()


def test_the_branch_that_is_not_taken_leaves_no_trace():
    """1/x, its logarithm and roots of negative numbers in a branch, to second order."""
    force = openmm.CustomExternalForce("select(step(x-0.5), 1/(x-0.5)+log(x-0.5)+sqrt(x-0.5), x^2)")
    force.addParticle(0)
    forcefield = from_openmm(_system(force))
    x = torch.zeros(3, N_ATOMS, 3, dtype=torch.float64)
    x[:, 0, 0] = torch.tensor([0.0, 0.2, 0.7], dtype=torch.float64)
    x.requires_grad_()
    energy = forcefield(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    h = 0.7 - 0.5
    expected = [[0.0, 0.04, 1 / h + math.log(h) + math.sqrt(h)]]
    expected.append([0.0, 0.4, -1 / h**2 + 1 / h + 0.5 / math.sqrt(h)])
    expected.append([2.0, 2.0, 2 / h**3 - 1 / h**2 - 0.25 * h**-1.5])
    found = torch.stack([energy, gradient[:, 0, 0], second[:, 0, 0]])
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_no_value_is_infinite_and_nan_positions_are_nan():
    force = openmm.CustomBondForce("sqrt(r-0.2)")
    force.addBond(0, 1)
    x = torch.zeros(3, N_ATOMS, 3)
    x[:, 1, 0] = torch.tensor([0.1, 1.2, float("nan")])
    energy = from_openmm(_system(force))(x)
    torch.testing.assert_close(
        energy, torch.tensor([math.inf, 1.0, math.nan], dtype=torch.float64), equal_nan=True, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("expression", "match"),
    [
        ("k*rr^2", r"CustomBondForce \(force 0, group 3\): .*'k\*rr\^2'.*unknown variable 'rr'; did you mean 'r'"),
        ("k*besselj(r)", "unknown function 'besselj'"),
        ("k*(r", r"'\)' is missing"),
        ("k*r r", "unexpected 'r'"),
        ("sqrt(r, 2)", "'sqrt' takes 1 arguments; found 2"),
        ("k*r; 2*k", r"the definition '2\*k' has no name"),
        ("k*r*", "ends where a value is expected"),
        ("k*1.2.3", "'1.2.3' is not a number"),
        ("k*__import__('os')", "unknown function '__import__'"),
    ],
)
def test_bad_expressions_are_named(expression, match):
    force = openmm.CustomBondForce(expression)
    force.addPerBondParameter("k")
    force.addBond(0, 1, [1.0])
    force.setForceGroup(3)
    with pytest.raises(UnsupportedForceError, match=match):
        from_openmm(_system(force))


def test_what_is_not_supported_is_refused():
    force = openmm.CustomCompoundBondForce(2, "distance(p1,p3)")
    with pytest.raises(UnsupportedForceError, match="'p3', which is none of p1, p2"):
        from_openmm(_system(force))


def test_the_kernel_takes_restraints_and_leaves_out_what_is_empty():
    system = _system(_restraint())
    system.addForce(openmm.CustomTorsionForce("theta"))
    compiled = from_openmm(system).compiled()
    if compiled.backend == "eager":
        pytest.skip("no C++ compiler")
    compiled(torch.zeros(1, N_ATOMS, 3))
    assert compiled._kernel.rest is None


def test_parameter_derivatives_are_ignored_aloud(caplog):
    force = _flat_bottom()
    force.addEnergyParameterDerivative("r0")
    with caplog.at_level("INFO", logger="boltzflow"):
        from_openmm(_system(force))
    assert "parameter derivatives" in caplog.text
