"""Parameters as tensors: gradients against OpenMM with a changed parameter, many states at once, refusals."""

import math

import openmm
import pytest
import torch
from openmm import app

from boltzflow.errors import UnknownNameError
from boltzflow.forcefield import from_openmm
from boltzflow.forcefield.term import COULOMB
from tests.forcefield.waterbox import build as build_box
from tests.forcefield.waterbox import conformations, evaluate


def _force(system, kind):
    return next(force for force in system.getForces() if type(force).__name__ == kind)


def _bond(column):
    def edit(system, k, h):
        force = _force(system, "HarmonicBondForce")
        i, j, *values = (getattr(v, "_value", v) for v in force.getBondParameters(k))
        values[column] += h
        force.setBondParameters(k, i, j, *values)

    return edit


def _angle(column):
    def edit(system, k, h):
        force = _force(system, "HarmonicAngleForce")
        *atoms, theta0, stiffness = (getattr(v, "_value", v) for v in force.getAngleParameters(k))
        values = [theta0, stiffness]
        values[column] += h
        force.setAngleParameters(k, *atoms, *values)

    return edit


def _torsion(column):
    def edit(system, k, h):
        force = _force(system, "PeriodicTorsionForce")
        *atoms, n, phase, stiffness = (getattr(v, "_value", v) for v in force.getTorsionParameters(k))
        values = [phase, stiffness]
        values[column] += h
        force.setTorsionParameters(k, *atoms, n, *values)

    return edit


def _particle(column, kind="NonbondedForce"):
    def edit(system, k, h):
        force = _force(system, kind)
        values = [getattr(v, "_value", v) for v in force.getParticleParameters(k)]
        values[column] += h
        force.setParticleParameters(k, *values)

    return edit


def _exception(column):
    def edit(system, k, h):
        force = _force(system, "NonbondedForce")
        i, j, *values = (getattr(v, "_value", v) for v in force.getExceptionParameters(k))
        values[column] += h
        force.setExceptionParameters(k, i, j, *values)

    return edit


def _custom_gb(**change):
    """Change charge, or and sr of an atom by the given functions of their values."""

    def edit(system, k, h):
        force = _force(system, "CustomGBForce")
        values = list(force.getParticleParameters(k))
        steps = [change.get(name, lambda *_: 0.0)(values[1], values[2]) for name in ("charge", "rho", "s")]
        for column, step in enumerate(steps):
            values[column] += step * h
        force.setParticleParameters(k, values)

    return edit


def _solvent(system, k, h):
    force = _force(system, "GBSAOBCForce")
    force.setSolventDielectric(1 / (1 / force.getSolventDielectric() - h / COULOMB))


def _surface(system, k, h):
    force = _force(system, "GBSAOBCForce")
    force.setSurfaceAreaEnergy(force.getSurfaceAreaEnergy()._value + h / (4 * math.pi))


