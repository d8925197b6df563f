"""Maps between the levels of an annealed sampler: they learn, their weights stay exact, and what is refused."""

import pytest
import torch

from boltzflow.generators import Generator, find_schedule, smc
from boltzflow.io.config import TrainingConfig
from boltzflow.objectives import AnnealedTransport, Step
from boltzflow.run import make_rng
from boltzflow.targets import Gaussian, Harmonic
from boltzflow.testing import assert_unbiased
from boltzflow.training import Trainer
from boltzflow.transitions import HMC
from boltzflow.transitions.affine import Affine

LEVELS = [0.3, 1.0]


def pair():
    target = Harmonic(torch.tensor([9.0, 16.0]), mean=torch.tensor([2.5, -1.5])).double()
    return Gaussian(2).double(), target


def sampler(base, step=0.1):
    maps = [Affine(torch.zeros(2), torch.ones(2), field="x", learnable=True) for _ in LEVELS]
    return smc(base, HMC(step, n_leapfrog=2), LEVELS, maps=maps).double()


def trained(generator, target, steps, *, steps_per_level=None):
    config = TrainingConfig(
        steps=steps,
        reverse_batch_size=64,
        learning_rate=0.1,
        warmup_steps=0,
        final_learning_rate_fraction=1.0,
        ema_decay=0.0,
        seed=1,
        dtype="float64",
    )
    trainer = Trainer(AnnealedTransport(generator, target, steps_per_level=steps_per_level), config)
    trainer.run(progress=False)
    return trainer


def ess(generator, target):
    # the fraction at the end of the path, without resampling on the way
    plain = Generator(generator.base, [t for t in generator.transitions if not hasattr(t, "threshold")])
    return plain.double().sample(500, target, seed=5).ess_fraction()


@pytest.mark.parametrize("steps_per_level", [None, 40], ids=["craft", "aft"])
def test_maps_learn_to_carry_the_population_and_weights_stay_exact(steps_per_level):
    base, target = pair()
    generator = sampler(base)
    before = ess(generator, target)
    trained(generator, target, 50 if steps_per_level is None else 80, steps_per_level=steps_per_level)
    assert before < 0.3
    assert ess(generator, target) > 0.8
    assert_unbiased(generator, target, n=4_000, rng=make_rng(3))


def test_levels_are_trained_one_after_the_other():
    base, target = pair()
    generator = sampler(base)
    maps = [t for t in generator.transitions if isinstance(t, Affine)]
    objective = AnnealedTransport(generator, target, steps_per_level=10)
    for index, active in ((0, 0), (9, 0), (10, 1), (1000, 1)):
        generator.zero_grad(set_to_none=True)
        loss, _ = objective(Step(rng=make_rng(1), n_samples=32, index=index))
        loss.backward()
        with_gradient = [any(p.grad is not None for p in m.parameters()) for m in maps]
        assert with_gradient == [k == active for k in range(2)]


def test_the_loss_is_the_divergence_that_is_left():
    base, target = pair()
    generator = smc(base, HMC(0.2, n_leapfrog=2), [1.0], maps=[_solved(target)]).double()
    loss, logged = AnnealedTransport(generator, target)(Step(rng=make_rng(1), n_samples=200))
    # of an exact map u(T x) − log|det T| − u_base(x) is −log of the ratio of the constants, in every row
    assert float(loss.detach()) == pytest.approx(base.log_z - target.log_z, abs=1e-10)
    assert float(logged["ess_fraction"]) == pytest.approx(1.0)


def _solved(target):
    scale = torch.linalg.inv(target.precision).diagonal().sqrt()
    return Affine(target.mean.clone(), scale, field="x", learnable=True)


def test_evaluations_are_counted_and_schedules_found_with_the_maps():
    base, target = pair()
    generator = sampler(base)
    trainer = trained(generator, target, 2)
    assert trainer.ledger.n_force(target.name) >= 2 * 64 * len(LEVELS) * 2
    maps = [t for t in generator.transitions if isinstance(t, Affine)]
    schedule = find_schedule(base, target, HMC(0.1, n_leapfrog=2), levels=LEVELS, maps=maps, n=100, seed=1)
    assert schedule.levels == tuple(LEVELS)


def test_generators_without_maps_are_refused():
    base, target = pair()
    with pytest.raises(TypeError, match=r"smc\(..., maps"):
        AnnealedTransport(smc(base, HMC(0.1, n_leapfrog=2), LEVELS), target)
    with pytest.raises(TypeError, match="moves after the last"):
        AnnealedTransport(Generator(base, [Affine(torch.zeros(2), torch.ones(2), field="x")]), target)
