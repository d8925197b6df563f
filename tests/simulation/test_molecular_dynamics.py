"""OpenMM dynamics: equipartition of a harmonic system, shapes, units, seeds."""

import math

import openmm
import pytest
import torch
from openmm import unit

from boltzflow.errors import UnitError
from boltzflow.simulation.molecular_dynamics import faster_platform, molecular_dynamics
from boltzflow.statistics.chains import statistical_inefficiency
from boltzflow.targets.molecule import kT


@pytest.fixture
def trap():
    """Two particles, each in a harmonic well of 500 kJ/mol/nm²."""
    system = openmm.System()
    force = openmm.CustomExternalForce("250*(x^2+y^2+z^2)")
    for k in range(2):
        system.addParticle(12.0)
        force.addParticle(k, [])
    system.addForce(force)
    return system


def test_energies_are_those_of_a_harmonic_system_at_the_temperature(trap):
    result = molecular_dynamics(
        trap,
        torch.zeros(2, 3),
        temperature=300 * unit.kelvin,
        n_frames=2000,
        stride=20,
        n_replicas=3,
        n_equilibration=1000,
        step=0.01,
        friction=20.0,
        seed=4,
    )
    x, u = result.samples["positions"], result.reduced_energies
    assert x.shape == (2000, 3, 2, 3)
    torch.testing.assert_close(u, 250 * x.square().sum((-1, -2)) / kT(300.0), rtol=1e-4, atol=1e-4)
    g = statistical_inefficiency(list(u.T))
    z = (float(u.mean()) - 3) / (float(u.std()) * math.sqrt(g / u.numel()))
    assert abs(z) < 3.5
    assert not torch.equal(x[:, 0], x[:, 1])
    assert result.ledger.n_force() == 3 * (1000 + 2000 * 20)
    assert result.frames[-1] == 40_000
    assert result.diagnostics["series"]["reduced_energy"]["split_r_hat"] < 1.05


def test_a_seed_repeats_the_run(trap):
    runs = [
        molecular_dynamics(
            trap,
            torch.zeros(2, 3),
            temperature=300.0,
            n_frames=5,
            stride=10,
            n_equilibration=10,
            seed=seed,
            platform="Reference",
        )
        for seed in (7, 7, 8)
    ]
    assert torch.equal(runs[0].samples["positions"], runs[1].samples["positions"])
    assert not torch.equal(runs[0].samples["positions"], runs[2].samples["positions"])


def test_platform_choice_and_bad_settings(trap):
    assert faster_platform(trap, torch.zeros(2, 3).numpy(), n_forces=2) in ("Reference", "CPU")
    with pytest.raises(UnitError):
        molecular_dynamics(trap, torch.zeros(2, 3), temperature=-1.0, n_frames=1, stride=1)
    with pytest.raises(ValueError, match="n_frames"):
        molecular_dynamics(trap, torch.zeros(2, 3), temperature=300.0, n_frames=0, stride=1)
