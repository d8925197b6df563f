"""Periodic boxes: nonbonded interactions and their sums over waves, bonded terms, and boxes that are refused."""

import itertools
import logging

import openmm
import pytest
import torch
from openmm import app

from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import ForceField, from_openmm, pme_offset
from tests.forcefield.waterbox import CUTOFF, box_of, build, conformations, evaluate, solvate


def _nonbonded(system: openmm.System) -> openmm.NonbondedForce:
    return next(force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))


@pytest.mark.parametrize("switch", [None, 0.6])
@pytest.mark.parametrize(("method", "tolerance"), [(app.CutoffPeriodic, 1e-10), (app.Ewald, 2e-7)])
def test_water_and_an_ion(errors, method, tolerance, switch):
    """Also that molecules may be moved by whole boxes, and that the ion's charge is neutralised as by OpenMM."""
    system = build("tip3p", method, ion=True, switchDistance=switch)
    assert sum(_nonbonded(system).getParticleParameters(k)[0]._value for k in range(601)) == pytest.approx(1.0)
    x = conformations("tip3p", ion=True)
    forcefield = ForceField.from_state(from_openmm(system).to_state())
    du, df = errors(forcefield.energy_and_force(x), evaluate(system, x))
    assert du < tolerance
    assert df < tolerance
    energy = forcefield(x)
    torch.testing.assert_close(energy, forcefield.compiled()(x), rtol=1e-13, atol=0)
    torch.testing.assert_close(energy[1:2], forcefield(x[1:2]), rtol=1e-13, atol=0)


@pytest.mark.parametrize("method", [app.CutoffPeriodic, app.PME])
def test_triclinic_boxes(errors, method):
    """With a cutoff at which OpenMM's Reference platform finds every pair: near half the width it misses some."""
    system = build("tip3p", method, "octahedron", nonbondedCutoff=0.6, ewaldErrorTolerance=1e-7)
    x = conformations("tip3p", "octahedron")[:2]
    forcefield = from_openmm(system)
    assert (forcefield.box.tril(-1) != 0).any()
    du, df = errors(forcefield.energy_and_force(x), evaluate(system, x))
    assert du < (1e-10 if method is app.CutoffPeriodic else 1e-6)
    assert df < (1e-10 if method is app.CutoffPeriodic else 1e-5)


def test_nearest_images_are_the_nearest():
    system = build("tip3p", app.CutoffPeriodic, "octahedron")
    x = conformations("tip3p", "octahedron")[0]
    term = next(term for term in from_openmm(system).terms if type(term).__name__ == "PeriodicNonbonded")
    box = box_of(solvate("tip3p", "octahedron")[0])
    i, j = term.ij
    shortest = torch.full((len(i),), torch.inf, dtype=torch.float64)
    for shift in itertools.product((-2, -1, 0, 1, 2), repeat=3):
        image = x[i] - x[j] + torch.tensor(shift, dtype=torch.float64) @ box
        shortest = torch.minimum(shortest, image.norm(dim=1))
    a, b, _ = term._near(x.T[..., None], box[:, :, None, None])
    near = shortest < CUTOFF
    assert torch.equal(torch.stack([a, b]), term.ij[:, near])


def test_an_ewald_sum_does_not_depend_on_its_split():
    """Longer direct sums with fewer waves give the same energy, also in a triclinic box."""
    x = conformations("tip3p", "octahedron")[:1]
    energies = []
    for cutoff in (0.5, 0.7, 0.9):
        system = build("tip3p", app.PME, "octahedron", nonbondedCutoff=cutoff)
        for k in range(600):
            charge, sigma, _ = _nonbonded(system).getParticleParameters(k)
            _nonbonded(system).setParticleParameters(k, charge, sigma, 0.0)
        energies.append(from_openmm(system)(x).item())
    assert max(energies) - min(energies) < 1e-6 * abs(energies[0])


def test_each_conformation_in_its_own_box(errors):
    system = build("tip3p", app.Ewald)
    x = conformations("tip3p")
    scale = torch.tensor([1.0, 1.01, 1.03], dtype=torch.float64)[:, None, None]
    box = scale * box_of(solvate("tip3p")[0])
    forcefield = from_openmm(system)
    du, df = errors(forcefield.energy_and_force(scale * x, box), evaluate(system, scale * x, box))
    assert du < 2e-7
    assert df < 2e-7
    assert torch.equal(forcefield(x), forcefield(x, box[0]))
    for row in range(3):
        torch.testing.assert_close(
            forcefield(scale * x, box)[row : row + 1],
            forcefield((scale * x)[row : row + 1], box[row]),
            rtol=1e-12,
            atol=0,
        )


@pytest.mark.parametrize("method", [app.CutoffPeriodic, app.Ewald])
def test_derivatives(method):
    """With respect to positions, twice, and to the box."""
    system = build("tip3p", method, switchDistance=0.6)
    _nonbonded(system).setReactionFieldDielectric(1e12)  # a force without a step at the cutoff
    forcefield = from_openmm(system)
    x = conformations("tip3p")[1:2].requires_grad_()
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(forcefield(x).sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * v).sum(), x)
    h = 1e-8  # so that hardly a pair crosses the cutoff, where the second derivative has a step
    ahead, behind = (forcefield.energy_and_force(x.detach() + sign * h * v)[1] for sign in (1, -1))
    torch.testing.assert_close(product, (behind - ahead) / (2 * h), rtol=1e-5, atol=1.0)
    energies = [forcefield(x.detach() + sign * h * v) for sign in (1, -1)]
    torch.testing.assert_close((gradient * v).sum(), (energies[0] - energies[1])[0] / (2 * h), rtol=1e-6, atol=0.1)
    h = 1e-6
    box = forcefield.box.clone().requires_grad_()
    (pull,) = torch.autograd.grad(forcefield(x.detach(), box).sum(), box)
    step = h * torch.eye(3, dtype=torch.float64)
    energies = [forcefield(x.detach(), forcefield.box + sign * step) for sign in (1, -1)]
    torch.testing.assert_close((pull * step).sum() / h, (energies[0] - energies[1])[0] / (2 * h), rtol=1e-5, atol=1e-2)


