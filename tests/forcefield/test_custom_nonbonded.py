"""CustomNonbondedForce against OpenMM: parity, derivatives, storage, tables, and what is refused."""

import copy

import openmm
import pytest
import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import ForceField, from_openmm

N_ATOMS = 9


def _system(force: openmm.Force) -> openmm.System:
    system = openmm.System()
    for _ in range(N_ATOMS):
        system.addParticle(1.0)
    system.addForce(copy.deepcopy(force))
    return system


def _lennard_jones() -> openmm.CustomNonbondedForce:
    force = openmm.CustomNonbondedForce(
        "4*epsilon*((sigma/r)^12-(sigma/r)^6) + scale*q1*q2/r; sigma=0.5*(sigma1+sigma2); epsilon=sqrt(e1*e2)"
    )
    force.addGlobalParameter("scale", 138.9)
    for name in ("sigma", "e", "q"):
        force.addPerParticleParameter(name)
    for atom in range(N_ATOMS):
        force.addParticle([0.1 + 0.01 * atom, 0.3 + 0.05 * atom, (-1.0) ** atom * 0.3])
    for i, j in [(0, 1), (4, 2), (7, 8)]:
        force.addExclusion(i, j)
    return force


def _nbfix() -> openmm.CustomNonbondedForce:
    force = openmm.CustomNonbondedForce("acoef(type1, type2)/r^12 - bcoef(type1, type2)/r^6;")
    a = torch.tensor([[1.0, 2.0, 0.5], [2.0, 3.0, 0.0], [0.5, 0.0, 4.0]], dtype=torch.float64)
    force.addTabulatedFunction("acoef", openmm.Discrete2DFunction(3, 3, (1e-6 * a).flatten().tolist()))
    force.addTabulatedFunction("bcoef", openmm.Discrete2DFunction(3, 3, (1e-3 * a.sqrt()).flatten().tolist()))
    force.addPerParticleParameter("type")
    for atom in range(N_ATOMS):
        force.addParticle([atom % 3])
    return force


def _switched() -> openmm.CustomNonbondedForce:
    force = _lennard_jones()
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffNonPeriodic)
    force.setCutoffDistance(0.6)
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(0.45)
    return force


def _groups() -> openmm.CustomNonbondedForce:
    force = _lennard_jones()
    force.addInteractionGroup([0, 1, 2, 5], [2, 5, 6, 7])
    force.addInteractionGroup([3], [4, 8])
    force.addInteractionGroup([5], [2])
    return force


def _soft_core() -> openmm.CustomNonbondedForce:
    force = openmm.CustomNonbondedForce(
        "lambda*4*epsilon*x*(x-1); x=(sigma/reff)^6; reff=sigma*(0.5*(1-lambda)+(r/sigma)^6)^(1/6);"
        "sigma=0.5*(sigma1+sigma2); epsilon=eps1*eps2*factor1"
    )
    force.addGlobalParameter("lambda", 0.7)
    force.addPerParticleParameter("sigma")
    force.addPerParticleParameter("eps")
    force.addComputedValue("factor", "1+sigma^2*lambda")
    for atom in range(N_ATOMS):
        force.addParticle([0.1 + 0.01 * atom, 0.3 + 0.05 * atom])
    return force


def _tables() -> openmm.CustomNonbondedForce:
    force = openmm.CustomNonbondedForce(
        "one(r) + two(r, kind1) + three(r, 0.2*kind2, r*r) + d1(kind1)*r + d3(kind1,kind2,r)"
    )
    rng = torch.Generator().manual_seed(3)
    force.addTabulatedFunction("one", openmm.Continuous1DFunction([1.0, 3.0, -2.0, 0.5, 1.0], 0.1, 0.5, True))
    force.addTabulatedFunction(
        "two", openmm.Continuous2DFunction(5, 4, torch.randn(20, generator=rng).tolist(), 0.1, 0.5, -1, 5)
    )
    force.addTabulatedFunction(
        "three",
        openmm.Continuous3DFunction(3, 4, 5, torch.randn(60, generator=rng).tolist(), 0.0, 0.7, 0, 1, 0, 0.5),
    )
    force.addTabulatedFunction("d1", openmm.Discrete1DFunction([1.0, -2.0, 3.0]))
    force.addTabulatedFunction("d3", openmm.Discrete3DFunction(2, 3, 2, torch.randn(12, generator=rng).tolist()))
    force.addPerParticleParameter("kind")
    for atom in range(N_ATOMS):
        force.addParticle([atom % 4])
    return force


FORCES = [_lennard_jones, _nbfix, _switched, _groups, _soft_core, _tables]


@pytest.fixture(scope="module", params=FORCES)
def single(request) -> openmm.System:
    return _system(request.param())


@pytest.fixture(scope="module")
def random_positions() -> torch.Tensor:
    """Most of molecular size, the last ones crowded into a tenth of it."""
    x = 0.2 * torch.randn(40, N_ATOMS, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return torch.cat([x, x[:10] / 10])


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_parity(single, random_positions, reference, errors, backend):
    forcefield = ForceField.from_state(from_openmm(single).to_state())
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(random_positions), reference(single, random_positions))
    assert du < 1e-9
    assert df < 1e-7


def test_float32(single, random_positions, reference, errors):
    physical = random_positions[:40]
    du, df = errors(from_openmm(single, dtype=torch.float32).energy_and_force(physical), reference(single, physical))
    assert du < 1e-4
    assert df < 1e-2


