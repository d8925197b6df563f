"""Weights of whole paths: unbiased in both directions, whatever the steps; wrong ratios are caught."""

import pickle
from functools import partial

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.paths import TemperedPath
from boltzflow.run import Run, make_rng
from boltzflow.targets import FramesBase
from boltzflow.testing import assert_crooks, assert_unbiased, check_target
from boltzflow.transitions.affine import AffineCoupling
from boltzflow.transitions.mala import MALA
from tests.generators.conftest import annealed, coupling, flow, stochastic


@pytest.mark.parametrize("build", [flow, stochastic])
def test_paths_are_unbiased_in_both_directions(build, pair):
    base, target = pair
    assert_unbiased(build(base), target, n=20_000, rng=make_rng(1))
    assert_crooks(build(base), target, n=10_000, rng=make_rng(2))


def test_an_annealed_run_with_resampling_is_unbiased(wells):
    base, target = wells
    assert_unbiased(annealed(base, n_levels=5), target, n=6000, n_populations=30, rng=make_rng(3))


def test_a_path_that_is_not_geometric_is_unbiased(pair):
    base, target = pair
    steps = [MALA(0.1, n_steps=2, level=level) for level in (0.2, 0.6, 1.0)]
    generator = Generator(base, steps, path=partial(TemperedPath, beta_0=0.3)).double()
    assert_unbiased(pickle.loads(pickle.dumps(generator)), target, n=20_000, rng=make_rng(4))


class WrongForward(AffineCoupling):
    """Its log-ratio is off by a tenth."""

    def forward(self, state, run):
        state, ratio = super().forward(state, run)
        return state, ratio + 0.1

    def reverse(self, state, run):
        state, ratio = super().reverse(state, run)
        return state, ratio - 0.1


class Forgetful(MALA):
    """Leaves out its energy difference."""

    def forward(self, state, run):
        state, ratio = super().forward(state, run)
        return state, torch.zeros_like(ratio)


def test_wrong_log_ratios_are_caught(pair):
    base, target = pair
    wrong = WrongForward(["line"] * 2, torch.tensor([True, False]), field="x", hidden=(8,))
    for step in (wrong, Forgetful(0.2, level=0.5)):
        generator = Generator(base, [coupling(True), step]).double()
        with pytest.raises(AssertionError, match="standard errors away"):
            assert_unbiased(generator, target, n=20_000, rng=make_rng(1))


def test_log_prob_is_base_minus_ratios_and_agrees_with_the_way_back(pair):
    base, target = pair
    generator = flow(base)
    with torch.no_grad():
        there = generator.rollout(100, target, make_rng(1))
        log_q = generator.log_prob(there.end)
        back = generator.trace_back(there.end, target)
    expected = base.log_prob(there.start) - torch.stack(there.log_ratios).sum(0)
    assert torch.allclose(log_q, expected, atol=1e-10)
    assert torch.allclose(-target.reduced_energy(there.end) - log_q, there.log_weights + base.log_z, atol=1e-10)
    assert torch.allclose(back.log_weights, there.log_weights, atol=1e-10)
    assert torch.allclose(back.start["x"], there.start["x"], atol=1e-10)
    for r, s in zip(there.log_ratios, back.log_ratios, strict=True):
        assert torch.allclose(r, s, atol=1e-10)


def test_a_flow_is_a_target(pair):
    generator = flow(pair[0])
    target = generator.as_target()
    assert target.log_z == 0.0
    assert not list(target.parameters())
    check_target(target, rng=make_rng(5))
    # a flow sampled with its own density as the target has equal weights
    ensemble = generator.sample(500, target, seed=1)
    assert abs(ensemble.log_weights + pair[0].log_z).max() < 1e-10


def test_densities_need_bijections(pair):
    generator = stochastic(pair[0])
    assert not generator.is_bijective
    state = pair[1].sample(2, make_rng(0))
    with pytest.raises(TypeError, match=r"MALA, OverdampedLangevin, OverdampedLangevin, HMC.*use trace_back"):
        generator.log_prob(state)
    with pytest.raises(TypeError, match="density is unknown"):
        generator.as_target()
    resampled = annealed(pair[0])
    with pytest.raises(ValueError, match="SystematicResampling has no reverse"):
        resampled.trace_back(state, pair[1])
    bound = resampled.trace_back(state, pair[1], make_rng(0), resampling="ignore")
    assert torch.isfinite(bound.log_weights).all()
    with pytest.raises(ValueError, match="resampling"):
        resampled.trace_back(state, pair[1], resampling="off")


def test_frames_of_an_ensemble_give_a_free_energy_difference(pair):
    first, second = pair
    frames = FramesBase(first.sample(4000, make_rng(1)), first)
    generator = stochastic(frames)
    ensemble = generator.sample(8000, second, seed=2, batch_size=2000)
    found = ensemble.log_z()
    assert "frames of" in found.note
    assert abs(found.value - (second.log_z - first.log_z)) < 4 * found.error


def test_trace_back_is_differentiable_in_parameters_and_samples(pair):
    base, target = pair
    generator = flow(base)
    x = target.sample(6, make_rng(1))["x"].requires_grad_()
    leaves = [x, *(p for p in generator.parameters() if p.requires_grad)]
    rng = make_rng(2)
    direction = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in leaves]

    def mean():
        return generator.trace_back(target.state(x), target).log_weights.mean()

    gradients = torch.autograd.grad(mean(), leaves)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
    values, h = [], 1e-5
    with torch.no_grad():
        for step in (h, -2 * h):
            for p, d in zip(leaves, direction, strict=True):
                p += step * d
            values.append(mean().item())
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_rollouts_are_differentiable_and_ignore_rows_without_energy(pair):
    base, target = pair
    generator = flow(base)

    class Half(type(target)):
        def reduced_energy(self, state, context=None):
            # NaN value and NaN slope on one side
            return super().reduced_energy(state, context) + 0 * (state["x"][:, 0] - 0.3).sqrt()

    half = Half(target.precision, mean=target.mean).double()
    trajectory = generator.rollout(200, half, make_rng(1))
    keep = trajectory.finite
    assert 0 < keep.sum() < 200
    assert (trajectory.target_energy[~keep] == torch.inf).all()
    assert not trajectory.failed.any()
    loss = torch.where(keep, trajectory.target_energy - sum(trajectory.log_ratios), 0.0).sum()
    # the same without the other rows
    state, alone = base.state(trajectory.start["x"][keep]), 0.0
    for step in generator.transitions:
        state, ratio = step(state, Run(make_rng(0)))
        alone = alone - ratio.sum()
    alone = alone + half.reduced_energy(state).sum()
    parameters = [p for p in generator.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters), torch.autograd.grad(alone, parameters)
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-9)
