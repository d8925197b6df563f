"""CustomGBForce: the models of openmm.app, altered ones, and arbitrary ones, against OpenMM."""

import openmm
import pytest
import torch
from openmm import app, unit

from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import CustomGeneralizedBorn, ForceField, GeneralizedBorn, from_openmm

N_ATOMS = 6


def _alone(system: openmm.System) -> openmm.System:
    """Return the System with its CustomGBForce only, so that no other force hides an error of it."""
    single = openmm.XmlSerializer.clone(system)
    for k in reversed(range(single.getNumForces())):
        if not isinstance(single.getForce(k), openmm.CustomGBForce):
            single.removeForce(k)
    return single


@pytest.fixture(scope="module", params=["hct", "obc1", "obc2", "gbn", "gbn2"])
def model(request, topology) -> openmm.System:
    return _alone(app.ForceField("amber14-all.xml", f"implicit/{request.param}.xml").createSystem(topology))


@pytest.fixture
def general(monkeypatch):
    """Let no model be recognised."""
    monkeypatch.setattr("boltzflow.forcefield.custom_generalized_born.recognise", lambda force, dtype: None)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_parity(model, geometries, reference, errors, backend, general):
    forcefield = ForceField.from_state(from_openmm(model).to_state())
    assert isinstance(forcefield.terms[0], CustomGeneralizedBorn)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(geometries), reference(model, geometries))
    assert du < 1e-9
    assert df < 1e-7


def test_float32(model, geometries, reference, errors, general):
    physical = geometries[:28]
    du, df = errors(from_openmm(model, dtype=torch.float32).energy_and_force(physical), reference(model, physical))
    assert du < 1e-4
    assert df < 1e-2


def test_derivatives(model, geometries, general):
    forcefield = from_openmm(model)
    x = geometries[[0, 12]].clone().requires_grad_()
    assert torch.autograd.gradcheck(forcefield, x, fast_mode=True, eps=1e-7, rtol=1e-5, atol=1e-3)
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(forcefield(x).sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * v).sum(), x)
    h = 1e-6
    ahead, behind = (forcefield.energy_and_force(x.detach() + sign * h * v)[1] for sign in (1, -1))
    torch.testing.assert_close(product, (behind - ahead) / (2 * h), rtol=1e-6, atol=1e-2)


def test_the_models_with_a_kernel_are_recognised(topology):
    for name in ("obc1", "obc2", "gbn", "gbn2"):
        system = app.ForceField("amber14-all.xml", f"implicit/{name}.xml").createSystem(topology)
        assert isinstance(from_openmm(_alone(system)).terms[0], GeneralizedBorn)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.909125*psi^3", "2.9*psi^3"),
        ("28.3919551*(radius+0.14)^2", "28.3919551*(radius+0.15)^2"),
        ("0.5*log(L/U)/r", "0.4*log(L/U)/r"),
        ("B1*B2*exp(-r^2/(4*B1*B2))", "B1*B2*exp(-r^2/(5*B1*B2))"),
        ("kappa=0;", "kappa=0.1;"),
        ("solventDielectric=78.5;", "solventDielectric=2*39;"),
        ("neckScale=0.826836", "neckScale=0.826836*2"),
        ("0.3*1000000*(r-", "0.4*1000000*(r-"),
        ("alpha*psi-beta*psi^2", "alpha*psi-beta*psi^3"),
    ],
)
def test_an_altered_model_is_not_mistaken(shipped, make_system, geometries, reference, errors, old, new):
    text = openmm.XmlSerializer.serialize(_alone(shipped))
    if old not in text:
        text = openmm.XmlSerializer.serialize(_alone(make_system("gbn2")))
    assert old in text
    system = openmm.XmlSerializer.deserialize(text.replace(old, new))
    forcefield = from_openmm(system)
    assert isinstance(forcefield.terms[0], CustomGeneralizedBorn)
    du, df = errors(forcefield.energy_and_force(geometries), reference(system, geometries))
    assert du < 1e-9
    assert df < 1e-7


@pytest.mark.parametrize("name", ["obc2", "gbn2"])
def test_salt_and_cutoff(topology, geometries, reference, errors, name):
    system = _alone(
        app.ForceField("amber14-all.xml", f"implicit/{name}.xml").createSystem(
            topology,
            nonbondedMethod=app.CutoffNonPeriodic,
            nonbondedCutoff=0.5 * unit.nanometer,
            implicitSolventKappa=1.3 / unit.nanometer,
        )
    )
    du, df = errors(from_openmm(system).energy_and_force(geometries), reference(system, geometries))
    assert du < 1e-9
    assert df < 1e-7


def _arbitrary() -> openmm.System:
    force = openmm.CustomGBForce()
    for name in ("q", "s"):
        force.addPerParticleParameter(name)
    force.addGlobalParameter("scale", 3.0)
    force.addTabulatedFunction("f", openmm.Continuous1DFunction([0.0, 1.0, 0.5, 2.0], 0.0, 0.8))
    force.addComputedValue("a", "s1*exp(-r/s2)*f(r)", force.ParticlePair)
    force.addComputedValue("b", "a^2*q+x*y-z", force.SingleParticle)
    force.addComputedValue("c", "q", force.SingleParticle)
    force.addEnergyTerm("scale*b*c+a", force.SingleParticle)
    force.addEnergyTerm("(b1+b2)/(1+r^2)*c1*c2", force.ParticlePair)
    force.addEnergyTerm("a1*a2*r", force.ParticlePairNoExclusions)
    force.addEnergyTerm("0.5", force.SingleParticle)
    system = openmm.System()
    for atom in range(N_ATOMS):
        system.addParticle(1.0)
        force.addParticle([0.1 * atom - 0.2, 0.3 + 0.05 * atom])
    force.addExclusion(0, 1)
    force.addExclusion(4, 2)
    system.addForce(force)
    return system


def test_arbitrary_values_and_energies(reference, errors):
    system = _arbitrary()
    x = 0.3 * torch.randn(30, N_ATOMS, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    forcefield = ForceField.from_state(from_openmm(system).to_state())
    du, df = errors(forcefield.energy_and_force(x), reference(system, x))
    assert du < 1e-9
    assert df < 1e-7
    assert torch.autograd.gradgradcheck(forcefield, x[:1].requires_grad_(), fast_mode=True, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_atoms_are_never_nan(model, minimised, dtype, general):
    x = minimised[None].repeat(22, 1, 1)
    for atom in range(22):
        x[atom, atom] = x[atom, (atom + 11) % 22]
    energy = from_openmm(model, dtype=dtype)(x)
    assert not energy.isnan().any()


def test_bad_input_is_named():
    force = openmm.CustomGBForce()
    force.addPerParticleParameter("q")
    force.addComputedValue("a", "q1*r", force.ParticlePair)
    force.addEnergyTerm("a*b", force.SingleParticle)
    system = openmm.System()
    system.addParticle(1.0)
    force.addParticle([1.0])
    system.addForce(force)
    with pytest.raises(UnsupportedForceError, match=r"CustomGBForce \(force 0, group 0\).*'a\*b'.*'b'"):
        from_openmm(system)
