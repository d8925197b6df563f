"""λ between a set of atoms and the rest: limits, an independent construction in OpenMM, the kernel, gradients."""

import openmm
import pytest
import torch
from openmm import app

from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import ForceField, alchemical, from_openmm
from boltzflow.forcefield.term import COULOMB

SET = tuple(range(8, 14))  # the side chain and more: bonded to the rest, with exceptions on the border
LAMBDAS = [(1.0, 0.6), (0.7, 0.3), (0.25, 0.0), (0.0, 0.0)]


def _soft(forcefield, sterics, electrostatics, atoms=SET):
    return alchemical(forcefield, atoms, lambda_sterics=sterics, lambda_electrostatics=electrostatics)


@pytest.mark.parametrize("name", ["shipped", "gbn2", "gbsaobc", "vacuum"])
def test_at_lambda_one_it_is_the_force_field(make_system, geometries, errors, name):
    system = make_system(name)
    plain = from_openmm(system)
    expected = plain.energy_and_force(geometries)
    for found in (alchemical(system, SET), alchemical(plain, SET).compiled()):
        du, df = errors(found.energy_and_force(geometries), expected)
        assert du < 1e-11
        assert df < 1e-11
    torch.testing.assert_close(alchemical(plain, SET)(geometries), plain(geometries), rtol=1e-13, atol=0)


