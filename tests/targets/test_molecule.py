"""Molecules: temperature in energy and force, sectors, non-finite positions, and both back-ends."""

import numpy as np
import openmm
import pytest
import torch
from openmm import unit

from boltzflow.errors import UnitError
from boltzflow.forcefield import OpenMMPotential, from_openmm
from boltzflow.generators import Generator
from boltzflow.run import Run, make_rng
from boltzflow.targets import Gaussian, MoleculeTarget
from boltzflow.targets.molecule import as_temperature, kT
from boltzflow.testing import assert_equivariant, assert_target

N = 4


def make_system():
    """Four charged atoms in a chain."""
    system = openmm.System()
    bonds, angles, nonbonded = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.NonbondedForce()
    torsions = openmm.PeriodicTorsionForce()
    for i in range(N):
        system.addParticle(12.0)
        nonbonded.addParticle(0.2 * (-1) ** i, 0.3, 0.4)
    for i in range(N - 1):
        bonds.addBond(i, i + 1, 0.15, 2e5)
        nonbonded.addException(i, i + 1, 0.0, 0.3, 0.0)
    for i in range(N - 2):
        angles.addAngle(i, i + 1, i + 2, 1.9, 400.0)
        nonbonded.addException(i, i + 2, 0.0, 0.3, 0.0)
    torsions.addTorsion(0, 1, 2, 3, 3, 0.0, 5.0)
    for force in (bonds, angles, torsions, nonbonded):
        system.addForce(force)
    return system


POSITIONS = torch.tensor([[0.0, 0.15, 0.0], [0.0, 0.0, 0.0], [0.14, -0.04, 0.0], [0.18, -0.1, 0.13]]).double()


def frames(n=5, scale=0.01):
    return POSITIONS + scale * torch.randn(n, N, 3, generator=make_rng(0), dtype=torch.float64)


def handed(positions):
    a, b, c = (positions[:, i] - positions[:, 1] for i in (0, 2, 3))
    return (torch.linalg.cross(a, b) * c).sum(1) < 0


@pytest.fixture(scope="module")
def potential():
    return from_openmm(make_system())


def make(potential, **options):
    return MoleculeTarget(potential, **{"n_atoms": N, "temperature": 300, "name": "chain", **options})


def test_the_contract_holds_at_every_temperature(potential):
    target = make(potential, sector=handed)
    state = target.state(frames(40))
    inside = state.index(target.in_sector(state["positions"]))
    assert_target(target, make_rng(0), state=inside, contexts=(None, {"temperature": 450.0}, {"other": 1}))


def test_temperature_divides_energy_and_force(potential):
    target, x = make(potential), frames()
    kelvin = {"temperature": 600 * unit.kelvin}
    state = target.state(x)
    energy = potential(x)
    assert torch.allclose(target.reduced_energy(state), energy / kT(300.0), rtol=1e-12)
    u, force = target.energy_and_force(state, kelvin)
    assert torch.allclose(u, energy / kT(600.0), rtol=1e-12)
    assert torch.allclose(force["positions"], 0.5 * target.energy_and_force(state)[1]["positions"], rtol=1e-12)
    assert kT(300.0) == pytest.approx(
        (unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin).value_in_unit(unit.kilojoule_per_mole), rel=1e-9
    )


@pytest.mark.parametrize("value", [300, 300.0, np.float32(300), torch.tensor(300.0), 300 * unit.kelvin])
def test_temperatures_come_in_many_types(value, potential):
    assert as_temperature(value) == make(potential, temperature=value).temperature == 300.0


@pytest.mark.parametrize(
    "value", [0, -1.0, float("nan"), float("inf"), True, "300", None, 1 * unit.nanometer, torch.ones(2), 1e6]
)
def test_what_is_no_temperature_is_refused(value, potential):
    with pytest.raises(UnitError, match="expected a positive number of kelvin"):
        make(potential, temperature=value)
    target = make(potential)
    state = target.state(frames())
    with pytest.raises(UnitError, match="expected a positive number of kelvin"):
        target.reduced_energy(state, {"temperature": value})