def test_float32(errors):
    system = build("tip3p", app.Ewald)
    x = conformations("tip3p")
    du, df = errors(from_openmm(system, dtype=torch.float32).energy_and_force(x), evaluate(system, x))
    assert du < 1e-4
    assert df < 1e-3


def test_nan_stays_in_its_row():
    forcefield = from_openmm(build("tip3p", app.Ewald))
    x = conformations("tip3p")
    x[1, 7, 2] = float("nan")
    energy, force = forcefield.energy_and_force(x)
    assert energy.isnan().tolist() == [False, True, False]
    assert force[[0, 2]].isfinite().all()


def test_the_offset_of_pme_is_measured_and_reported(caplog):
    system = build("tip3p", app.PME, ewaldErrorTolerance=5e-4)
    x = conformations("tip3p")[:2]
    with caplog.at_level(logging.INFO, logger="boltzflow"):
        expected = evaluate(system, x)[0] - from_openmm(system)(x)
        offset = pme_offset(system, x)
    torch.testing.assert_close(offset, expected, rtol=1e-6, atol=1e-6)
    assert 1e-3 < offset.abs().max() < 2.0
    messages = [record.message for record in caplog.records]
    assert any("NonbondedForce: PME" in m or "PME is evaluated by a converged Ewald sum" in m for m in messages)
    assert any("kJ/mol (mean of 2) from the Ewald sum" in m for m in messages)
    with pytest.raises(UnsupportedForceError, match="no NonbondedForce with PME"):
        pme_offset(build("tip3p", app.Ewald), x)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("method", [app.CutoffPeriodic, app.Ewald])
def test_exceptions_between_images(errors, method, inside):
    """Molecules that a boundary cuts apart: with and without periodic exceptions and bonds."""
    system = build("tip3p", method, nonbondedCutoff=0.6)
    _nonbonded(system).setExceptionsUsePeriodicBoundaryConditions(inside)
    for k, exception in enumerate(itertools.islice(range(_nonbonded(system).getNumExceptions()), 20)):
        i, j, *_ = _nonbonded(system).getExceptionParameters(exception)
        _nonbonded(system).setExceptionParameters(exception, i, j, 0.01 * k, 0.2, 0.1)
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce | openmm.HarmonicAngleForce):
            force.setUsesPeriodicBoundaryConditions(inside)
    box = box_of(solvate("tip3p")[0])
    x = conformations("tip3p")[:2]
    x = x - (x / box.diagonal()).floor() * box.diagonal()
    du, df = errors(from_openmm(system).energy_and_force(x), evaluate(system, x))
    assert du < (1e-10 if method is app.CutoffPeriodic else 1e-6)
    assert df < (1e-10 if method is app.CutoffPeriodic else 1e-6)


@pytest.mark.parametrize("dispersion", [False, True])
def test_offsets_of_parameters_are_taken_at_their_defaults(errors, dispersion):
    system = build("tip3p", app.CutoffPeriodic)
    force = _nonbonded(system)
    force.setUseDispersionCorrection(dispersion)
    force.addGlobalParameter("scale", 0.3)
    force.addParticleParameterOffset("scale", 0, 0.2, 0.01, 0.05)
    force.addParticleParameterOffset("scale", 1, -0.2, 0.0, 0.1)
    force.addExceptionParameterOffset("scale", 2, 0.1, 0.2, 0.3)
    x = conformations("tip3p")
    du, df = errors(from_openmm(system).energy_and_force(x), evaluate(system, x))
    assert du < 1e-10
    assert df < 1e-10


def test_boxes_that_do_not_fit_are_refused(shipped, geometries):
    forcefield = from_openmm(build("tip3p", app.CutoffPeriodic))
    x, box = conformations("tip3p"), forcefield.box
    small = torch.stack([box, 0.8 * box, box])
    with pytest.raises(ValueError, match=r"conformations \[1\] must be at least twice the cutoff of 0\.8 nm"):
        forcefield(x, small)
    with pytest.raises(ValueError, match="the box must be at least twice the cutoff"):
        forcefield.energy_and_force(x, 0.5 * box)
    with pytest.raises(ValueError, match=r"conformations \[2\] must span a volume"):
        forcefield(x, torch.stack([box, box, 0 * box]))
    with pytest.raises(ValueError, match="the box must span a volume"):
        forcefield(x, box * float("nan"))
    with pytest.raises(ValueError, match=r"reduced form.*reducePeriodicBoxVectors"):
        forcefield(x, box + 0.1 * torch.ones(3, 3).triu(1))
    with pytest.raises(ValueError, match="reduced form"):
        forcefield(x, box + 1.5 * torch.ones(3, 3).tril(-1))
    with pytest.raises(ValueError, match=r"box must be \(3, 3\) or \(3, 3, 3\)"):
        forcefield(x, torch.stack([box, box]))
    state = forcefield.to_state()
    without = ForceField.from_state({**state, "box": None})
    assert torch.equal(without(x, box), forcefield(x))
    for call in (without, without.energy_and_force, without.compiled()):
        with pytest.raises(ValueError, match="periodic and has no default box"):
            call(x)
    vacuum = from_openmm(shipped)
    for call in (vacuum, vacuum.energy_and_force, vacuum.compiled(), vacuum.compiled().energy_and_force):
        with pytest.raises(ValueError, match="no force of this force field is periodic"):
            call(geometries[:2], box)
