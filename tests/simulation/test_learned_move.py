"""Learned moves: exact populations whatever the generator, rungs and sweeps, costs, and alanine dipeptide."""

import math

import pytest
import torch

from boltzflow.generators.generator import Generator
from boltzflow.run import Run, make_rng
from boltzflow.simulation import LearnedMove, ParallelTempering, TemperedRows, molecule_kernels
from boltzflow.state import Space
from boltzflow.systems import load_system
from boltzflow.targets.bases import Gaussian
from boltzflow.targets.harmonic import harmonic_pair
from boltzflow.targets.target import Target
from boltzflow.testing import check_transition, run_at
from boltzflow.transitions.affine import Affine
from boltzflow.transitions.compiled import uncompiled
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.metropolis import RandomWalkMetropolis
from boltzflow.transitions.transition import Bijection

torch.set_num_threads(1)


class DoubleWell(Target):
    """u = -x1/2 - 6 x1² + x1⁴ + x2²/2: a barrier of 9.9 kT."""

    def __init__(self):
        super().__init__({"x": Space("line", (2,))}, name="well")

    def reduced_energy(self, state, context=None):
        a, b = state["x"].unbind(1)
        return -0.5 * a - 6 * a**2 + a**4 + 0.5 * b**2


class Chart(Bijection):
    """The identity where |x1| < 2; what lies outside has no image and is placed at the left minimum."""

    def forward(self, state, run):
        inside = state["x"][:, 0].abs() < 2
        home = torch.tensor([-1.7, 0.0], dtype=state.dtype)
        ratio = torch.where(inside, 0.0, -torch.inf).double()
        return state.replace(x=torch.where(inside[:, None], state["x"], home)), ratio

    def reverse(self, state, run):
        return state, torch.where(state["x"][:, 0].abs() < 2, 0.0, -torch.inf).double()


class Uncorrected(LearnedMove):
    """Forgets the density of what it proposes."""

    def propose(self, state, run):
        trial, _ = super().propose(state, run)
        return trial, run.energy(state)[0] - run.energy(trial)[0]


def p_left():
    x = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    p = torch.exp(0.5 * x + 6 * x**2 - x**4)
    return float(torch.trapezoid(p[x <= 0], x[x <= 0]) / torch.trapezoid(p, x))


def crude(*further):
    """A Gaussian over both wells, off the centre."""
    base = Gaussian(2).double()
    shift, scale = torch.tensor([-0.4, 0.3]).double(), torch.tensor([1.6, 1.3]).double()
    return Generator(base, [Affine(shift, scale, field="x"), *further])


def z_of_the_left(*kernels, n=4000, sweeps=40):
    """Deviation of the left population in standard errors between chains that all start on the right."""
    target = DoubleWell()
    start = target.state(torch.tensor([[1.7, 0.0]], dtype=torch.float64))
    chains = ParallelTempering(target, start, temperatures=[300.0], n_chains=n, kernels=kernels, n_relax=0, seed=2)
    chains.burn_in(40)
    result = chains.run(sweeps)
    mean = (result.samples["x"][..., 0] < 0).double().mean(0)
    return float((mean.mean() - p_left()) / (mean.std() / math.sqrt(n))), result


@pytest.mark.parametrize(
    "kernels",
    [
        [LearnedMove(crude())],
        [RandomWalkMetropolis(0.3), LearnedMove(crude(), every=3, n_steps=2)],
        [HMC(0.05, n_leapfrog=4), LearnedMove(crude(Chart()))],
    ],
    ids=["alone", "mixed", "chart"],
)
def test_the_population_is_exact_with_a_crude_generator(kernels):
    z, _ = z_of_the_left(*kernels)
    assert abs(z) < 3.5


def test_without_the_density_of_the_proposal_the_population_is_wrong():
    z, _ = z_of_the_left(Uncorrected(crude()))
    assert abs(z) > 10


def test_proposals_without_an_image_are_rejected():
    _, result = z_of_the_left(LearnedMove(crude(Chart())), n=500)
    assert not bool((result.samples["x"] == torch.tensor([-1.7, 0.0]).double()).all(-1).any())
    assert 0.05 < result.diagnostics["acceptance"][0][0] < 0.5


def test_a_row_outside_the_generators_support_stays():
    move, target = LearnedMove(crude(Chart()), n_steps=20), DoubleWell()
    state = target.state(torch.tensor([[2.3, 0.0], [1.7, 0.0]], dtype=torch.float64).repeat(50, 1))
    moved = move.step(state, run_at(target, make_rng(1)))
    assert torch.equal(moved["x"][::2], state["x"][::2])
    assert float((moved["x"][1::2] != state["x"][1::2]).double().mean()) > 0.5


def test_the_contract_of_kernels_holds():
    base, target = (end.double() for end in harmonic_pair((2,), name="x"))
    rng = make_rng(0)
    generator = Generator(
        base, [Affine(torch.tensor([0.3, -0.2]).double(), torch.tensor([1.4, 0.8]).double(), field="x")]
    )
    check_transition(LearnedMove(generator), target.sample(8, rng), run_at(target, rng), n=20_000)


def test_every_rung_has_its_own_odds():
    # q is the hot rung's own density there, so that every proposal is accepted; at the cold one it is not
    cold = Gaussian(2).double()
    generator = Generator(Gaussian(2, scale=2.0).double(), [])
    run = Run(make_rng(4), level=TemperedRows(cold, torch.tensor([1.0, 0.25]).double().repeat_interleave(4000)))
    state = cold.state(torch.randn(8000, 2, generator=run.rng, dtype=torch.float64))
    state = state.replace(x=state["x"] * torch.tensor([1.0, 2.0]).repeat_interleave(4000)[:, None])
    move = LearnedMove(generator)
    moved = move.step(state, run)
    assert (move.last_acceptance[4000:] - 1).abs().max() < 1e-12
    assert 0.2 < float(move.last_acceptance[:4000].mean()) < 0.9
    variance = moved["x"][:4000].square().mean()
    assert abs(float(variance) - 1) < 3.5 * math.sqrt(2 / 8000)


