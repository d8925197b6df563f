"""Rigid trimers: three measures against exact densities, against OpenMM's dynamics and against stiff springs."""

import math

import numpy as np
import openmm
import pytest
import torch
from openmm import app
from scipy.integrate import quad

from boltzflow.citation import cite
from boltzflow.coordinates import Constraints
from boltzflow.forcefield import ForceField, OpenMMPotential, from_openmm
from boltzflow.paths.path import MixtureLevel
from boltzflow.run import Run, make_rng
from boltzflow.simulation.molecular_dynamics import molecular_dynamics
from boltzflow.targets import MoleculeTarget
from boltzflow.targets.molecule import CONSTRAINT_TOLERANCE, kT
from boltzflow.testing import assert_target
from boltzflow.transitions import HMC

D, T = 0.15, 300.0
EQUAL, UNEQUAL = (12.0, 12.0, 12.0), (16.0, 3.0, 12.0)


def make_trimers(masses, n=1, *, angle=0.0, springs=None):
    """n chains of three atoms with fixed bonds, or with springs of that stiffness; harmonic in the angle if wanted."""
    system = openmm.System()
    bends, bonds = openmm.HarmonicAngleForce(), openmm.HarmonicBondForce()
    for first in range(0, 3 * n, 3):
        for mass in masses:
            system.addParticle(mass)
        for a in (first, first + 1):
            if springs is None:
                system.addConstraint(a, a + 1, D)
            else:
                bonds.addBond(a, a + 1, D, springs)
        bends.addAngle(first, first + 1, first + 2, 1.9, angle)
    if angle:  # without, its force at a straight angle would be 0/0
        system.addForce(bends)
    if springs is not None:
        system.addForce(bonds)
    return system


def bent(cosine):
    """Positions (batch, 3, 3) with the cosine of the angle."""
    zero = torch.zeros_like(cosine)
    ends = [(zero + D, zero, zero), (zero, zero, zero), (D * cosine, D * (1 - cosine**2).sqrt(), zero)]
    return torch.stack([torch.stack(end, 1) for end in ends], 1)


def cosine_of(x):
    a, b = x[..., 0, :] - x[..., 1, :], x[..., 2, :] - x[..., 1, :]
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def make(potential, measure="mass-metric", n_atoms=3, **options):
    return MoleculeTarget(potential, n_atoms=n_atoms, temperature=T, constraint_measure=measure, **options)


def exact(masses, measure):
    """Density of cos θ, not normalised: that of "stiff" is flat."""
    a, b, c = masses if measure == "mass-metric" else (1.0, 1.0, 1.0)
    return lambda u: 1.0 if measure == "stiff" else math.sqrt((1 / a + 1 / b) * (1 / b + 1 / c) - u**2 / b**2)


def mean_square(masses, measure):
    density = exact(masses, measure)
    return quad(lambda u: u**2 * density(u), -1, 1)[0] / quad(density, -1, 1)[0]


