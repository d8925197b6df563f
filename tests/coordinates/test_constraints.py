"""Fixed distances: the metric against closed forms, against Jacobians of internal coordinates, and block by block."""

import math

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from boltzflow.coordinates import Constraints, InternalCoordinateMap, InternalCoordinates, ZMatrix

D = 0.15


def chain(n, masses=None):
    """Beads in a row at distance D."""
    pairs = torch.tensor([[k, k + 1] for k in range(n - 1)])
    masses = torch.ones(n) if masses is None else torch.tensor(masses, dtype=torch.float64)
    return Constraints(pairs, torch.full((n - 1,), D), masses=masses.double())


def trimer(theta):
    """Positions (batch, 3, 3) of two bonds at angles theta."""
    zero = torch.zeros_like(theta)
    ends = [(zero + D, zero, zero), (zero, zero, zero), (D * theta.cos(), D * theta.sin(), zero)]
    return torch.stack([torch.stack(end, 1) for end in ends], 1)


def full_log_det(constraints, x):
    """ln det Z from the whole matrix, by autograd."""
    i, j = constraints.pairs.unbind(1)

    def sigma(flat):
        at = flat.view(-1, 3)
        return (at[i] - at[j]).norm(dim=1)

    slopes = torch.func.jacrev(sigma)(x.flatten())
    return torch.linalg.slogdet(slopes / constraints.masses.repeat_interleave(3) @ slopes.T).logabsdet


@pytest.mark.parametrize("masses", [[1.0, 1.0, 1.0], [12.0, 15.9994, 1.008], [100.0, 0.5, 30.0]])
def test_the_metric_of_a_trimer_has_its_closed_form(masses):
    theta = torch.linspace(0.05, math.pi - 0.05, 40, dtype=torch.float64)
    a, b, c = masses
    expected = ((1 / a + 1 / b) * (1 / b + 1 / c) - theta.cos() ** 2 / b**2).log()
    found = chain(3, masses).log_det_metric(trimer(theta))
    assert (found - expected).abs().max() < 1e-12
    if masses[0] == masses[1] == masses[2]:
        assert (found - (4 - theta.cos() ** 2).log()).abs().max() < 1e-12


GRAPHS = {
    "chain": [(0, 1), (1, 2), (2, 3)],
    "five beads": [(0, 1), (1, 2), (2, 3), (3, 4)],
    "methyl": [(0, 1), (0, 2), (0, 3), (0, 4)],
    "branched": [(0, 1), (1, 2), (1, 3), (3, 4), (3, 5)],
}


@pytest.mark.parametrize("bonds", GRAPHS.values(), ids=list(GRAPHS))
def test_it_is_the_metric_that_internal_coordinates_have_on_the_surface(bonds):
    """det of JᵀMJ over angles, torsions and rigid motions = det M · |∂x/∂q|² · det Z, for every conformation."""
    n = max(map(max, bonds)) + 1
    rng = torch.Generator().manual_seed(3)
    masses = torch.rand(n, generator=rng, dtype=torch.float64) * 15 + 1
    coordinates = InternalCoordinateMap(ZMatrix.from_bonds(n, bonds))
    sizes = (n - 1, n - 2, n - 3)
    q = torch.cat(
        [
            torch.full((5, n - 1), D, dtype=torch.float64),
            0.6 + 1.8 * torch.rand(5, n - 2, generator=rng, dtype=torch.float64),
            6.0 * torch.rand(5, n - 3, generator=rng, dtype=torch.float64),
        ],
        1,
    )

    def positions(row):
        return coordinates.inverse(InternalCoordinates(*row[None].split(sizes, 1)))[0][0]

    x, log_jacobian = coordinates.inverse(InternalCoordinates(*q.split(sizes, 1)))
    metrics = []
    for row, at in zip(q, x, strict=True):
        inner = torch.func.jacrev(positions)(row).flatten(0, 1)[:, n - 1 :]
        axes = torch.eye(3, dtype=torch.float64)
        turns = [torch.linalg.cross(axis.expand_as(at), at).flatten() for axis in axes]
        shifts = [axis.expand_as(at).flatten() for axis in axes]
        whole = torch.cat([inner, torch.stack(turns + shifts, 1)], 1)
        metrics.append(torch.linalg.slogdet(whole.T @ (masses.repeat_interleave(3)[:, None] * whole)).logabsdet)
    constraints = Constraints(torch.tensor(bonds), torch.full((len(bonds),), D), masses=masses)
    expected = torch.stack(metrics) - 3 * masses.log().sum() - 2 * log_jacobian
    torch.testing.assert_close(constraints.log_det_metric(x), expected, rtol=1e-10, atol=1e-10)


def test_blocks_of_rigid_waters_give_the_determinant_of_the_whole():
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    field = app.ForceField("amber14/tip3p.xml")
    modeller.addSolvent(field, numAdded=30, neutralize=False)
    system = field.createSystem(modeller.topology, rigidWater=True)
    found = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
    masses = [system.getParticleMass(k)._value for k in range(system.getNumParticles())]
    constraints = Constraints(
        torch.tensor([pair[:2] for pair in found]),
        torch.tensor([pair[2]._value for pair in found]),
        masses=torch.tensor(masses),
    )
    assert len(constraints) == 90
    assert "block_sizes=[3]" in repr(constraints)
    x = torch.tensor(modeller.positions.value_in_unit(unit.nanometer), dtype=torch.float64)[None]
    x = constraints.project(x)
    constraints.require_independent(x[0])
    assert abs(float(constraints.log_det_metric(x)) - float(full_log_det(constraints, x[0]))) < 1e-9