def _construct(system: openmm.System, sterics: float, electrostatics: float) -> openmm.System:
    """The same energy from OpenMM's Custom forces alone."""
    system = openmm.XmlSerializer.clone(system)
    rest = set(range(system.getNumParticles())) - set(SET)
    (nonbonded,) = (force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    text = f"4*l*eps*(1/s^2-1/s)+le*C*qq/r; s=0.5*(1-l)+(r/sig)^6; l={sterics}; le={electrostatics}; C={COULOMB!r}"
    pairs = openmm.CustomNonbondedForce(text + "; qq=q1*q2; sig=max(1e-3,0.5*(sig1+sig2)); eps=sqrt(eps1*eps2)")
    border = openmm.CustomBondForce(text)
    for name in ("q", "sig", "eps"):
        pairs.addPerParticleParameter(name)
    for name in ("qq", "sig", "eps"):
        border.addPerBondParameter(name)
    pairs.addInteractionGroup(SET, rest)
    for k in range(nonbonded.getNumParticles()):
        pairs.addParticle([v._value for v in nonbonded.getParticleParameters(k)])
    special = set()
    for k in range(nonbonded.getNumExceptions()):
        i, j, *values = (getattr(v, "_value", v) for v in nonbonded.getExceptionParameters(k))
        pairs.addExclusion(i, j)
        special.add(frozenset((i, j)))
        if (i in SET) != (j in SET):
            border.addBond(i, j, [values[0], max(1e-3, values[1]), values[2]])
            nonbonded.setExceptionParameters(k, i, j, 0.0, 1.0, 0.0)
    for i in SET:
        for j in rest:
            if frozenset((i, j)) not in special:
                nonbonded.addException(i, j, 0.0, 1.0, 0.0)
    system.addForce(pairs)
    system.addForce(border)
    for index, force in enumerate(system.getForces()):
        if isinstance(force, openmm.CustomGBForce):
            system.addForce(_construct_born(force, sterics, electrostatics))
            system.removeForce(index)
            break
    return system


def _construct_born(force: openmm.CustomGBForce, sterics: float, electrostatics: float) -> openmm.CustomGBForce:
    """The solvent of openmm.app with both factors written into its expressions."""
    new = openmm.CustomGBForce()
    for k in range(force.getNumPerParticleParameters()):
        new.addPerParticleParameter(force.getPerParticleParameterName(k))
    new.addPerParticleParameter("inside")
    for k in range(force.getNumParticles()):
        new.addParticle([*force.getParticleParameters(k), float(k in SET)])
    for k in range(force.getNumTabulatedFunctions()):
        new.addTabulatedFunction(
            force.getTabulatedFunctionName(k), openmm.XmlSerializer.clone(force.getTabulatedFunction(k))
        )

    def scaled(expression: str, factor: float) -> str:
        head, *rest = expression.split(";")
        return ";".join([f"(1-{1 - factor!r}*abs(inside1-inside2))*({head})", *rest])

    for k in range(force.getNumComputedValues()):
        name, expression, kind = force.getComputedValueParameters(k)
        new.addComputedValue(name, scaled(expression, sterics) if kind != force.SingleParticle else expression, kind)
    for k in range(force.getNumEnergyTerms()):
        expression, kind = force.getEnergyTermParameters(k)
        new.addEnergyTerm(scaled(expression, electrostatics) if kind != force.SingleParticle else expression, kind)
    return new


@pytest.mark.parametrize(("sterics", "electrostatics"), LAMBDAS)
@pytest.mark.parametrize("name", ["vacuum", "obc2", "gbn2"])
def test_an_independent_construction_in_openmm(
    make_system, geometries, reference, errors, name, sterics, electrostatics
):
    system, x = make_system(name), geometries[[0, 9, 14, 20, 29, 31, 33]]
    expected = reference(_construct(system, sterics, electrostatics), x)
    found = _soft(system, sterics, electrostatics)
    for potential in (found, found.compiled()):
        du, df = errors(potential.energy_and_force(x), expected)
        assert du < 1e-6
        assert df < 1e-5


@pytest.fixture(scope="module")
def pair(topology, make_system):
    """Two dipeptides as one System, the first one as its own, and a conformation."""
    modeller = app.Modeller(topology, app.PDBFile("systems/alanine_dipeptide/topology.pdb").positions)
    alone = modeller.topology.getNumAtoms()
    modeller.add(modeller.topology, modeller.positions)
    files = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    both = files.createSystem(modeller.topology, nonbondedMethod=app.NoCutoff)
    return both, files.createSystem(topology, nonbondedMethod=app.NoCutoff), alone


@pytest.mark.parametrize("compiled", [False, True])
def test_at_lambda_zero_the_set_is_alone(pair, minimised, compiled):
    """The energy is that of both molecules by themselves, wherever they are: also one inside the other."""
    both, one, n = pair
    soft, alone = _soft(from_openmm(both), 0.0, 0.0, range(n)), from_openmm(one)
    if compiled:
        soft = soft.compiled()
    rng = torch.Generator().manual_seed(2)
    first, second = (minimised + 0.005 * torch.randn(4, n, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    second = second + torch.tensor([0.0, 0.02, 0.3, 5.0], dtype=torch.float64)[:, None, None]
    second[0] = first[0]  # every atom on its twin
    energy, force = soft.energy_and_force(torch.cat([first, second], 1))
    (ua, fa), (ub, fb) = alone.energy_and_force(first), alone.energy_and_force(second)
    torch.testing.assert_close(energy, ua + ub, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(force, torch.cat([fa, fb], 1), rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_core_is_soft(pair, minimised, dtype):
    """Atoms on top of one another have a finite energy and force once the charges are off."""
    both, _, n = pair
    soft = _soft(from_openmm(both, dtype=dtype), 0.5, 0.0, range(n))
    x = torch.cat([minimised, minimised])[None].to(dtype)
    for potential in (soft, soft.compiled()):
        energy, force = potential.energy_and_force(x)
        assert energy.isfinite().all()
        assert force.isfinite().all()
        assert energy.abs().max() < 1e4
    nan = x.clone()
    nan[0, 3, 1] = torch.nan
    assert soft.compiled()(nan).isnan().all()


def test_lambdas_are_parameters(shipped, geometries):
    """Many states in one call, gradients against differences, at the ends as well."""
    soft, x = alchemical(shipped, SET), geometries[16:18]
    grid = torch.linspace(0, 1, 6, dtype=torch.float64)
    found = soft(x, parameters={"lambda_sterics": grid, "lambda_electrostatics": grid})
    for k, value in enumerate(grid.tolist()):
        torch.testing.assert_close(found[k], _soft(shipped, value, value)(x), rtol=1e-13, atol=0)
    assert {"lambda_sterics", "lambda_electrostatics"} <= set(soft.parameter_tensors())
    h = 1e-4
    for name in ("lambda_sterics", "lambda_electrostatics"):
        for value in (0.0, 0.4, 1.0):
            number = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(soft(x, parameters={name: number}).sum(), number)
            inner = value + h * (1.0 if value == 0 else -1.0 if value == 1 else 0.0)
            stencil = torch.tensor([inner - h, inner + h], dtype=torch.float64)
            down, up = soft(x, parameters={name: stencil}).sum(1)
            torch.testing.assert_close(slope, (up - down) / (2 * h), rtol=1e-2 if inner != value else 1e-6, atol=1e-3)


def test_storage_and_dtype(shipped, geometries, tmp_path):
    soft = _soft(shipped, 0.4, 0.2)
    soft.save(tmp_path / "soft.pt")
    assert torch.equal(ForceField.load(tmp_path / "soft.pt")(geometries), soft(geometries))
    single = soft.to(torch.float32)(geometries[:8].float())
    torch.testing.assert_close(single, soft.to(torch.float64)(geometries[:8]), rtol=1e-4, atol=2e-2)
    assert "AlchemicalNonbonded" in soft.methods


def test_what_is_refused(shipped):
    for atoms, message in (([], "found 0"), (range(22), "found 22"), ([22, -1], r"found \[22, -1\]")):
        with pytest.raises(ValueError, match=message):
            alchemical(shipped, atoms)
    with pytest.raises(ValueError, match=r"lambda_sterics must be between 0 and 1; found 1\.5"):
        alchemical(shipped, SET, lambda_sterics=1.5)
    with pytest.raises(UnsupportedForceError, match="AlchemicalNonbonded: λ is not defined"):
        alchemical(alchemical(shipped, SET), SET)