def _map(system, k, h):
    force = _force(system, "CMAPTorsionForce")
    size, values = force.getMapParameters(k // 24**2)
    values = [getattr(v, "_value", v) for v in values]
    values[k % 24**2] += h
    force.setMapParameters(k // 24**2, size, values)


CASES = [
    ("gbsaobc", "HarmonicBonds.k", (3,), _bond(1)),
    ("gbsaobc", "HarmonicBonds.r0", (5,), _bond(0)),
    ("gbsaobc", "HarmonicAngles.k", (4,), _angle(1)),
    ("gbsaobc", "HarmonicAngles.theta0", (7,), _angle(0)),
    ("gbsaobc", "PeriodicTorsions.k", (6,), _torsion(1)),
    ("gbsaobc", "PeriodicTorsions.phase", (9,), _torsion(0)),
    ("gbsaobc", "Nonbonded.charge", (6,), _particle(0)),
    ("gbsaobc", "Nonbonded.sigma", (8,), _particle(1)),
    ("gbsaobc", "Nonbonded.epsilon", (8,), _particle(2)),
    ("gbn2", "GeneralizedBorn.charge", (6,), _custom_gb(charge=lambda rho, s: 1.0)),
    ("gbn2", "GeneralizedBorn.scale", (8,), _custom_gb(s=lambda rho, s: rho)),
    ("gbsaobc", "GeneralizedBorn.charge", (4,), _particle(0, "GBSAOBCForce")),
    ("gbsaobc", "GeneralizedBorn.radius", (4,), _particle(1, "GBSAOBCForce")),
    ("gbsaobc", "GeneralizedBorn.scale", (4,), _particle(2, "GBSAOBCForce")),
    ("gbsaobc", "GeneralizedBorn.prefactor", (), _solvent),
    ("gbsaobc", "GeneralizedBorn.surface", (), _surface),
    ("gbn2", "CMAPTorsions.energies", None, _map),
]


def _derivative(system, reference, x, edit, row, step):
    """Fourth-order central difference of OpenMM's energy."""
    xml = openmm.XmlSerializer.serialize(system)
    total = 0.0
    for factor, weight in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
        changed = openmm.XmlSerializer.deserialize(xml)
        edit(changed, row, factor * step)
        total += weight * reference(changed, x)[0] / step
    return total


@pytest.mark.parametrize(("name", "parameter", "where", "edit"), CASES)
def test_gradients_agree_with_openmm(make_system, geometries, reference, name, parameter, where, edit):
    system, x = make_system(name), geometries[20:22]
    forcefield = from_openmm(system)
    value = forcefield.parameter_tensors()[parameter].clone().requires_grad_()
    energy = forcefield(x, parameters={parameter: value})
    torch.testing.assert_close(energy.detach(), forcefield(x), rtol=1e-13, atol=0)
    gradients = torch.stack([torch.autograd.grad(e, value, retain_graph=True)[0] for e in energy])
    if where is None:  # the node of the map that these conformations feel most
        where = (int(gradients.abs().sum(0).argmax()),)
    row = where[0] if where else None
    expected = _derivative(system, reference, x, edit, row, 1e-3 * float(value.detach()[where].abs()) or 1e-3)
    found = gradients[(slice(None), *where)]
    assert found.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("method", "parameter", "edit"),
    [
        (app.PME, "PeriodicNonbonded.charge", _particle(0)),
        (app.PME, "PeriodicNonbonded.sigma", _particle(1)),
        (app.CutoffPeriodic, "PeriodicNonbonded.epsilon", _particle(2)),
    ],
)
def test_gradients_in_a_box_agree_with_openmm(method, parameter, edit):
    """A change of sigma and epsilon changes the dispersion correction, which is part of the energy, as well."""
    system, x = build_box("tip3p", method), conformations("tip3p")[1:2]
    _force(system, "NonbondedForce").setNonbondedMethod(openmm.NonbondedForce.Ewald if method is app.PME else 2)
    forcefield = from_openmm(system)
    value = forcefield.parameter_tensors()[parameter].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(forcefield(x, parameters={parameter: value}).sum(), value)
    expected = _derivative(system, evaluate, x, edit, 30, 1e-3)
    torch.testing.assert_close(gradient[30:31], expected, rtol=1e-5, atol=1e-4)


def test_gradients_of_exceptions_custom_forces_and_globals(shipped, geometries):
    """Against differences of the torch energy, which the parity tests hold to OpenMM's."""
    bonds = openmm.CustomBondForce("a*(r-b)^2")
    bonds.addGlobalParameter("a", 30.0)
    bonds.addPerBondParameter("b")
    bonds.addBond(0, 10, [0.4])
    bonds.addBond(3, 12, [0.5])
    shipped = openmm.XmlSerializer.clone(shipped)
    shipped.addForce(bonds)
    other = openmm.CustomNonbondedForce("f(r)*q1*q2")
    other.addPerParticleParameter("q")
    other.addTabulatedFunction("f", openmm.Continuous1DFunction([1.0, 0.7, 0.2, 0.3], 0.0, 3.0))
    for k in range(22):
        other.addParticle([0.1 * (-1) ** k])
    shipped.addForce(other)
    forcefield, x = from_openmm(shipped), geometries[20:21]
    names = [
        *("Nonbonded.exception_parameters", "CustomBonds.parameter_values", "CustomBonds.global_values"),
        *("CustomPairs.parameter_values", "CustomPairs.table_values"),
    ]
    for name in names:
        value = forcefield.parameter_tensors()[name].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(forcefield(x, parameters={name: value}).sum(), value)
        row = int((gradient * value).detach().abs().argmax())
        step = torch.zeros(value.numel(), dtype=value.dtype)
        step[row] = 1e-4 * float(value.detach().flatten()[row].abs())
        both = torch.stack([value.detach() + sign * step.reshape(value.shape) for sign in (1, -1)])
        up, down = forcefield(x, parameters={name: both})[:, 0]
        torch.testing.assert_close(gradient.flatten()[row], (up - down) / (2 * step[row]), rtol=1e-6, atol=1e-8)


def test_many_states_are_evaluated_in_one_call(shipped, geometries):
    forcefield, x = from_openmm(shipped), geometries[:6]
    scale = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    own = forcefield.parameter_tensors()
    parameters = {
        "Nonbonded.charge": scale[:, None] * own["Nonbonded.charge"],
        "GeneralizedBorn.charge": scale[:, None] * own["GeneralizedBorn.charge"],
        "HarmonicBonds.k": 2 * own["HarmonicBonds.k"],
    }
    found = forcefield(x, parameters=parameters)
    torch.testing.assert_close(forcefield.compiled()(x, parameters=parameters), found, rtol=1e-11, atol=1e-9)
    for k in range(3):
        state = {name: value[k] if value.ndim > own[name].ndim else value for name, value in parameters.items()}
        other = forcefield.with_parameters(state)
        torch.testing.assert_close(found[k], other(x), rtol=1e-14, atol=0)
        torch.testing.assert_close(forcefield.compiled().with_parameters(state)(x), other(x), rtol=1e-11, atol=1e-9)
    calls = []
    for term in forcefield.terms:
        energy = term.energy
        term.energy = lambda *args, energy=energy, term=term: calls.append(type(term).__name__) or energy(*args)
    forcefield(x, parameters=parameters)
    assert sorted(calls) == ["HarmonicAngles", "PeriodicTorsions"]  # once each, whatever the number of states
    forcefield.chunk_bytes, forcefield._bytes = 2000, 1000
    for term in forcefield.terms:
        del term.energy
    torch.testing.assert_close(forcefield(x, parameters=parameters), found, rtol=1e-14, atol=0)


def test_second_derivatives_and_gradients_of_forces(shipped, geometries):
    """The force depends on a charge as the energy does: d/dq (dU/dx) against differences."""
    forcefield, x = from_openmm(shipped), geometries[20:21].clone().requires_grad_()
    charge = forcefield.parameter_tensors()["Nonbonded.charge"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(forcefield(x, parameters={"Nonbonded.charge": charge}).sum(), x, create_graph=True)
    (mixed,) = torch.autograd.grad(slope[0, 6, 1], charge)
    step = torch.zeros_like(charge)
    step[8] = 1e-4
    forces = [
        forcefield.with_parameters({"Nonbonded.charge": charge.detach() + s}).energy_and_force(x.detach())[1]
        for s in (step, -step)
    ]
    torch.testing.assert_close(mixed[8], (forces[1] - forces[0])[0, 6, 1] / 2e-4, rtol=1e-7, atol=0)


def test_an_uncharged_atom_has_a_gradient(shipped, geometries):
    """Pairs without an interaction are left out of the energy, but not out of its gradient."""
    forcefield, x = from_openmm(shipped), geometries[:1]
    none = torch.zeros(22, dtype=torch.float64)
    own = forcefield.parameter_tensors()["Nonbonded.charge"]
    at_zero = torch.where(torch.arange(22) == 6, 0.0, own)
    value = at_zero.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(forcefield(x, parameters={"Nonbonded.charge": value}).sum(), value)
    step = none.index_fill(0, torch.tensor([6]), 1e-3)
    up, down = forcefield(x, parameters={"Nonbonded.charge": torch.stack([at_zero + step, at_zero - step])})[:, 0]
    torch.testing.assert_close(gradient[6], (up - down) / 2e-3, rtol=1e-9, atol=0)
    fast = forcefield.with_parameters({"Nonbonded.charge": value}).compiled()
    (again,) = torch.autograd.grad(fast(x).sum(), value)  # what the kernel does not know goes through its eager twin
    assert torch.equal(again, gradient)


def test_unfit_parameters_are_refused(shipped, geometries):
    forcefield, x = from_openmm(shipped), geometries[:1]
    with pytest.raises(UnknownNameError, match=r"unknown parameter 'Nonbonded.charges'.*Nonbonded.charge"):
        forcefield(x, parameters={"Nonbonded.charges": torch.zeros(22)})
    with pytest.raises(ValueError, match=r"'HarmonicBonds.k' must be \(21,\).*found \(20,\)"):
        forcefield(x, parameters={"HarmonicBonds.k": torch.zeros(20)})
    states = {"HarmonicBonds.k": torch.zeros(2, 21), "HarmonicBonds.r0": torch.zeros(3, 21)}
    with pytest.raises(ValueError, match="has 3 states; expected 2"):
        forcefield(x, parameters=states)
    with pytest.raises(ValueError, match="a force field has one"):
        forcefield.with_parameters({"HarmonicBonds.k": torch.zeros(2, 21)})
