"""Maps of an annealed sampler by least squares: what they save, exact weights, and what is refused."""

from functools import partial

import pytest
import torch

from boltzflow.generators import Generator, smc
from boltzflow.networks import PairField
from boltzflow.objectives import AnnealedTransport, Step, fit_transport
from boltzflow.paths import TemperedPath
from boltzflow.run import make_rng
from boltzflow.state import Space, State
from boltzflow.targets import FramesBase, MeanFreeGaussian, Target
from boltzflow.testing import assert_unbiased
from boltzflow.transitions import HMC, EulerFlow, RandomWalkMetropolis
from boltzflow.transitions.affine import Affine

LEVELS = [0.5, 1.0]


def cluster():
    """Four particles about their centre, of which scaling is the exact map: v_i = f Σ_j (x_i − x_j), f constant."""
    base, target = (MeanFreeGaussian(4, 2, scale=scale).double() for scale in (1.0, 0.6))
    maps = [EulerFlow(PairField([0] * 4, 2, reach=8.0, n_basis=9)) for _ in LEVELS]
    return smc(base, HMC(0.3, n_leapfrog=3), LEVELS, maps=maps).double(), target


def plain_ess(generator, target):
    # without resampling, which would hide what the maps have left
    steps = [t for t in generator.transitions if not hasattr(t, "threshold")]
    return Generator(generator.base, steps).double().sample(500, target, seed=5).ess_fraction()


def test_scaling_is_found_and_weights_are_exact():
    generator, target = cluster()
    before = plain_ess(generator, target)
    found = fit_transport(generator, target, n=400, seed=1)
    assert before < 0.4
    assert plain_ess(generator, target) > 0.9
    assert min(found.explained) > 0.98
    assert found.scales == (1.0, 1.0)
    # the energy changes by a factor, so that a linear field explains it; one step of Newton is not quite the optimum
    assert found.ledger.n_force(target.name) >= 400 * 2
    assert "fit_transport" in generator.methods
    assert_unbiased(generator, target, n=4_000, rng=make_rng(3))


def test_gradients_of_the_transport_objective_vanish_where_the_fit_ends():
    generator, target = cluster()
    objective = AnnealedTransport(generator, target)

    def loss_and_size():
        generator.zero_grad(set_to_none=True)
        loss, _ = objective(Step(rng=make_rng(2), n_samples=2_000))
        loss.backward()
        return float(loss.detach()), float(generator.transitions[0].field.weights.grad.norm())

    loss, size = loss_and_size()
    fit_transport(generator, target, n=400, seed=1)
    fitted, rest = loss_and_size()
    assert fitted < loss - 0.1
    assert rest < 0.25 * size


class SoftDisks(Target):
    """Eight disks in a periodic square that push each other apart: u = 12 Σ exp(−2 r²) over nearest images."""

    def __init__(self):
        super().__init__({"positions": Space("box", (8, 2))})
        self.register_buffer("_pairs", torch.triu_indices(8, 8, 1), persistent=False)

    def reduced_energy(self, state, context=None):
        x = state["positions"]
        r = x[:, self._pairs[0]] - x[:, self._pairs[1]]
        r = r - 4.0 * torch.round(r / 4.0)
        return 12.0 * torch.exp(-2.0 * r.square().sum(-1)).sum(1)


@pytest.fixture(scope="module")
def disks():
    target = SoftDisks()
    start = 4.0 * torch.rand(200, 8, 2, dtype=torch.float64, generator=make_rng(7))
    hot = FramesBase(State({"positions": start}, target.fields), target)
    moves = [RandomWalkMetropolis(0.3, n_steps=100, level=1.0)]
    relaxed = Generator(hot, moves, path=partial(TemperedPath, beta_0=1.0))
    state = relaxed.rollout(2_000, target, make_rng(8)).end
    return target, FramesBase(state, target)


def sampler(base, *, maps):
    maps = [EulerFlow(PairField([0] * 8, 2, box=4.0, n_basis=8)) for _ in LEVELS] if maps else None
    kernel = HMC(0.15, n_leapfrog=3, n_steps=2)
    # the frames are of β = 1, the end of the path is four times as cold
    return smc(base, kernel, LEVELS, threshold=1.0, maps=maps, path=partial(TemperedPath, beta_0=0.25)).double()


class Colder(Target):
    def __init__(self, target, factor):
        super().__init__(target.fields)
        self._inner, self._factor = (target,), factor

    def reduced_energy(self, state, context=None):
        return self._factor * self._inner[0].reduced_energy(state)


def test_a_liquid_is_cooled_with_exact_weights(disks):
    target, base = disks
    cold = Colder(target, 4.0)
    mapped, plain = sampler(base, maps=True), sampler(base, maps=False)
    found = fit_transport(mapped, cold, n=600, seed=1)
    assert min(found.explained) > 0.3
    assert min(found.scales) < 1.0  # levels are so far apart that the linear fit would fold some rows
    a, b = (g.sample(2_000, cold, seed=2, batch_size=200) for g in (mapped, plain))
    assert a.provenance.n_failed == 0
    assert a.ess_fraction() > b.ess_fraction()
    difference = a.log_z().value - b.log_z().value
    assert abs(difference) < 4 * (a.log_z().error ** 2 + b.log_z().error ** 2) ** 0.5
    energy = a.mean_reduced_energy().value - b.mean_reduced_energy().value
    assert abs(energy) < 4 * (a.mean_reduced_energy().error ** 2 + b.mean_reduced_energy().error ** 2) ** 0.5


def test_too_small_a_population_says_what_to_do():
    generator, target = cluster()
    with pytest.raises(ValueError, match="effective rows for 9 weights"):
        fit_transport(generator, target, n=8, seed=1)


def test_other_maps_are_refused():
    base, target = (MeanFreeGaussian(4, 2, scale=scale).double() for scale in (1.0, 0.6))
    other = smc(base, HMC(0.3, n_leapfrog=3), [1.0], maps=[Affine(torch.zeros(8), torch.ones(8))])
    with pytest.raises(TypeError, match="EulerFlow"):
        fit_transport(other, target)
    last = Generator(base, [EulerFlow(PairField([0] * 4, 2, reach=8.0))]).double()
    with pytest.raises(TypeError, match="a level after every map"):
        fit_transport(last, target, n=100)
