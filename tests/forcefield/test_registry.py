"""What the converters know, what they refuse, and how a user adds a force."""

import logging

import openmm
import pytest
import torch
from openmm import app

from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import ForceField, Term, from_openmm, register_force, registry


def _with(system: openmm.System, force: openmm.Force) -> openmm.System:
    clone = openmm.XmlSerializer.clone(system)
    clone.addForce(force)
    return clone


def test_unknown_force_is_named(shipped):
    force = openmm.GayBerneForce()
    force.setForceGroup(7)
    with pytest.raises(UnsupportedForceError, match=r"GayBerneForce \(force 6, group 7\)"):
        from_openmm(_with(shipped, force))


def test_forces_without_energy_are_ignored_aloud(shipped, caplog):
    with caplog.at_level(logging.INFO, logger="boltzflow"):
        forcefield = from_openmm(_with(shipped, openmm.MonteCarloBarostat(1.0, 300.0)))
    assert len(forcefield.terms) == 5
    messages = [record.message for record in caplog.records]
    assert any("CMMotionRemover (force 5" in message for message in messages)
    assert any("MonteCarloBarostat (force 6" in message for message in messages)


def test_a_mesh_for_lennard_jones_is_refused(make_system):
    system = make_system("vacuum")
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setNonbondedMethod(force.LJPME)
    with pytest.raises(UnsupportedForceError, match=r"NonbondedForce \(force \d.*method LJPME is not known"):
        from_openmm(system)


@pytest.mark.parametrize(
    "kind", ["AmoebaMultipoleForce", "AmoebaVdwForce", "DrudeForce", "CustomHbondForce", "RMSDForce"]
)
def test_polarisable_and_other_forces_are_refused(shipped, kind):
    arguments = {"CustomHbondForce": ("distance(a1,d1)",), "RMSDForce": ([(0.0, 0.0, 0.0)] * 22,)}.get(kind, ())
    force = getattr(openmm, kind)(*arguments)
    with pytest.raises(UnsupportedForceError, match=rf"{kind} \(force 6, group 0\) has no torch converter"):
        from_openmm(_with(shipped, force))


def test_constraints_are_reported_and_do_not_change_the_energy(make_system, geometries, reference, errors):
    system = make_system("obc1", constraints=app.HBonds)
    forcefield = from_openmm(system)
    assert forcefield.n_constraints == 12
    du, df = errors(forcefield.energy_and_force(geometries), reference(system, geometries))
    assert du < 1e-6
    assert df < 1e-5


class Tether(Term):
    def __init__(self, *, k: torch.Tensor) -> None:
        super().__init__({"k": k})

    def energy(self, x, r):
        return (self.k * x.square().sum((0, 1))).double()


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_user_adds_a_force(shipped, geometries, reference, errors, monkeypatch, backend):
    monkeypatch.setattr(registry, "CONVERTERS", dict(registry.CONVERTERS))

    @register_force("CustomExternalForce")
    def convert(force, system, dtype):
        return Tether(k=torch.tensor(force.getGlobalParameterDefaultValue(0), dtype=dtype))

    force = openmm.CustomExternalForce("k*(x^2+y^2+z^2)")
    force.addGlobalParameter("k", 12.5)
    for atom in range(22):
        force.addParticle(atom)
    system = _with(shipped, force)
    forcefield = ForceField.from_state(from_openmm(system).to_state())
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(geometries), reference(system, geometries))
    assert du < 1e-6
    assert df < 1e-5
