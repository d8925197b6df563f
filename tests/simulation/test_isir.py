"""i-SIR: exact populations for any generator and any number of proposals, costs, batches, and what it refuses."""

import math

import pytest
import torch

from boltzflow.generators.generator import Generator
from boltzflow.run import Run, make_rng
from boltzflow.simulation import ISIR, LearnedMove, ParallelTempering, TemperedRows
from boltzflow.state import State
from boltzflow.targets.bases import Gaussian
from boltzflow.targets.harmonic import harmonic_pair
from boltzflow.targets.mixture import GaussianMixture
from boltzflow.testing import check_transition, run_at
from boltzflow.transitions.affine import Affine
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.transition import Bijection

torch.set_num_threads(1)
WEIGHTS = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
MEANS = torch.tensor([[-3.0, 0.0], [0.0, 2.5], [3.0, -1.0]], dtype=torch.float64)


def mixture():
    return GaussianMixture(MEANS, scale=0.6, weights=WEIGHTS)


class Half(Bijection):
    """The identity where x1 < 0; what lies elsewhere has no image and is placed into the left mode."""

    def forward(self, state, run):
        inside = state["x"][:, 0] < 0
        ratio = torch.where(inside, 0.0, -torch.inf).double()
        return state.replace(x=torch.where(inside[:, None], state["x"], MEANS[0])), ratio

    def reverse(self, state, run):
        return state, torch.where(state["x"][:, 0] < 0, 0.0, -torch.inf).double()


def bad(*further):
    """One wide Gaussian on the wrong side."""
    shift, scale = torch.tensor([-1.0, 0.7]).double(), torch.tensor([2.5, 2.0]).double()
    return Generator(Gaussian(2).double(), [Affine(shift, scale, field="x"), *further])


@pytest.mark.parametrize("n_proposals", [1, 2, 10])
def test_exact_samples_stay_exact_with_a_bad_generator(n_proposals):
    target, n, rng = mixture(), 20_000, make_rng(3)
    state = target.sample(n, rng)
    kernel = ISIR(bad(), n_proposals=n_proposals, n_steps=3)
    moved = kernel.step(state, run_at(target, rng))
    for f in (target.responsibilities, lambda s: s["x"], lambda s: s["x"].square(), target.reduced_energy):
        change = (f(moved) - f(state)).reshape(n, -1)
        assert (change.mean(0) / change.std(0) * math.sqrt(n)).abs().max() < 3.5
    assert 0.05 < kernel.acceptance_rate() < 0.8


@pytest.mark.parametrize(
    "kernels",
    [[ISIR(bad(), n_proposals=2)], [ISIR(bad(), n_proposals=10), MALA(0.05)]],
    ids=["two", "ten and local moves"],
)
def test_chains_that_start_in_one_mode_reach_the_exact_populations(kernels):
    target = mixture()
    simulation = ParallelTempering(
        target,
        target.state(MEANS[:1]),
        temperatures=[1.0],
        n_chains=1000,
        kernels=kernels,
        observables={str(k): lambda state, k=k: target.responsibilities(state)[:, k] for k in range(3)},
        n_relax=0,
        seed=1,
    )
    simulation.burn_in(40)
    found = simulation.run(30).observables
    mean = torch.stack([found[str(k)].mean(0) for k in range(3)])
    z = (mean.mean(1) - WEIGHTS) / (mean.std(1) / math.sqrt(mean.shape[1]))
    assert z.abs().max() < 3.5


def test_more_proposals_hold_rows_less():
    target, rng = mixture(), make_rng(4)
    run = run_at(target, rng)
    rates = []
    for n_proposals in (1, 4, 16):
        kernel = ISIR(bad(), n_proposals=n_proposals)
        kernel.step(target.sample(5000, rng), run)
        rates.append(float(kernel.last_acceptance.mean()))
    move = LearnedMove(bad())
    move.step(target.sample(5000, rng), run)
    assert rates[0] < float(move.last_acceptance.mean()) < rates[1] < rates[2]