def test_derivatives(single, random_positions):
    forcefield = from_openmm(single)
    x = random_positions[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(forcefield, x, fast_mode=True, rtol=1e-5, atol=1e-3)
    _, force = forcefield.energy_and_force(x)
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(forcefield(x).sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * v).sum(), x)
    h = 1e-7
    ahead, behind = (forcefield.energy_and_force(x.detach() + sign * h * v)[1] for sign in (1, -1))
    scale = force.norm()
    torch.testing.assert_close(product / scale, (behind - ahead) / (2 * h * scale), rtol=1e-4, atol=1e-4)


def test_save_and_load(single, random_positions, tmp_path):
    forcefield = from_openmm(single)
    forcefield.save(tmp_path / "forcefield.pt")
    assert torch.equal(ForceField.load(tmp_path / "forcefield.pt")(random_positions), forcefield(random_positions))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("force", [_lennard_jones, _nbfix, _switched, _groups])
def test_coinciding_atoms_are_huge_never_nan(force, dtype):
    energy = from_openmm(_system(force()), dtype=dtype)(torch.zeros(1, N_ATOMS, 3))
    assert (energy > 1e15).all()


def test_bad_input_is_named():
    force = openmm.CustomNonbondedForce("sigma*r")
    force.addPerParticleParameter("sigma")
    for _ in range(N_ATOMS):
        force.addParticle([1.0])
    with pytest.raises(UnsupportedForceError, match="unknown variable 'sigma'; did you mean 'sigma2' or 'sigma1'"):
        from_openmm(_system(force))
    force.setEnergyFunction("acoef(sigma1)*r")
    with pytest.raises(UnsupportedForceError, match=r"CustomNonbondedForce \(force 0.*unknown function 'acoef'"):
        from_openmm(_system(force))


def _in_box(force: openmm.CustomNonbondedForce, switch: float, correction: bool) -> openmm.System:
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(0.9)
    force.setUseSwitchingFunction(switch > 0)
    force.setSwitchingDistance(switch)
    force.setUseLongRangeCorrection(correction)
    system = _system(force)
    system.setDefaultPeriodicBoxVectors((2, 0, 0), (0, 2.1, 0), (0.2, 0, 2.2))
    return system


def _dispersive(force: openmm.CustomNonbondedForce) -> openmm.CustomNonbondedForce:
    """Without its Coulomb term, which has no finite integral."""
    force.setGlobalParameterDefaultValue(0, 0.0)
    return force


@pytest.mark.parametrize("switch", [0.0, 0.6])
@pytest.mark.parametrize(
    "force", [_nbfix, lambda: _dispersive(_lennard_jones()), lambda: _dispersive(_groups()), _soft_core]
)
def test_long_range_correction(force, switch, reference):
    """Alone, as the difference to the energy without it: OpenMM integrates in single precision."""
    x = 2 * torch.rand(2, N_ATOMS, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    found, expected = [], []
    for correction in (True, False):
        system = _in_box(force(), switch, correction)
        forcefield = ForceField.from_state(from_openmm(system).to_state())
        found.append(forcefield(x))
        expected.append(reference(system, x)[0])
    difference = found[0] - found[1]
    assert (difference.abs() > 1e-5).all()
    torch.testing.assert_close(difference, expected[0] - expected[1], rtol=5e-7, atol=0)
    torch.testing.assert_close(
        from_openmm(_in_box(force(), switch, True), dtype=torch.float32)(x), found[0], rtol=1e-4, atol=1e-6
    )
    box = 1.1 * forcefield.box
    with_correction, without = (from_openmm(_in_box(force(), switch, on))(x, box) for on in (True, False))
    rounding = 1e-15 * without.abs().max().item()
    torch.testing.assert_close(with_correction - without, difference / 1.1**3, rtol=1e-9, atol=rounding)


@pytest.mark.parametrize("force", [lambda: _dispersive(_lennard_jones()), lambda: _dispersive(_groups()), _soft_core])
def test_the_long_range_correction_follows_the_parameters(force):
    """Of each atom by itself, also where several had the same."""
    (term,) = from_openmm(_in_box(force(), 0.6, True)).terms
    rng = torch.Generator().manual_seed(2)
    values = (term.parameter_values[torch.arange(N_ATOMS) // 2 * 2]).requires_grad_()
    direction = values.detach() * torch.randn(values.shape, generator=rng, dtype=values.dtype)

    def missing(values: torch.Tensor) -> torch.Tensor:
        return term.with_tensors({"parameter_values": values}).missing

    torch.testing.assert_close(missing(values), missing(values.detach()), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(missing(values), values)
    h = 1e-5
    slope = (missing(values.detach() + h * direction) - missing(values.detach() - h * direction)) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=0)


def test_an_integral_that_does_not_converge_is_refused():
    with pytest.raises(UnsupportedForceError, match=r"CustomNonbondedForce \(force 0.*no finite integral beyond"):
        from_openmm(_in_box(_lennard_jones(), 0.0, True))
    force = openmm.CustomNonbondedForce("1/(r-0.7)^2/r^4")
    for _ in range(N_ATOMS):
        force.addParticle([])
    with pytest.raises(UnsupportedForceError, match=r"no finite integral from 0\.6 to 0\.9 nm"):
        from_openmm(_in_box(force, 0.6, True))
