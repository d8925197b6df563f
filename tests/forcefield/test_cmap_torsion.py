"""CMAP and Ryckaert-Bellemans torsions against OpenMM, and the splines beneath."""

import openmm
import pytest
import torch

from boltzflow.forcefield import ForceField, from_openmm

QUADRUPLES = [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (5, 1, 3, 0), (6, 2, 0, 4)]


def _system(force: openmm.Force) -> openmm.System:
    system = openmm.System()
    for _ in range(7):
        system.addParticle(12.0)
    system.addForce(force)
    return system


def _cmap() -> openmm.CMAPTorsionForce:
    rng = torch.Generator().manual_seed(6)
    force = openmm.CMAPTorsionForce()
    for size in (24, 7, 3):
        force.addMap(size, (10 * torch.randn(size * size, generator=rng, dtype=torch.float64)).tolist())
    for k, first in enumerate(QUADRUPLES):
        force.addTorsion(k % 3, *first, *QUADRUPLES[(k + 1) % 5])
    return force


def _ryckaert_bellemans() -> openmm.RBTorsionForce:
    force = openmm.RBTorsionForce()
    for atoms, k in zip(QUADRUPLES, torch.randn(5, 6, generator=torch.Generator().manual_seed(7)), strict=True):
        force.addTorsion(*atoms, *k.tolist())
    return force


@pytest.fixture(scope="module", params=[_cmap, _ryckaert_bellemans])
def single(request) -> openmm.System:
    return _system(request.param())


@pytest.fixture(scope="module")
def random_positions() -> torch.Tensor:
    return 0.3 * torch.randn(60, 7, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_parity(single, random_positions, reference, errors, backend):
    forcefield = ForceField.from_state(from_openmm(single).to_state())
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(random_positions), reference(single, random_positions))
    assert du < 1e-9
    assert df < 1e-7


def test_float32(single, random_positions, reference, errors):
    du, df = errors(
        from_openmm(single, dtype=torch.float32).energy_and_force(random_positions), reference(single, random_positions)
    )
    assert du < 1e-4
    assert df < 1e-3


def test_derivatives(single, random_positions):
    forcefield = from_openmm(single)
    x = random_positions[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(forcefield, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(forcefield, x, fast_mode=True, atol=1e-3)


def test_near_the_borders_of_the_cells(reference, errors):
    """Just beside 0, 180 and -180 degrees, where the cell of an angle changes and wraps around.

    OpenMM takes the angle from a sine of 1e-6 there, which costs it six digits.
    """
    system = _system(_cmap())
    flat = torch.tensor(
        [[0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [2, 1, 0], [2, 2, 0], [1, 2, 0]], dtype=torch.float64
    )
    noise = torch.randn(20, 7, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x = 0.15 * flat + 1e-7 * noise
    du, df = errors(from_openmm(system).energy_and_force(x), reference(system, x))
    assert du < 1e-8
    assert df < 1e-6


def test_a_straight_line_has_a_finite_force(single):
    x = torch.zeros(1, 7, 3, dtype=torch.float64)
    x[0, :, 0] = 0.1 * torch.arange(7)
    energy, force = from_openmm(single).energy_and_force(x)
    assert energy.isfinite().all()
    assert force.isfinite().all()


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_nan_stays_in_its_row(single, random_positions, backend):
    forcefield = from_openmm(single)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    x = random_positions[:3].clone()
    x[1, 2, 0] = float("nan")
    assert forcefield(x).isnan().tolist() == [False, True, False]