def test_the_acceptance_is_the_weight_of_the_proposals():
    target, rng, n = mixture(), make_rng(5), 7
    state = target.sample(n, rng)
    kernel = ISIR(bad(), n_proposals=3)
    seed = rng.get_state()
    kernel.step(state, run_at(target, rng))
    rng.set_state(seed)
    drawn, log_q = kernel._draw(3 * n, run_at(target, rng))
    flow = kernel.generator
    w = torch.exp(-target.reduced_energy(State(drawn, target.fields)) - log_q).reshape(3, n).sum(0)
    own = torch.exp(-target.reduced_energy(state) - flow.log_prob(state))
    torch.testing.assert_close(kernel.last_acceptance, w / (own + w))


def test_all_proposals_go_through_the_generator_and_the_target_in_one_batch():
    calls = []

    class Counted(GaussianMixture):
        def reduced_energy(self, state, context=None):
            calls.append(len(state))
            return super().reduced_energy(state)

    target = Counted(MEANS, scale=0.6, weights=WEIGHTS)
    run = run_at(target, make_rng(6))
    state = run.energy(target.sample(5, run.rng))[1]
    ISIR(bad(), n_proposals=6).step(state, run)
    assert calls == [5, 30]
    assert (run.ledger.n_energy(), run.ledger.n_force()) == (35, 0)


def test_what_has_no_density_is_never_taken_and_never_left():
    target, rng = mixture(), make_rng(7)
    state = target.sample(400, rng)
    kernel = ISIR(bad(Half()), n_proposals=5, n_steps=10)
    moved = kernel.step(state, run_at(target, rng))
    right = state["x"][:, 0] >= 0
    assert torch.equal(moved["x"][right], state["x"][right])
    assert bool((moved["x"][~right, 0] < 0).all())
    assert not bool((moved["x"] == MEANS[0]).all(1).any())
    assert float((moved["x"][~right] != state["x"][~right]).double().mean()) > 0.9


def test_the_contract_of_kernels_holds():
    base, target = (end.double() for end in harmonic_pair((2,), name="x"))
    rng = make_rng(0)
    flow = Generator(base, [Affine(torch.tensor([0.3, -0.2]).double(), torch.tensor([1.4, 0.8]).double(), field="x")])
    check_transition(ISIR(flow, n_proposals=3), target.sample(8, rng), run_at(target, rng), n=20_000)


def test_every_rung_has_its_own_odds():
    cold = Gaussian(2).double()
    run = Run(make_rng(4), level=TemperedRows(cold, torch.tensor([1.0, 0.25]).double().repeat_interleave(4000)))
    state = cold.state(torch.randn(8000, 2, generator=run.rng, dtype=torch.float64))
    state = state.replace(x=state["x"] * torch.tensor([1.0, 2.0]).repeat_interleave(4000)[:, None])
    kernel = ISIR(Generator(Gaussian(2, scale=2.0).double(), []), n_proposals=3)
    moved = kernel.step(state, run)
    # q is the density of the hot rung: all weights are equal
    torch.testing.assert_close(kernel.last_acceptance[4000:], torch.full((4000,), 0.75).double())
    for rows, variance in ((slice(4000), 1.0), (slice(4000, None), 4.0)):
        found = float(moved["x"][rows].square().mean()) / variance
        assert abs(found - 1) < 3.5 * math.sqrt(2 / 8000)


def test_it_refuses_no_proposals_and_unknown_densities():
    with pytest.raises(ValueError, match="n_proposals: expected at least 1, got 0"):
        ISIR(bad(), n_proposals=0)
    with pytest.raises(TypeError, match="ISIR: the generator has a step that is not a Bijection"):
        ISIR(Generator(Gaussian(2).double(), [MALA(0.1)]), n_proposals=2)
