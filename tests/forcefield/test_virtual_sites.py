"""Virtual sites: water models that have them, each kind alone, their derivatives, and what is refused."""

import openmm
import pytest
import torch
from openmm import app

from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import ForceField, OpenMMPotential, from_openmm
from tests.forcefield.waterbox import build, conformations, evaluate

SITES = {
    "two": lambda: openmm.TwoParticleAverageSite(0, 2, 0.3, 0.7),
    "three": lambda: openmm.ThreeParticleAverageSite(1, 2, 3, 0.5, 0.2, 0.3),
    "plane": lambda: openmm.OutOfPlaneSite(0, 1, 2, 0.4, 0.2, 3.0),
    "local": lambda: openmm.LocalCoordinatesSite(
        [0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4], [-1, 0.5, 0.25, 0.25], [0.2, 0.3, -1, 0.5], (0.1, -0.2, 0.15)
    ),
    "local three": lambda: openmm.LocalCoordinatesSite(
        1, 0, 2, openmm.Vec3(1, 0, 0), openmm.Vec3(-1, 1, 0), openmm.Vec3(-1, 0, 1), openmm.Vec3(0.02, 0.03, 0.0)
    ),
}


def _system(*kinds: str) -> openmm.System:
    """Four charged particles in a row, and sites of theirs."""
    system, force = openmm.System(), openmm.NonbondedForce()
    for k in range(4 + len(kinds)):
        system.addParticle(12.0 if k < 4 else 0.0)
        force.addParticle(0.3 * (-1) ** k * (1 + 0.1 * k), 0.02 + 0.001 * k, 0.4)
    for k, kind in enumerate(kinds):
        system.setVirtualSite(4 + k, SITES[kind]())
    system.addForce(force)
    return system


def _positions(n: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(4)
    corners = torch.tensor([[0, 0, 0], [0.3, 0, 0], [0, 0.4, 0.1], [0.1, 0.2, 0.5]], dtype=torch.float64)
    x = torch.cat([corners, torch.full((n - 4, 3), torch.nan, dtype=torch.float64)])
    return x + 0.03 * torch.randn(6, n, 3, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("kinds", [*((kind,) for kind in SITES), tuple(SITES)], ids="+".join)
def test_each_kind(errors, kinds):
    """What stands in the rows of the sites is not read, not even NaN."""
    system = _system(*kinds)
    x = _positions(4 + len(kinds))
    forcefield = ForceField.from_state(from_openmm(system).to_state())
    found = forcefield.energy_and_force(x)
    expected = evaluate(system, x.nan_to_num(0.0))
    du, df = errors(found, expected)
    assert du < 1e-12
    assert df < 1e-12
    assert (found[1][:, 4:] == 0).all()
    fast = forcefield.compiled()
    assert torch.equal(fast.energy_and_force(x)[1], found[1])
    du, df = errors(OpenMMPotential(system, platform="Reference").energy_and_force(x.nan_to_num(0.0)), expected)
    assert du == df == 0


def test_derivatives():
    forcefield = from_openmm(_system(*SITES))
    x = _positions(9).nan_to_num(0.0)[:2].requires_grad_()
    assert torch.autograd.gradcheck(forcefield, x, eps=1e-6, rtol=1e-5, atol=1e-3, fast_mode=True)
    assert torch.autograd.gradgradcheck(forcefield, x, eps=1e-6, rtol=1e-4, atol=1e-2, fast_mode=True)


@pytest.mark.parametrize("method", [app.CutoffPeriodic, app.Ewald])
@pytest.mark.parametrize("model", ["tip4pew", "tip5p"])
def test_water(errors, model, method):
    system = build(model, method)
    assert any(system.isVirtualSite(k) for k in range(5))
    x = conformations(model)
    forcefield = ForceField.from_state(from_openmm(system).to_state())
    du, df = errors(forcefield.energy_and_force(x), evaluate(system, x))
    assert du < (1e-10 if method is app.CutoffPeriodic else 2e-7)
    assert df < (1e-10 if method is app.CutoffPeriodic else 2e-7)


def test_what_is_not_known_is_refused():
    system = _system("two", "two")
    system.setVirtualSite(5, openmm.TwoParticleAverageSite(0, 4, 0.5, 0.5))
    with pytest.raises(UnsupportedForceError, match="particle 5 is a virtual site of particle 4, which is one itself"):
        from_openmm(system)
