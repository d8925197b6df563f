"""u_kn: one call for any mix of states, one evaluation where only the temperature differs, straight into MBAR."""

import math

import numpy as np
import openmm
import pytest
import torch

from boltzflow import load_system
from boltzflow.errors import UnknownNameError
from boltzflow.forcefield import from_openmm
from boltzflow.statistics import mbar
from boltzflow.targets import Harmonic, ThermodynamicState, u_kn
from boltzflow.targets.molecule import kT


@pytest.fixture(scope="module")
def dipeptide():
    system = load_system("alanine_dipeptide")
    rng = torch.Generator().manual_seed(4)
    x = system.positions + 0.01 * torch.randn(5, 22, 3, generator=rng, dtype=torch.float64)
    return system, from_openmm(system.openmm_system), x


class Counted(torch.nn.Module):
    """A potential that counts its evaluations."""

    def __init__(self, potential):
        super().__init__()
        self.potential, self.calls = potential, 0

    def forward(self, positions):
        self.calls += 1
        return self.potential(positions)


def test_any_mix_of_states(dipeptide):
    system, forcefield, x = dipeptide
    half = 0.5 * forcefield.parameter_tensors()["Nonbonded.charge"]
    other = from_openmm(load_system("alanine_dipeptide").openmm_system).with_parameters({"Nonbonded.charge": half})
    states = [
        ThermodynamicState(forcefield, 300.0),
        ThermodynamicState(forcefield, 400.0, {"Nonbonded.charge": half, "GeneralizedBorn.surface": 1.5}),
        system.target,
        ThermodynamicState(other, 300.0),
        load_system("alanine_dipeptide@350").target,
        ThermodynamicState(forcefield, 300.0, {"Nonbonded.charge": half}),
    ]
    found = u_kn(states, x)
    assert found.dtype == torch.float64
    expected = [
        forcefield(x) / kT(300.0),
        forcefield(x, parameters={"Nonbonded.charge": half, "GeneralizedBorn.surface": torch.tensor(1.5)}) / kT(400.0),
        system.target.reduced_energy(system.target.state(x)),
        other(x) / kT(300.0),
        forcefield(x) / kT(350.0),
        other(x) / kT(300.0),
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)


def test_temperatures_share_an_evaluation(dipeptide):
    _, forcefield, x = dipeptide
    counted = Counted(forcefield)
    temperatures = torch.linspace(280.0, 600.0, 9, dtype=torch.float64, requires_grad=True)
    found = u_kn([ThermodynamicState(counted, t) for t in temperatures], x)
    assert counted.calls == 1
    (slope,) = torch.autograd.grad(found.sum(), temperatures)
    torch.testing.assert_close(slope, -found.sum(1) / temperatures, rtol=1e-12, atol=0)


def test_the_temperature_in_the_context_can_be_differentiated(dipeptide):
    system, _, x = dipeptide
    target, t = system.target, torch.tensor(320.0, dtype=torch.float64, requires_grad=True)
    u = target.reduced_energy(target.state(x), {"temperature": t})
    (slope,) = torch.autograd.grad(u.sum(), t)
    torch.testing.assert_close(slope, -u.sum() / t, rtol=1e-12, atol=0)
    energy, force = target.energy_and_force(target.state(x), {"temperature": t})
    assert not energy.requires_grad
    assert not force["positions"].requires_grad


def test_targets_of_other_kinds():
    one = Harmonic(torch.ones(2, dtype=torch.float64))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(u_kn([one], x)[0], one.reduced_energy(one.state(x)))


def test_mbar_over_force_constants_is_exact():
    """Three springs: ln Z = -3/2 ln k + const, from samples of each, in one call."""
    system = openmm.System()
    force = openmm.CustomExternalForce("0.5*k*(x^2+y^2+z^2)")
    force.addGlobalParameter("k", 100.0)
    system.addParticle(1.0)
    force.addParticle(0, [])
    system.addForce(force)
    forcefield, t, n = from_openmm(system), 300.0, 4000
    constants = [100.0, 160.0, 250.0]
    rng = torch.Generator().manual_seed(11)
    x = [math.sqrt(kT(t) / k) * torch.randn(n, 1, 3, generator=rng, dtype=torch.float64) for k in constants]
    states = [ThermodynamicState(forcefield, t, {"CustomBonds.global_values": torch.tensor([k])}) for k in constants]
    estimate = mbar(u_kn(states, torch.cat(x)), np.full(3, n)).estimate(0, 2)
    assert abs(estimate.z_score(1.5 * math.log(2.5))) < 4
    assert estimate.error < 0.05


def test_what_is_refused(dipeptide):
    _, forcefield, x = dipeptide
    with pytest.raises(UnknownNameError, match=r"unknown parameter 'lambda_sterics'"):
        u_kn([ThermodynamicState(forcefield, 300.0, {"lambda_sterics": 1.0})], x)
    with pytest.raises(ValueError, match="at least one state"):
        u_kn([], x)
