"""Internal coordinates of which constraints fix some: exact log Z, stiff springs, and what cannot be frozen."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from boltzflow.coordinates import Constraints, ZMatrix, frozen_coordinates
from boltzflow.generators import Generator
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import MoleculeTarget
from boltzflow.targets.bases import ProductBase
from boltzflow.targets.molecule import kT
from boltzflow.testing import assert_dtypes, assert_invertible
from boltzflow.transitions.internal import InternalToCartesian

# a branched chain: 0-1-2-3 with 4 and 5 on 2, of which the bonds to 0, 4 and 5 are fixed
BONDS = [(0, 1), (1, 2), (2, 3), (2, 4), (2, 5)]
FIXED = {(0, 1): 0.11, (2, 4): 0.12, (5, 2): 0.13}


def scales(n):
    mean = torch.tensor([0.15] * (n - 1) + [1.9] * (n - 2) + [0.0, 2.1, -2.1][: n - 3], dtype=torch.float64)
    scale = torch.tensor([0.01] * (n - 1) + [0.1] * (n - 2) + [0.2] * (n - 3), dtype=torch.float64)
    return {"mean": mean, "scale": scale, "circular": torch.zeros(len(mean), dtype=torch.bool)}


def constraints_of(fixed, n):
    return Constraints(torch.tensor(list(fixed)), torch.tensor(list(fixed.values())).double(), masses=torch.ones(n))


@pytest.fixture
def bijection():
    zmatrix = ZMatrix.from_bonds(6, BONDS)
    return InternalToCartesian(zmatrix, **scales(6), frozen=frozen_coordinates(zmatrix, constraints_of(FIXED, 6)))


def points(n=7):
    q = torch.randn(n, 9, dtype=torch.float64, generator=make_rng(0))
    return State({"q": q}, {"q": Space("mixed", (9,))})


def test_it_is_inverted_and_keeps_the_constraints(bijection):
    run = Run(make_rng(0))
    assert_invertible(bijection, points(), run)
    assert_dtypes(bijection, points(), run)
    placed, _ = bijection(points(), run)
    assert (constraints_of(FIXED, 6).violation(placed["positions"]) < 1e-12).all()
    assert placed.spaces["positions"].dimension == 9


def test_its_ratio_is_that_of_the_whole_map_at_the_fixed_lengths(bijection):
    zmatrix = ZMatrix.from_bonds(6, BONDS)
    whole, run = InternalToCartesian(zmatrix, **scales(6)), Run(make_rng(0))
    placed, ratio = bijection(points(), run)
    q, minus = whole.reverse(placed, run)
    assert q["q"].shape == (7, 12)
    torch.testing.assert_close(ratio, -minus - 3 * math.log(0.01), rtol=1e-10, atol=1e-10)


def test_positions_off_the_constraints_have_density_zero(bijection):
    run = Run(make_rng(0))
    placed, _ = bijection(points(), run)
    x = placed["positions"].clone()
    x[2, 0] += 0.01
    _, ratio = bijection.reverse(placed.replace(positions=x), run)
    assert (ratio == -torch.inf).tolist() == [False, False, True, False, False, False, False]


def test_a_rigid_water_has_the_partition_function_of_stiff_springs():
    """Springs on the three sides, by quadrature over bonds and angle, against the one point that is left."""
    one, two, across, stiffness = 0.096, 0.1, 0.155, 1e8
    zmatrix = ZMatrix.from_bonds(3, [(0, 1), (1, 2)])
    constraints = constraints_of({(0, 1): one, (1, 2): two, (0, 2): across}, 3)
    frozen = frozen_coordinates(zmatrix, constraints)
    assert frozen.mask.all()
    fixed = InternalToCartesian(zmatrix, **scales(3), frozen=frozen)
    empty = State({"q": torch.empty(1, 0, dtype=torch.float64)}, {"q": Space("mixed", (0,))})
    placed, log_volume = fixed(empty, Run(make_rng(0)))
    assert float(constraints.violation(placed["positions"])) < 1e-12
    width, angle = 1 / math.sqrt(stiffness), math.acos((one**2 + two**2 - across**2) / (2 * one * two))
    grid = np.linspace(-7, 7, 71) * width
    a, b, turn = np.meshgrid(one + grid, two + grid, angle + 25 * grid, indexing="ij")
    side = np.sqrt(a**2 + b**2 - 2 * a * b * np.cos(turn))
    energy = 0.5 * stiffness * ((a - one) ** 2 + (b - two) ** 2 + (side - across) ** 2)
    step = grid[1] - grid[0]
    springs = (np.exp(-energy) * a**2 * b**2 * np.sin(turn)).sum() * 25 * step**3 * (stiffness / (2 * math.pi)) ** 1.5
    assert math.log(springs) == pytest.approx(float(log_volume), abs=1e-4)


class Bend(torch.nn.Module):
    """50 (θ − 1.9)² kJ/mol of a trimer."""

    def forward(self, x):
        a, b = x[:, 0] - x[:, 1], x[:, 2] - x[:, 1]
        return 50 * (torch.atan2(torch.linalg.cross(a, b).norm(dim=1), (a * b).sum(1)) - 1.9) ** 2


@pytest.mark.parametrize("measure", ["mass-metric", "stiff", "rigid"])
def test_weights_give_the_exact_partition_function_of_every_measure(measure):
    d, masses, temperature = (0.12, 0.15), (16.0, 2.0, 12.0), 300.0
    zmatrix = ZMatrix.from_bonds(3, [(0, 1), (1, 2)])
    pairs = torch.tensor([[0, 1], [1, 2]])
    constraints = Constraints(pairs, torch.tensor(d).double(), masses=torch.tensor(masses))
    target = MoleculeTarget(
        Bend(), n_atoms=3, temperature=temperature, constraints=constraints, constraint_measure=measure
    )
    bijection = InternalToCartesian(zmatrix, **scales(3), frozen=frozen_coordinates(zmatrix, constraints))
    generator = Generator(ProductBase(["line"]), [bijection]).double()
    ensemble = generator.sample(20_000, target, seed=2)
    weight = [1 / m for m in masses] if measure == "mass-metric" else [1.0] * 3

    def density(theta):
        flat = d[0] ** 2 * d[1] ** 2 * math.sin(theta) * math.exp(-50 * (theta - 1.9) ** 2 / kT(temperature))
        whole = (weight[0] + weight[1]) * (weight[1] + weight[2])
        return flat * (1.0 if measure == "stiff" else math.sqrt(1 - (weight[1] * math.cos(theta)) ** 2 / whole))

    exact = math.log(quad(density, 0, math.pi, points=[1.9])[0])
    estimate = ensemble.log_z()
    assert estimate.error < 0.02
    assert abs(estimate.z_score(exact)) < 4


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({(0, 1): 0.1, (3, 4): 0.2}, r"\[\(3, 4\)\]"),
        ({(0, 1): 0.1, (0, 2): 0.2}, r"\[\(0, 2\)\]"),
        ({(0, 1): 0.1, (1, 2): 0.1, (0, 2): 0.3}, "no sides of a triangle"),
    ],
)
def test_what_is_no_coordinate_is_named(fixed, message):
    with pytest.raises(ValueError, match=message):
        frozen_coordinates(ZMatrix.from_bonds(6, BONDS), constraints_of(fixed, 6))