def test_blocks_of_all_sizes_and_single_constraints_give_the_determinant_of_the_whole():
    pairs = torch.tensor([[0, 1], [5, 2], [2, 3], [3, 4], [6, 7], [8, 7], [9, 10]])
    rng = torch.Generator().manual_seed(0)
    masses = torch.rand(12, generator=rng, dtype=torch.float64) + 0.5
    constraints = Constraints(pairs, torch.full((7,), D), masses=masses)
    x = torch.randn(4, 12, 3, generator=rng, dtype=torch.float64)
    expected = torch.stack([full_log_det(constraints, row) for row in x])
    torch.testing.assert_close(constraints.log_det_metric(x), expected, rtol=1e-12, atol=1e-12)


def test_its_gradient_along_the_surface_is_that_of_differences():
    constraints = chain(4, [12.0, 1.0, 14.0, 16.0])
    rng = torch.Generator().manual_seed(5)
    x = constraints.project(0.1 * torch.randn(6, 4, 3, generator=rng, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(constraints.log_det_metric(x).sum(), x)
    x = x.detach()
    h, i, j = 1e-4, *constraints.pairs.unbind(1)
    for row, slope in zip(x, gradient, strict=True):
        normals = torch.func.jacrev(lambda at: (at[i] - at[j]).norm(dim=1))(row).flatten(1)
        step = torch.randn(12, generator=rng, dtype=torch.float64)
        step = (step - torch.linalg.lstsq(normals.T, (step)[:, None]).solution[:, 0] @ normals).view(4, 3)
        ends = constraints.project(torch.stack([row + k * h * step for k in (-2, -1, 1, 2)]))
        values = constraints.log_det_metric(ends)
        difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
        assert abs(float(difference - (slope * step).sum())) < 1e-6 * (1 + float(slope.norm()))


def test_projection_meets_the_distances_and_keeps_the_centre_of_mass():
    masses = [12.0, 1.0, 14.0, 16.0]
    constraints = chain(4, masses)
    x = trimer(torch.tensor([1.8, 2.0], dtype=torch.float64))
    x = torch.cat([x, x[:, 2:] + torch.tensor([0.0, 0.0, D])], 1)
    moved = x + 0.005 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert (constraints.violation(x) < 1e-6).all()
    assert (constraints.violation(moved) > 1e-3).all()
    found = constraints.project(moved)
    assert (constraints.violation(found) < 1e-12).all()
    weights = torch.tensor(masses, dtype=torch.float64)[:, None]
    torch.testing.assert_close((weights * found).sum(1), (weights * moved).sum(1))


def test_violation_is_the_largest_relative_one():
    x = trimer(torch.tensor([2.0], dtype=torch.float64))
    x[0, 0] *= 1.01
    x[0, 2] *= 0.97
    assert float(chain(3).violation(x)) == pytest.approx(0.03, rel=1e-5)


def test_dependent_constraints_are_refused_with_their_names():
    pairs, lengths = torch.tensor([[0, 1], [1, 2], [0, 2]]), torch.tensor([D, D, 2 * D])
    straight = Constraints(pairs, lengths, masses=torch.ones(3))
    x = trimer(torch.tensor([math.pi], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"1 groups of 3 are not independent.* O-C, C-O2, O-O2"):
        straight.require_independent(x[0], ["O", "C", "O2"])
    assert float(straight.log_det_metric(x)) < -20
    square = torch.combinations(torch.arange(5))
    with pytest.raises(ValueError, match="10 distances between the 5 atoms"):
        Constraints(square, torch.full((10,), D), masses=torch.ones(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": torch.tensor([[0, 1], [1, 0]])}, "constrained twice"),
        ({"pairs": torch.tensor([[0, 1], [1, 3]])}, r"\(1, 3\)"),
        ({"pairs": torch.empty(0, 2, dtype=torch.int64), "distances": torch.empty(0)}, "nothing to make"),
        ({"distances": torch.tensor([D, -D])}, "positive distances"),
        ({"masses": torch.tensor([1.0, 0.0, 1.0])}, r"atoms \[1\] have no mass"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"pairs": torch.tensor([[0, 1], [1, 2]]), "distances": torch.tensor([D, D]), "masses": torch.ones(3)}
    given |= change
    with pytest.raises(ValueError, match=message):
        Constraints(given["pairs"], given["distances"], masses=given["masses"])


def test_a_structure_too_far_away_is_not_projected():
    x = torch.zeros(1, 3, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="Minimise the structure"):
        chain(3).project(x)


def test_openmm_projects_onto_the_same_surface():
    """A mass-weighted projection is unique to first order; OpenMM's differs by its tolerance and second order."""
    masses = [12.0, 1.0, 14.0]
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    for k in range(2):
        system.addConstraint(k, k + 1, D)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    x = trimer(torch.tensor([1.9], dtype=torch.float64))
    x[0, 0, 0] += 1e-4
    context.setPositions(x[0].numpy())
    context.applyConstraints(1e-10)
    expected = np.asarray(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
    assert np.abs(chain(3, masses).project(x)[0].numpy() - expected).max() < 1e-7