def tempered(seed=3, **options):
    target = DoubleWell()
    return ParallelTempering(
        target,
        target.state(torch.tensor([[1.7, 0.0]], dtype=torch.float64)),
        temperatures=[300.0, 500.0, 900.0],
        n_chains=5,
        kernels=[HMC(0.05, n_leapfrog=4), LearnedMove(crude(), **options)],
        n_relax=0,
        seed=seed,
    )


@pytest.mark.parametrize(("every", "n_rungs", "moved"), [(1, 1, 5 * 12), (4, 2, 10 * 3), (5, 7, 15 * 3)])
def test_only_the_lowest_rungs_in_every_so_many_sweeps_are_moved_and_counted(every, n_rungs, moved):
    simulation = tempered(every=every, n_rungs=n_rungs)
    before = simulation.ledger.n_force()
    found = simulation.run(12).diagnostics
    # a leapfrog step each, and the first force of every row was evaluated by the start
    assert simulation.ledger.n_force() - before == 12 * 15 * 4 + moved
    assert simulation.ledger.n_energy() == simulation.ledger.n_force()
    assert found["kernels"] == ["HMC", "LearnedMove"]
    acceptance = torch.tensor(found["acceptance"][1])
    assert bool((acceptance[:n_rungs] > 0).all())
    assert bool((acceptance[n_rungs:] == 0).all())
    applied = simulation.state_dict()["counters"][-1]
    assert applied[0].tolist() == [12.0] * 3
    assert applied[1].tolist() == [moved / (5 * min(n_rungs, 3)) if rung < n_rungs else 0.0 for rung in range(3)]
    u, cold = simulation._walkers(3)
    torch.testing.assert_close(u, DoubleWell().reduced_energy(cold))


def test_a_resumed_simulation_goes_on_bit_for_bit():
    whole, broken, resumed = tempered(every=3), tempered(every=3), tempered(every=3)
    expected = whole.run(10)
    broken.run(4)
    resumed.load_state_dict(broken.state_dict())
    rest = resumed.run(6)
    assert torch.equal(rest.samples["x"], expected.samples["x"][4:])
    assert rest.diagnostics["acceptance"] == expected.diagnostics["acceptance"]


def test_what_it_cannot_use_is_refused():
    with pytest.raises(TypeError, match="not a Bijection"):
        LearnedMove(Generator(Gaussian(2).double(), [MALA(0.1)]))
    with pytest.raises(ValueError, match="every >= 1"):
        LearnedMove(crude(), every=0)
    target = DoubleWell()
    state = target.state(torch.zeros(3, 2, dtype=torch.float32))
    with pytest.raises(ValueError, match="load it with the dtype"):
        LearnedMove(crude()).step(state, run_at(target, make_rng(1)))


@pytest.fixture(scope="module")
def alanine():
    system = load_system("alanine_dipeptide")
    with uncompiled():
        yield system, system.load_generator(dtype=torch.float64)


def test_most_moves_of_alanine_dipeptide_are_accepted_in_any_orientation(alanine):
    system, generator = alanine
    frames = system.reference().to_state(dtype=torch.float64)["positions"][::400]
    turn = torch.linalg.qr(torch.randn(len(frames), 3, 3, generator=make_rng(5), dtype=torch.float64))[0]
    turn = turn * torch.linalg.det(turn)[:, None, None]
    odds = []
    for positions in (frames, frames @ turn + 2.0):
        run = run_at(system.target, make_rng(6))
        state = run.energy_and_force(system.target.state(positions))[-1]
        with torch.no_grad():
            trial, found = LearnedMove(generator).propose(state, run)
        assert (trial["positions"].mean(1) - positions.mean(1)).abs().max() < 1e-9
        assert run.ledger.n_force() == 2 * len(frames)
        odds.append(found)
    torch.testing.assert_close(odds[0], odds[1], rtol=0, atol=1e-6)
    assert float(odds[0].clamp(max=0).exp().mean()) > 0.7


def test_the_density_of_a_proposal_is_that_by_which_it_is_left(alanine):
    _, generator = alanine
    run = Run(make_rng(7))
    with torch.no_grad():
        drawn, log_q = LearnedMove(generator)._draw(300, run)
        again = generator.log_prob(load_system("alanine_dipeptide").target.state(drawn["positions"]))
    torch.testing.assert_close(again, log_q, rtol=0, atol=1e-6)


def test_a_ladder_of_alanine_dipeptide_keeps_its_mean_energy(alanine):
    system, generator = alanine
    kernels = [*molecule_kernels(system.bonds, system.elements)[:1], LearnedMove(generator, n_steps=2)]
    start = system.reference().to_state(dtype=torch.float64)["positions"][:: 200_000 // 64][:64]
    simulation = ParallelTempering(
        system.target,
        system.target.state(start),
        temperatures=[300.0],
        n_chains=len(start),
        kernels=kernels,
        n_relax=0,
        seed=8,
    )
    found = simulation.run(20)
    assert found.diagnostics["acceptance"][1][0] > 0.7
    reference = system.reference().mean_reduced_energy()
    mean = found.reduced_energies.mean(0)
    error = math.hypot(float(mean.std()) / math.sqrt(len(mean)), reference.error)
    assert abs(float(mean.mean()) - reference.value) / error < 3.5
