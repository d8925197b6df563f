"""Torch potentials and Targets as OpenMM forces: energies, forces, dynamics, and what goes wrong in them."""

import math

import openmm
import pytest
import torch
from openmm import unit

from boltzflow.coordinates import ZMatrix
from boltzflow.forcefield import from_openmm, to_openmm
from boltzflow.generators import Generator
from boltzflow.state import Space
from boltzflow.targets import Gaussian, LennardJonesCluster, MeanFreeGaussian, MoleculeTarget, ProductBase, Target
from boltzflow.targets.molecule import BOLTZMANN
from boltzflow.transitions import InternalToCartesian

pytestmark = pytest.mark.skipif(not hasattr(openmm, "PythonForce"), reason="needs OpenMM 8.5")

N = 5
STIFFNESS = torch.linspace(300.0, 900.0, 3 * N, dtype=torch.float64).reshape(N, 3)
CENTRE = torch.linspace(-0.3, 0.4, 3 * N, dtype=torch.float64).reshape(N, 3)


def spring(positions):
    """U = Σ k (x − c)²/2, by autograd."""
    return (0.5 * STIFFNESS * (positions - CENTRE).square()).sum((1, 2))


def springs_of_openmm():
    force = openmm.CustomExternalForce("(a*(x-u)^2+b*(y-v)^2+c*(z-w)^2)/2")
    for name in ("a", "b", "c", "u", "v", "w"):
        force.addPerParticleParameter(name)
    for atom in range(N):
        force.addParticle(atom, [*STIFFNESS[atom].tolist(), *CENTRE[atom].tolist()])
    return force


def context_of(force, integrator=None, platform="Reference", n_atoms=N, mass=10.0):
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(mass)
    system.addForce(force)
    integrator = integrator or openmm.VerletIntegrator(0.001)
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))


def evaluate(context, positions):
    context.setPositions(positions.numpy())
    state = context.getState(getEnergy=True, getForces=True)
    return state.getPotentialEnergy()._value, torch.tensor(state.getForces(asNumpy=True)._value)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_a_harmonic_potential_is_that_of_openmm(rng, platform):
    mine, theirs = context_of(to_openmm(spring, n_atoms=N), platform=platform), context_of(springs_of_openmm())
    for positions in CENTRE + 0.2 * torch.randn(20, N, 3, generator=rng, dtype=torch.float64):
        (u, f), (u_ref, f_ref) = evaluate(mine, positions), evaluate(theirs, positions)
        # the CPU platform holds positions and forces in single precision
        tolerance = 1e-6 if platform == "Reference" else 1e-5
        assert u == pytest.approx(u_ref, rel=tolerance)
        torch.testing.assert_close(f, f_ref, rtol=tolerance, atol=tolerance * 100)


def test_energy_is_conserved():
    integrator = openmm.VerletIntegrator(0.0005)
    context = context_of(to_openmm(spring, n_atoms=N), integrator)
    context.setPositions((CENTRE + 0.1).numpy())
    totals = []
    for _ in range(100):
        integrator.step(10)
        state = context.getState(getEnergy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy())._value)
    start = spring((CENTRE + 0.1)[None]).item()
    # ω Δt = 0.005 for the stiffest spring: leapfrog's error of the energy is of its square
    assert max(abs(total - start) for total in totals) < 1e-4 * start


def test_equipartition_under_langevin_dynamics():
    temperature, friction = 300.0, 20.0
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, 0.01)
    integrator.setRandomNumberSeed(7)
    context = context_of(to_openmm(spring, n_atoms=N), integrator)
    context.setPositions(CENTRE.numpy())
    integrator.step(200)
    energies = []
    for _ in range(400):
        integrator.step(40)  # 0.4 ps: modes of period 0.65 to 1.2 ps with decay time 0.1 ps
        energies.append(context.getState(getEnergy=True).getPotentialEnergy()._value)
    energies = torch.tensor(energies, dtype=torch.float64) / (BOLTZMANN * temperature)
    blocks = energies.reshape(20, 20).mean(1)
    z = (blocks.mean() - 3 * N / 2) / (blocks.std() / math.sqrt(len(blocks)))
    assert abs(z) < 4
    # independent draws would have an error of sqrt(3N/2/400): the blocks are not much wider
    assert blocks.std() / math.sqrt(len(blocks)) < 3 * math.sqrt(3 * N / 2 / 400)


@pytest.mark.parametrize("kind", ["potential", "target"])
def test_a_force_field_is_its_system(shipped, geometries, reference, errors, kind):
    potential = from_openmm(shipped).compiled()
    source = potential if kind == "potential" else MoleculeTarget(potential, n_atoms=22, temperature=431.0)
    wrapped = openmm.System()
    for atom in range(22):
        wrapped.addParticle(shipped.getParticleMass(atom))
    wrapped.addForce(to_openmm(source, n_atoms=22))
    physical = geometries[:28]
    du, df = errors(reference(wrapped, physical), reference(shipped, physical))
    assert du < 1e-6
    assert df < 1e-5


