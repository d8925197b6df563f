"""Controlled generation: the minimum over source points, kept near the base where that is asked for."""

import pytest
import torch

from boltzflow.generators import Generator, controlled
from boltzflow.targets import Gaussian
from boltzflow.transitions import Affine
from tests.generators.conftest import flow, stochastic

GOAL = torch.tensor([0.8, -0.4], dtype=torch.float64)


def distance(state):
    return (state["x"] - GOAL).square().sum(1)


def test_images_reach_the_goal_and_parameters_stay():
    generator = flow(Gaussian(2).double())
    before = [p.detach().clone() for p in generator.parameters()]
    found = controlled(generator, distance, 6, n_steps=40, seed=1)
    assert (found.cost_before > 0.01).any()
    assert (found.cost < 1e-6).all()
    torch.testing.assert_close(found.cost, distance(found.end))
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(generator.parameters(), before, strict=True))


def test_the_prior_weighs_against_the_cost():
    generator = Generator(Gaussian(2), [Affine(torch.zeros(2), torch.full((2,), 3.0), field="x")]).double()
    found = controlled(generator, distance, 3, prior=2.0, seed=1)
    # of |3 z − g|² + 2 |z|²/2 at its minimum
    torch.testing.assert_close(found.start["x"], (3 * GOAL / 10).expand(3, 2), rtol=1e-5, atol=1e-7)


def test_a_row_without_a_finite_cost_stays_as_it_was_drawn():
    generator = Generator(Gaussian(2).double(), []).double()

    def cost(state):
        return torch.where(state["x"][:, 0] > 0, distance(state), torch.nan)

    found = controlled(generator, cost, 12, seed=2)
    lost = torch.isnan(found.cost_before)
    assert bool(lost.any())
    assert not bool(lost.all())
    assert torch.isnan(found.cost[lost]).all()
    assert (found.cost[~lost] < 1e-6).all()


def test_noise_on_the_way_and_costs_of_another_shape_are_refused():
    with pytest.raises(TypeError, match="stochastic"):
        controlled(stochastic(Gaussian(2).double()), distance, 3)
    with pytest.raises(ValueError, match="one number per row"):
        controlled(flow(Gaussian(2).double()), lambda state: state["x"].sum(), 3)
