"""Hamiltonian replica exchange between harmonic systems: energies, every rung stationary, infinities, arguments."""

import math

import pytest
import torch

from boltzflow.run import Run, make_rng
from boltzflow.simulation.replica_exchange import MixedRows, ReplicaExchange
from boltzflow.state import Space
from boltzflow.targets import Harmonic
from boltzflow.targets.target import Target
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.metropolis import RandomWalkMetropolis

LAMBDAS = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)


def pair():
    a = Harmonic(torch.ones(2, dtype=torch.float64))
    b = Harmonic(torch.full((2,), 2.0, dtype=torch.float64), mean=torch.full((2,), 1.5, dtype=torch.float64))
    return a, b


def build(targets=None, *, coefficients=None, n_chains=200, seed=1, kernels=None, **options):
    targets = pair() if targets is None else targets
    start = targets[0].state(torch.zeros(1, 2, dtype=torch.float64))
    return ReplicaExchange(
        targets,
        start,
        coefficients=torch.stack([1 - LAMBDAS, LAMBDAS], 1) if coefficients is None else coefficients,
        n_chains=n_chains,
        kernels=[HMC(0.5, n_leapfrog=3)] if kernels is None else kernels,
        seed=seed,
        **options,
    )


def test_energy_and_force_of_mixed_rows():
    a, b = pair()
    x = torch.randn(3, 2, dtype=torch.float64, generator=make_rng(0)).requires_grad_()
    c = torch.stack([1 - LAMBDAS, LAMBDAS])
    run = Run(make_rng(1))
    u, force, state = MixedRows((a, b), c).energy_and_force(a.state(x.detach()), run)
    expected = c[0] * a.reduced_energy(a.state(x)) + c[1] * b.reduced_energy(a.state(x))
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(u, expected.detach())
    torch.testing.assert_close(force["x"], -gradient)
    assert torch.equal(MixedRows((a, b), c).energy(state, run)[0], u)
    assert run.ledger.n_energy() == 6, "the energies travel with the State"
    assert [t for _, t in MixedRows((a, b), c).terms] == [a, b]


class Wall(Target):
    """Infinite, with a NaN force, where x > 0."""

    def __init__(self):
        super().__init__({"x": Space("line", (2,))}, name="wall")

    def reduced_energy(self, state, context=None):
        inside = state["x"][:, 0] < 0
        return torch.where(inside, 0.0, torch.nan) + 0.5 * state["x"].square().sum(1)


def test_the_other_end_never_counts_where_its_coefficient_is_zero():
    a, wall = pair()[0], Wall()
    state = a.state(torch.ones(2, 2, dtype=torch.float64))
    c = torch.tensor([[1.0, 0.5], [0.0, 0.5]], dtype=torch.float64)
    u, force, _ = MixedRows((a, wall), c).energy_and_force(state, Run(make_rng(0)))
    assert (float(u[0]), float(u[1])) == (1.0, math.inf)
    assert torch.equal(force["x"][0], torch.full((2,), -1.0, dtype=torch.float64))
    run = Run(make_rng(0))
    MixedRows((a, wall), torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)).energy(state, run)
    assert run.ledger.n_energy("wall") == 0


def test_a_walker_outside_the_support_is_not_handed_over():
    a, wall = pair()[0], Wall()
    c = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    start = a.state(torch.tensor([[0.5, 0.0], [-0.5, 0.0]], dtype=torch.float64).repeat_interleave(50, 0))
    chain = ReplicaExchange(
        (a, wall), start, coefficients=c, n_chains=50, kernels=[RandomWalkMetropolis(1.0)], n_relax=0, seed=1
    )
    u = chain.record(50)
    assert torch.isfinite(u[:, :, 1]).all(), "the rung of the wall holds only walkers inside"
    assert not torch.isfinite(u[:, 1, 0]).all(), "the other rung visits both sides"
    assert chain.diagnostics()["swap_rates"][0] > 0.1


@pytest.fixture(scope="module")
def recorded():
    simulation = build()
    simulation.burn_in(60)
    return simulation, simulation.record(100, sweeps_per_record=2)


def test_every_rung_has_its_own_distribution(recorded):
    """The mean energies of rung λ, a Gaussian of known precision and mean, against exact ones between ladders."""
    simulation, u = recorded
    assert u.shape == (100, 2, 3, 200)
    assert u.dtype == torch.float64
    for r, lam in enumerate(LAMBDAS.tolist()):
        precision = (1 - lam) + 2 * lam
        mean = 2 * lam * 1.5 / precision
        exact = [(1 / precision + mean**2), 2 * (1 / precision + (mean - 1.5) ** 2)]
        for k in range(2):
            by_ladder = u[:, k, r].mean(0)
            z = (float(by_ladder.mean()) - exact[k]) / float(by_ladder.std() / math.sqrt(200))
            assert abs(z) < 4, (lam, k)
    found = simulation.diagnostics()
    assert all(0.2 < rate < 1 for rate in found["swap_rates"])
    assert found["round_trips"] > 100
    assert found["coefficients"][1] == pytest.approx([0.7, 0.3])


def test_swaps_obey_detailed_balance_of_the_mixed_energies():
    """Rates from exact samples of every rung against the mean Metropolis probability of the same samples."""
    a, b = pair()
    n = 20_000
    x = torch.cat([a.sample(n, make_rng(0))["x"], b.sample(n, make_rng(1))["x"]])
    c = torch.eye(2, dtype=torch.float64)
    chain = ReplicaExchange((a, b), a.state(x), coefficients=c, n_chains=n, kernels=[HMC(0.5, n_leapfrog=1)], n_relax=0)
    u = chain.energies()
    odds = (u[0, 0] - u[1, 0]) - (u[0, 1] - u[1, 1])
    expected = odds.clamp(max=0).exp()
    _, accept = chain._exchange(0)
    z = float(accept.double().mean() - expected.mean()) / math.sqrt(float((expected * (1 - expected)).mean()) / n)
    assert abs(z) < 3.5


def test_walkers_are_ordered_by_rung_and_start_another_simulation(recorded):
    simulation, _ = recorded
    state = simulation.walkers()
    a, b = simulation.targets
    u = torch.stack([t.reduced_energy(state).reshape(3, 200) for t in (a, b)])
    torch.testing.assert_close(u, simulation.energies())
    again = ReplicaExchange(
        (a, b),
        state,
        coefficients=torch.stack([1 - LAMBDAS, LAMBDAS], 1),
        n_chains=200,
        kernels=[HMC(0.5, n_leapfrog=3)],
        n_relax=0,
    )
    torch.testing.assert_close(again.energies(), u)


def test_one_seed_one_run():
    first, second = (build(n_chains=4, seed=7) for _ in range(2))
    for simulation in (first, second):
        simulation.burn_in(10)
    assert torch.equal(first.record(5), second.record(5))


@pytest.mark.parametrize(
    ("coefficients", "match"),
    [
        (torch.ones(2, 3), "2 columns, one per Target"),
        (torch.zeros(2, 2), "not all zero on a rung"),
        (torch.full((2, 2), torch.nan), "expected finite"),
    ],
)
def test_wrong_coefficients_are_named(coefficients, match):
    with pytest.raises(ValueError, match=match):
        build(coefficients=coefficients.double())


def test_targets_need_the_same_fields():
    a = pair()[0]
    other = Harmonic(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected the same fields"):
        build((a, other))