def test_it_adds_to_other_forces_and_acts_on_some_particles(shipped, minimised, reference):
    def pull(positions):
        return 1000.0 * (positions[:, 0] - positions[:, 1]).norm(dim=1)

    biased = openmm.XmlSerializer.clone(shipped)
    biased.addForce(to_openmm(pull, n_atoms=2, atoms=(21, 3)))
    (u, f), (u_0, f_0) = reference(biased, minimised[None]), reference(shipped, minimised[None])
    assert (u - u_0).item() == pytest.approx(1000 * (minimised[21] - minimised[3]).norm().item())
    moved = (f - f_0)[0].norm(dim=1)
    assert moved[[3, 21]].tolist() == pytest.approx([1000.0, 1000.0])
    assert (moved > 1e-6).sum() == 2


def test_a_generator_density_contains_the_jacobian(rng):
    """A chain of four atoms with normal bonds and angles and a uniform torsion: −kT log q over its positions."""
    kinds = ["line"] * 5 + ["circle"]
    mean = torch.tensor([0.15, 0.15, 0.15, 1.9, 1.9, 0.0], dtype=torch.float64)
    scale = torch.tensor([0.004, 0.004, 0.004, 0.07, 0.07, 1.0], dtype=torch.float64)
    circular = torch.tensor([kind == "circle" for kind in kinds])
    chain = ZMatrix.from_bonds(4, [(0, 1), (1, 2), (2, 3)])
    places = InternalToCartesian(chain, mean=mean, scale=scale, circular=circular)
    flow = Generator(ProductBase(kinds).double(), [places.double()])
    target = flow.as_target()
    x = target.sample(1, rng)["positions"][0]

    def minus_log_q(x):
        edge = x[1:] - x[:-1]
        bond = edge.norm(dim=1)
        angle = torch.arccos(-(edge[1:] * edge[:-1]).sum(1) / (bond[1:] * bond[:-1]))
        normal = 0.5 * (torch.cat([(bond - 0.15) / 0.004, (angle - 1.9) / 0.07]) ** 2).sum() + scale.log().sum()
        jacobian = 2 * bond.log().sum() + angle.sin().log().sum()
        return normal + 3.5 * math.log(2 * math.pi) + jacobian

    force = to_openmm(target, n_atoms=4, temperature=250.0 * unit.kelvin)
    u, f = evaluate(context_of(force, n_atoms=4), x)
    assert u == pytest.approx(BOLTZMANN * 250.0 * minus_log_q(x).item(), rel=1e-9)
    expected = -BOLTZMANN * 250.0 * torch.func.grad(minus_log_q)(x)
    torch.testing.assert_close(f, expected, rtol=1e-8, atol=1e-6)
    with pytest.raises(TypeError, match="lacks the Jacobian"):
        to_openmm(flow.base, n_atoms=4, temperature=250.0)


def test_the_centroid_of_a_mean_free_target_is_free(rng):
    """Also where its u is not defined, or is another one, away from the mean-free subspace."""
    x = 0.3 * torch.randn(N, 3, generator=rng, dtype=torch.float64)
    gaussian = MeanFreeGaussian(N, 3).double()
    context = context_of(to_openmm(gaussian, n_atoms=N, temperature=300.0))
    centred = x - x.mean(0)
    (u, f), (moved, _) = evaluate(context, x), evaluate(context, x + 1.7)
    assert u == pytest.approx(BOLTZMANN * 300.0 * gaussian.reduced_energy(gaussian.state(centred[None])).item())
    assert moved == pytest.approx(u)
    assert f.sum(0).abs().max() < 1e-10
    step = 1e-5 * torch.randn(N, 3, generator=rng, dtype=torch.float64)
    slope = evaluate(context, x + step)[0] - evaluate(context, x - step)[0]
    assert slope == pytest.approx(-2 * (f * step).sum().item(), rel=1e-6)
    cluster = LennardJonesCluster(N).double()
    assert math.isfinite(evaluate(context_of(to_openmm(cluster, n_atoms=N, temperature=300.0)), 2 * x)[0])


class Rescaled(Target):
    """u = λ Σ x²/2, with λ from the context."""

    def __init__(self):
        super().__init__({"positions": Space("line", (N, 3))})

    def reduced_energy(self, state, context=None):
        return 0.5 * context["lambda"] * state["positions"].square().sum((1, 2))


