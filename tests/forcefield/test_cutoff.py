"""Cutoffs without periodic boundaries: reaction field, switching, exceptions and implicit solvents, against OpenMM."""

import openmm
import pytest
import torch
from openmm import app, unit

from boltzflow.forcefield import ForceField, GeneralizedBorn, from_openmm

CUT = {"nonbondedMethod": app.CutoffNonPeriodic, "nonbondedCutoff": 0.45 * unit.nanometer}


def _with_cutoff(make_system, name: str, switch: float) -> openmm.System:
    system = make_system(name, **CUT)
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce) and switch:
            force.setUseSwitchingFunction(True)
            force.setSwitchingDistance(switch)
    return system


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("switch", [0.0, 0.3])
@pytest.mark.parametrize("name", ["vacuum", "obc1", "obc2", "gbsaobc", "gbn2", "hct"])
def test_parity(make_system, geometries, reference, errors, name, switch, backend):
    system = _with_cutoff(make_system, name, switch)
    forcefield = ForceField.from_state(from_openmm(system).to_state())
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(geometries), reference(system, geometries))
    assert du < 1e-9
    assert df < 1e-9


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_each_force(make_system, geometries, reference, errors, backend):
    """Alone: the two cutoffs are independent of each other."""
    for name in ("vacuum", "gbsaobc", "gbn2"):
        for kinds in (("NonbondedForce",), ("GBSAOBCForce", "CustomGBForce")):
            system = _with_cutoff(make_system, name, 0.3)
            for k in reversed(range(system.getNumForces())):
                if type(system.getForce(k)).__name__ not in kinds:
                    system.removeForce(k)
            forcefield = from_openmm(system)
            forcefield = forcefield.compiled() if backend == "compiled" else forcefield
            du, df = errors(forcefield.energy_and_force(geometries), reference(system, geometries))
            assert du < 1e-9, (name, kinds)
            assert df < 1e-9, (name, kinds)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_one_cutoff_of_two(make_system, geometries, reference, errors, backend):
    for cut_kinds in (("NonbondedForce",), ("CustomGBForce",)):
        system = make_system("obc2")
        cut = make_system("obc2", **CUT)
        for k in reversed(range(system.getNumForces())):
            if type(system.getForce(k)).__name__ in cut_kinds:
                system.removeForce(k)
        for force in cut.getForces():
            if type(force).__name__ in cut_kinds:
                system.addForce(openmm.XmlSerializer.clone(force))
        forcefield = from_openmm(system)
        forcefield = forcefield.compiled() if backend == "compiled" else forcefield
        # OpenMM itself refuses such a System in one Context, so that the forces are evaluated one by one.
        expected = []
        for group in range(system.getNumForces()):
            single = openmm.XmlSerializer.clone(system)
            for other in reversed(range(system.getNumForces())):
                if other != group:
                    single.removeForce(other)
            expected.append(reference(single, geometries))
        summed = tuple(torch.stack(parts).sum(0) for parts in zip(*expected, strict=True))
        du, df = errors(forcefield.energy_and_force(geometries), summed)
        assert du < 1e-9
        assert df < 1e-9


def test_the_kernel_takes_the_cutoffs(make_system, geometries):
    compiled = from_openmm(make_system("gbn2", **CUT)).compiled()
    assert isinstance(compiled.eager.terms[-1], GeneralizedBorn)
    compiled(geometries[:2])
    if compiled.backend == "compiled":
        assert compiled._kernel.rest is None


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_float32(make_system, geometries, reference, errors, backend):
    system = _with_cutoff(make_system, "obc1", 0.3)
    forcefield = from_openmm(system, dtype=torch.float32)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    physical = geometries[:28]
    du, df = errors(forcefield.energy_and_force(physical), reference(system, physical))
    assert du < 1e-4
    assert df < 1e-2


def test_derivatives(make_system, geometries):
    forcefield = from_openmm(_with_cutoff(make_system, "gbn2", 0.3))
    x = geometries[[8, 12]].clone().requires_grad_()
    assert torch.autograd.gradcheck(forcefield, x, eps=1e-7, rtol=1e-5, atol=1e-3, fast_mode=True)
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(forcefield(x).sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * v).sum(), x)
    h = 1e-6
    ahead, behind = (forcefield.energy_and_force(x.detach() + sign * h * v)[1] for sign in (1, -1))
    torch.testing.assert_close(product, (behind - ahead) / (2 * h), rtol=1e-5, atol=1e-1)