def test_outside_the_sector_the_energy_is_infinite(potential):
    target, x = make(potential, sector=handed), frames()
    x = torch.cat([x, x * torch.tensor([1.0, 1.0, -1.0])])
    inside = handed(x)
    assert inside.sum() == 5
    u = target.reduced_energy(target.state(x))
    assert torch.equal(torch.isfinite(u), inside)
    assert torch.isposinf(u[~inside]).all()
    assert torch.equal(target.energy_and_force(target.state(x))[0], u)
    # the mirror image has the same energy without the sector
    free = make(potential)
    assert torch.allclose(free.reduced_energy(free.state(x))[~inside], u[inside], rtol=1e-9)
    assert_equivariant(lambda p: target.reduced_energy(target.state(p)), x[inside], rng=make_rng(1))


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
@pytest.mark.parametrize("with_sector", [False, True])
def test_non_finite_positions_get_infinite_energy_and_are_counted(potential, spoilt, with_sector):
    target = make(potential, sector=handed if with_sector else None)
    x = frames()
    x[2, 1, 0] = spoilt
    run = Run(make_rng(0))
    for u in (run.evaluate(target, target.state(x))[0], run.evaluate_with_force(target, target.state(x))[0]):
        assert torch.isposinf(u[2])
        assert torch.isfinite(u[[0, 1, 3, 4]]).all()
    assert run.ledger.as_dict()["nonfinite"] == {"chain": 2}


def test_rows_without_energy_spoil_no_gradient(potential):
    target = make(potential)
    x = frames()
    x[1, 0] = torch.nan
    x.requires_grad_()
    u = Run(make_rng(0)).differentiable_energy(target, target.state(x))
    assert torch.isposinf(u[1])
    torch.where(torch.isfinite(u), u, 0.0).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[1].any()
    assert x.grad[0].any()


def test_both_back_ends_give_the_same_numbers(potential):
    other = OpenMMPotential(make_system(), platform="Reference", n_workers=1)
    torch_target, openmm_target = make(potential), make(other)
    x = frames()
    x[3] = torch.nan
    state, context = torch_target.state(x), {"temperature": 350.0}
    run = Run(make_rng(0), context)
    rows = [0, 1, 2, 4]
    u, force, _ = run.evaluate_with_force(torch_target, state)
    v, other_force, _ = run.evaluate_with_force(openmm_target, state)
    assert torch.isposinf(u[3])
    assert torch.isposinf(v[3])
    assert torch.allclose(u[rows], v[rows], rtol=1e-6)
    f, g = force["positions"][rows], other_force["positions"][rows]
    assert ((f - g).norm(dim=2) / (1 + f.square().sum(2).mean().sqrt())).max() < 1e-5
    leaf = x[rows].requires_grad_()
    gradients = [
        torch.autograd.grad(t.reduced_energy(t.state(leaf)).sum(), leaf)[0] for t in (torch_target, openmm_target)
    ]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-3)


def test_a_generator_draws_from_it(potential):
    base = Gaussian((N, 3), mean=POSITIONS, scale=0.003, name="positions").double()
    ensemble = Generator(base, []).sample(200, make(potential, sector=handed), seed=1)
    assert ensemble.provenance.ledger["energy"] == {"chain": 200}
    assert np.isfinite(ensemble.log_weights).all()


def test_a_periodic_box_keeps_translations_alone():
    """And virtual sites have no coordinates of their own."""
    system = make_system()
    nonbonded = system.getForce(3)
    nonbonded.setNonbondedMethod(nonbonded.Ewald)
    nonbonded.setCutoffDistance(0.7)
    system.setDefaultPeriodicBoxVectors(*(1.5 * np.eye(3)))
    target = make(from_openmm(system).compiled())
    assert target.dimension == 3 * N - 3
    assert target.measure == "cartesian modulo translations"
    state = target.state(frames())
    u, force = target.energy_and_force(state)
    torch.testing.assert_close(u, target.potential(frames()) / kT(300.0))
    moved = target.state(frames() + torch.tensor([0.4, 3.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(target.reduced_energy(moved), u, rtol=1e-9, atol=1e-9)
    assert force["positions"].sum(1).abs().max() < 1e-6
    system = make_system()
    system.addParticle(0.0)
    system.getForce(3).addParticle(0.0, 0.3, 0.0)
    system.setVirtualSite(N, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    assert make(from_openmm(system), n_atoms=N + 1).dimension == 3 * N - 6