@pytest.mark.parametrize("kind", ["potential", "target"])
def test_a_global_parameter_is_set_in_the_context(kind):
    def scaled(positions, strength):
        return strength * spring(positions)

    name = "strength" if kind == "potential" else "lambda"
    temperature = None if kind == "potential" else 300.0
    source = scaled if kind == "potential" else Rescaled()
    context = context_of(to_openmm(source, n_atoms=N, temperature=temperature, parameters={name: 0.25}))
    x = CENTRE + 0.1
    before = evaluate(context, x)
    context.setParameter(name, 0.75)
    after = evaluate(context, x)
    assert after[0] == pytest.approx(3 * before[0])
    torch.testing.assert_close(after[1], 3 * before[1])


class Spring(torch.nn.Module):
    """A module in float32 whose parameters are pickled with it."""

    def __init__(self, stiffness):
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor(stiffness))

    def forward(self, positions):
        return 0.5 * self.k * positions.square().sum((1, 2))


def test_a_serialised_force_is_a_copy():
    module = Spring(200.0)
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(to_openmm(module, n_atoms=1))
    copy = openmm.XmlSerializer.clone(system)
    with torch.no_grad():
        module.k.fill_(400.0)
    energies = []
    for one in (system, copy):
        context = openmm.Context(one, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
        energies.append(evaluate(context, torch.tensor([[1.0, 0.0, 0.0]]))[0])
    assert energies == [200.0, 100.0]
    assert copy.getForce(0).getName() == "Spring"
    system.addForce(to_openmm(lambda x: x.sum((1, 2)), n_atoms=1))
    with pytest.raises(openmm.OpenMMException, match="could not be pickled"):
        openmm.XmlSerializer.serialize(system)


class Broken:
    """Energies and forces that are not what they should be."""

    name = "broken"

    def __init__(self, energy, force):
        self.energy, self.force = energy, force

    def energy_and_force(self, positions):
        return self.energy, self.force


ZERO = torch.zeros(1, N, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Broken(torch.tensor([math.nan]), ZERO), r"broken: energy nan kJ/mol"),
        (Broken(torch.tensor([math.inf]), ZERO), r"\+inf is the end of a Target's support"),
        (Broken(torch.zeros(1), ZERO.index_fill(1, torch.tensor([2]), math.nan)), r"not finite on its atoms \[2\]"),
        (Broken(torch.tensor(1.0), ZERO), r"found \(\) and \(1, 5, 3\)"),
        (Broken(torch.zeros(1), ZERO[0]), r"found \(1,\) and \(5, 3\)"),
        (lambda x: x.sum(2), r"energy of shape \(1,\).* found \(1, 5\)"),
        (lambda x: {}["missing"], r"raised:\n(?s:.)*KeyError: 'missing'"),
    ],
)
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_what_goes_wrong_ends_the_simulation(source, message, platform):
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.001)
    context = context_of(to_openmm(source, n_atoms=N), integrator, platform)
    context.setPositions(CENTRE.numpy())
    with pytest.raises(openmm.OpenMMException, match=message):
        integrator.step(1)


def test_a_system_of_another_size_is_named():
    context = context_of(to_openmm(spring, n_atoms=N), n_atoms=7)
    with pytest.raises(openmm.OpenMMException, match="takes 5 atoms, but acts on 7 particles"):
        evaluate(context, torch.zeros(7, 3))


def molecule(temperature=300.0):
    return MoleculeTarget(Spring(1.0), n_atoms=N, temperature=temperature)


@pytest.mark.parametrize(
    ("source", "arguments", "error", "message"),
    [
        (Gaussian(3 * N), {"temperature": 300.0}, TypeError, r"fields \{'x': \(15,\)\}"),
        (molecule(), {"n_atoms": 4}, TypeError, r"one field of shape \(4, 3\)"),
        (molecule(), {"temperature": 300.0}, ValueError, "of 300 K itself; leave temperature out"),
        (LennardJonesCluster(N), {}, ValueError, "none was given"),
        (LennardJonesCluster(N), {"temperature": -1.0}, ValueError, "positive number of kelvin"),
        (LennardJonesCluster(N), {"temperature": 1.0 * unit.nanometer}, ValueError, "positive number of kelvin"),
        (spring, {"temperature": 300.0}, ValueError, "leave it out"),
        (spring, {"atoms": (0, 1)}, ValueError, "must be 5 different indices"),
        (3.0, {}, TypeError, "a potential or a Target; found float"),
    ],
)
def test_wrong_input(source, arguments, error, message):
    with pytest.raises(error, match=message):
        to_openmm(source, **{"n_atoms": N, **arguments})


def test_a_density_over_other_coordinates_is_refused():
    target = molecule()
    target.measure = "torus"
    with pytest.raises(TypeError, match="lacks the Jacobian"):
        to_openmm(target, n_atoms=N)