@pytest.mark.parametrize("masses", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("measure", ["mass-metric", "stiff", "rigid"])
def test_the_density_of_the_angle_is_that_of_the_measure(masses, measure):
    target = make(from_openmm(make_trimers(masses)), measure)
    assert target.dimension == 1
    assert target.measure == f"cartesian modulo rigid motions on 2 constraints ({measure})"
    assert "fixman1974" in cite(target) or (measure == "rigid" and "ciccotti2008" in cite(target))
    cosine = torch.linspace(-0.99, 0.99, 25, dtype=torch.float64)
    u = target.reduced_energy(target.state(bent(cosine)))
    found = -u + u[12]
    density = exact(masses, measure)
    expected = torch.tensor([math.log(density(c) / density(0.0)) for c in cosine.tolist()], dtype=torch.float64)
    assert (found - expected).abs().max() < 1e-12
    # and the constant: without correlation between the constraints the term is zero
    assert abs(float(target.metric_term(bent(torch.zeros(1, dtype=torch.float64))))) < 1e-12


@pytest.fixture(scope="module", params=[EQUAL, UNEQUAL], ids=["equal", "unequal"])
def dynamics(request):
    """cos θ of 100 trimers, (n_frames, n_trimers), from OpenMM's constrained dynamics."""
    n = 100
    rng = torch.Generator().manual_seed(1)
    start = bent(2 * torch.rand(n, generator=rng, dtype=torch.float64) - 1).flatten(0, 1)
    result = molecular_dynamics(
        make_trimers(request.param, n),
        start,
        temperature=T,
        n_frames=120,
        stride=50,
        n_equilibration=600,
        step=0.002,
        friction=5.0,
        platform="Reference",
        seed=2,
    )
    return request.param, result.samples["positions"][:, 0].unflatten(1, (n, 3))


def mean_and_error(values):
    """Mean over frames and trimers, its error between trimers."""
    means = values.mean(0)
    return float(means.mean()), float(means.std() / math.sqrt(len(means)))


def test_constrained_dynamics_samples_the_mass_metric_measure(dynamics):
    masses, x = dynamics
    mean, error = mean_and_error(cosine_of(x) ** 2)
    assert abs(mean - mean_square(masses, "mass-metric")) < 4 * error
    assert abs(mean - mean_square(masses, "stiff")) > 4 * error
    if masses == UNEQUAL:
        assert abs(mean - mean_square(masses, "rigid")) > 4 * error


def test_the_fixman_term_turns_dynamics_into_the_stiff_limit(dynamics):
    masses, x = dynamics
    potential = from_openmm(make_trimers(masses))
    md, stiff = make(potential), make(potential, "stiff")
    rows = md.state(x.flatten(0, 1))
    weights = (md.reduced_energy(rows) - stiff.reduced_energy(rows)).exp().unflatten(0, x.shape[:2])
    assert torch.isfinite(weights).all()
    squares = cosine_of(x) ** 2
    mean = float((weights * squares).sum() / weights.sum())
    _, error = mean_and_error(weights * (squares - mean) / weights.mean())
    assert error < 0.006
    assert abs(mean - 1 / 3) < 4 * error


def test_stiff_springs_approach_the_stiff_limit():
    """⟨cos θ⟩ of springs with an angle term, by HMC, is that of the stiff limit and of neither other measure."""
    strength, springs, masses = 8.0, 4e5, (16.0, 0.5, 12.0)
    flexible = make(from_openmm(make_trimers(masses, angle=strength, springs=springs)))
    assert flexible.dimension == 3
    rng = make_rng(3)
    cosines = 2 * torch.rand(800, generator=rng, dtype=torch.float64) - 1
    state, run = flexible.state(bent(cosines)), Run(rng, level=MixtureLevel(((1.0, flexible),)))
    kernel = HMC(0.6 * math.sqrt(kT(T) / springs), n_leapfrog=30)
    means = []
    for sweep in range(40):
        state, _ = kernel.forward(state, run)
        if sweep >= 15:
            means.append(cosine_of(state["positions"]))
    mean, error = mean_and_error(torch.stack(means))

    def average(measure):
        density = exact(masses, measure)

        def weight(u):
            return density(u) * math.exp(-0.5 * strength * (math.acos(u) - 1.9) ** 2 / kT(T))

        return quad(lambda u: u * weight(u), -1, 1)[0] / quad(weight, -1, 1)[0]

    assert abs(mean - average("stiff")) < 4 * error
    assert abs(mean - average("mass-metric")) > 4 * error


CHAIN = (12.0, 1.0, 14.0, 16.0, 1.0)


def make_chain():
    """Five charged atoms in a row, with fixed bonds and an angle and a torsion term."""
    system = openmm.System()
    angles, torsions, nonbonded = openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce(), openmm.NonbondedForce()
    for k, mass in enumerate(CHAIN):
        system.addParticle(mass)
        nonbonded.addParticle(0.3 * (-1) ** k, 0.2, 0.4)
    for k in range(4):
        system.addConstraint(k, k + 1, D)
        nonbonded.addException(k, k + 1, 0.0, 0.2, 0.0)
    for k in range(3):
        angles.addAngle(k, k + 1, k + 2, 1.9, 300.0)
    torsions.addTorsion(0, 1, 2, 3, 3, 0.3, 6.0)
    for force in (angles, torsions, nonbonded):
        system.addForce(force)
    return system


def on_the_surface(target, n=6):
    rng = torch.Generator().manual_seed(0)
    start = torch.tensor([[0.0, 0, 0], [0.1, 0.1, 0], [0.2, 0, 0], [0.3, 0.1, 0], [0.3, 0.1, 0.15]]).double()
    return target.constraints.project(start + 0.01 * torch.randn(n, 5, 3, generator=rng, dtype=torch.float64))


@pytest.mark.parametrize("measure", ["mass-metric", "stiff", "rigid"])
def test_it_keeps_the_contract_of_targets(measure):
    target = make(from_openmm(make_chain()), measure, n_atoms=5)
    assert target.dimension == 3 * 5 - 6 - 4
    state = target.state(on_the_surface(target))
    assert_target(target, make_rng(0), state=state, contexts=(None, {"temperature": 500.0}))
    # the term of the measure is no energy: it does not change with the temperature
    hot, term = target.reduced_energy(state, {"temperature": 2 * T}), target.metric_term(state["positions"])
    torch.testing.assert_close(2 * (hot - term), target.reduced_energy(state) - term)


@pytest.mark.parametrize("measure", ["mass-metric", "rigid"])
def test_forces_along_the_surface_are_those_of_differences(measure):
    target = make(from_openmm(make_chain()), measure, n_atoms=5)
    x = on_the_surface(target)
    _, force = target.energy_and_force(target.state(x))
    i, j = target.constraints.pairs.unbind(1)
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = 2e-4
    for row, f, v in zip(x, force["positions"], step, strict=True):
        normals = torch.func.jacrev(lambda at: (at[i] - at[j]).norm(dim=1))(row).flatten(1)
        v = v.flatten()
        v = (v - normals.T @ torch.linalg.solve(normals @ normals.T, normals @ v)).view(5, 3)
        ends = target.constraints.project(torch.stack([row + k * h * v for k in (-2, -1, 1, 2)]))
        u = target.reduced_energy(target.state(ends))
        slope = (u[0] - 8 * u[1] + 8 * u[2] - u[3]) / (12 * h)
        # curved paths differ from straight ones by normal components, which the constraint forces take up
        curved = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
        assert abs(float(slope + (f * curved).sum())) < 1e-5 * (1 + float(f.norm()))


def test_positions_off_the_constraints_have_weight_zero_and_are_counted():
    target = make(from_openmm(make_trimers(EQUAL)))
    x = bent(torch.tensor([0.1, 0.2, 0.3, -0.4], dtype=torch.float64))
    x[1, 0] *= 1 + 2 * CONSTRAINT_TOLERANCE
    x[2, 0] *= 1 + 0.5 * CONSTRAINT_TOLERANCE
    x[3] = torch.nan
    run = Run(make_rng(0))
    u, _ = run.evaluate(target, target.state(x))
    assert torch.isinf(u).tolist() == [False, True, False, True]
    assert run.ledger.as_dict()["nonfinite"] == {"molecule": 2}
    assert not bool(target.in_support(x)[1])
    single = target.reduced_energy(target.state(x.float()))
    assert torch.isfinite(single).tolist() == [True, False, True, False]


def test_force_fields_keep_their_constraints(tmp_path):
    system = make_chain()
    made = from_openmm(system)
    made.save(tmp_path / "field.pt")
    read = ForceField.load(tmp_path / "field.pt")
    assert read.n_constraints == made.n_constraints == read.compiled().n_constraints == 4
    assert from_openmm(make_trimers(EQUAL, angle=1.0, springs=1e5)).constraints is None
    targets = [make(potential, n_atoms=5) for potential in (made, read.to(torch.float32), made.compiled())]
    with OpenMMPotential(system, platform="Reference") as other:
        targets.append(make(other, n_atoms=5))
        x = on_the_surface(targets[0])
        reference = targets[0].reduced_energy(targets[0].state(x))
        for target in targets:
            assert target.dimension == 5
            u, force = target.energy_and_force(target.state(x))
            torch.testing.assert_close(u, reference, rtol=1e-5, atol=1e-5)
            assert torch.isfinite(force["positions"]).all()


def test_constraints_can_be_given_to_any_potential():
    springs = from_openmm(make_trimers(EQUAL, angle=5.0, springs=1e5))
    fixed = Constraints(torch.tensor([[0, 1], [1, 2]]), torch.tensor([D, D]), masses=torch.tensor(EQUAL))
    target, free = make(springs, constraints=fixed), make(springs)
    assert (target.dimension, free.dimension) == (1, 3)
    assert free.measure == "cartesian modulo rigid motions"
    x = bent(torch.tensor([0.1, -0.5], dtype=torch.float64))
    added = target.reduced_energy(target.state(x)) - free.reduced_energy(free.state(x))
    torch.testing.assert_close(added, target.metric_term(x))
    assert not free.metric_term(x).any()


def test_rigid_water_loses_three_dimensions_a_molecule():
    modeller = app.Modeller(app.Topology(), [])
    field = app.ForceField("amber14/tip4pew.xml")
    modeller.addSolvent(field, model="tip4pew", numAdded=60, neutralize=False)
    system = field.createSystem(
        modeller.topology, nonbondedMethod=app.CutoffPeriodic, nonbondedCutoff=0.5, rigidWater=True
    )
    n = system.getNumParticles()
    potential = from_openmm(system)
    target = make(potential, n_atoms=n)
    assert target.dimension == 6 * 60 - 3
    assert target.measure == "cartesian modulo translations on 180 constraints (mass-metric)"
    x = torch.tensor(np.array(modeller.positions._value))[None]
    x = target.constraints.project(x)
    other = make(potential, "stiff", n_atoms=n)
    moved = x.clone()
    moved[:, :4] += 0.01
    difference = [float(target.metric_term(at) - other.metric_term(at)) for at in (x, moved)]
    assert difference[0] == pytest.approx(difference[1], abs=1e-9)
    assert torch.isfinite(target.reduced_energy(target.state(x))).all()


def test_an_unknown_measure_is_named():
    with pytest.raises(ValueError, match=r"mass-metric, stiff, rigid.*'soft'"):
        make(from_openmm(make_trimers(EQUAL)), "soft")
