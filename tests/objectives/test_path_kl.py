"""Path gradients of both divergences: their means in closed form, no variance at the target, truncation and masks."""

import pytest
import torch

from boltzflow.io.config import ObjectiveConfig
from boltzflow.objectives import PathKL, ReverseKL, SelfWeightedKL, Step, build_objective, flattening_power
from boltzflow.run import make_rng
from boltzflow.state import State
from boltzflow.transitions.mala import MALA

from .test_objectives import MEAN, STD, Gaussian, Generator, Half, affine, gradients, nonlinear, target


def test_the_gradients_are_those_of_both_divergences():
    generator = affine()
    step = generator.transitions[0]
    shift, scale = step.shift.detach(), step.log_scale.detach().exp()
    # of KL(p‖q) and KL(q‖p) for Gaussians, by shift and log scale
    forward = torch.cat([(shift - MEAN) / scale**2, 1 - (STD**2 + (shift - MEAN) ** 2) / scale**2])
    reverse = torch.cat([(shift - MEAN) / STD**2, scale**2 / STD**2 - 1])
    for weights, expected in (((1.0, 0.0), forward), ((0.0, 1.0), reverse), ((0.5, 2.0), 0.5 * forward + 2 * reverse)):
        term = PathKL(generator, target(), forward=weights[0], reverse=weights[1], max_weight=1e9)
        found = torch.stack([gradients(term, rng=make_rng(7, k), n_samples=20_000)[1] for k in range(20)])
        error = found.std(0) / 20**0.5
        # normalising the weights over the batch biases by O(1/n)
        assert ((found.mean(0) - expected).abs() < 4.5 * error + 0.02).all(), (found.mean(0), expected, error)


def test_the_forward_gradient_has_the_mean_of_the_self_weighted_one():
    generator = nonlinear()
    found = {
        kind: torch.stack(
            [
                gradients(kind(generator, target(), forward=1.0, max_weight=1e9), rng=make_rng(5, k), n_samples=2000)[1]
                for k in range(100)
            ]
        )
        for kind in (PathKL, SelfWeightedKL)
    }
    difference = found[PathKL] - found[SelfWeightedKL]  # the same noise in both
    z = difference.mean(0) / (difference.std(0) / 10)
    assert z.abs().max() < 4.5
    assert difference.abs().max() > 1e-3


def test_the_reverse_gradient_is_that_of_the_reverse_kl():
    generator = nonlinear()
    _, found, _ = gradients(PathKL(generator, target(), forward=0.0, reverse=1.0))
    _, expected, _ = gradients(ReverseKL(generator, target(), path_gradient=True))
    assert torch.allclose(found, expected, rtol=1e-12)


def test_the_gradient_vanishes_at_the_target():
    generator = nonlinear()
    own = generator.as_target()
    own._generator = (nonlinear(),)  # the target follows none of the parameters
    _, gradient, logged = gradients(PathKL(generator, own, forward=1.0, reverse=1.0))
    assert gradient.abs().max() < 1e-12
    assert logged["ess_fraction"].item() == pytest.approx(1.0)
    assert logged["truncated_weight"].item() == 0.0


def log_overlap(power, shift, log_scale):
    """Log of the integral of p^α q^(1−α) for diagonal Gaussians: log E_q[w^α]."""
    p, q = STD**2, torch.exp(2 * log_scale)
    width = 1 / (power / p + (1 - power) / q)
    log_ratio = 0.5 * (width.log() - power * p.log() - (1 - power) * q.log())
    return (log_ratio - 0.5 * power * (1 - power) * (shift - MEAN) ** 2 / (power * q + (1 - power) * p)).sum()


@pytest.mark.parametrize("power", [0.3, 0.5])
def test_flattened_weights_have_the_gradient_of_an_alpha_divergence(power):
    generator = affine(shift=(-0.5, 0.2), scale=(1.6, 0.9))
    step = generator.transitions[0]
    shift, log_scale = (p.detach().clone().requires_grad_() for p in (step.shift, step.log_scale))
    # the efficiency that w^α has; of it follows α
    efficiency = (2 * log_overlap(power, shift, log_scale) - log_overlap(2 * power, shift, log_scale)).exp().item()
    divergence = log_overlap(power, shift, log_scale) / (power * (power - 1))
    expected = torch.cat(torch.autograd.grad(divergence, [shift, log_scale]))
    term = PathKL(generator, target(), max_weight=1e9, min_efficiency=efficiency)
    runs = [gradients(term, rng=make_rng(7, k), n_samples=20_000)[1:] for k in range(20)]
    found = torch.stack([gradient for gradient, _ in runs])
    error = found.std(0) / 20**0.5
    assert runs[0][1]["power"].item() == pytest.approx(power, abs=0.02)
    assert ((found.mean(0) - expected).abs() < 4.5 * error + 0.005).all(), (found.mean(0), expected, error)


def test_weights_are_as_flat_as_asked_for_and_no_flatter():
    log_w = 5.0 * torch.randn(400, generator=make_rng(2), dtype=torch.float64)
    log_w[:50] = -torch.inf
    w = torch.where(log_w.isfinite(), flattening_power(log_w, 0.3) * log_w, -torch.inf).softmax(0)
    assert 1 / (400 * w.square().sum()).item() == pytest.approx(0.3, abs=1e-4)
    assert flattening_power(log_w, 0.0) == flattening_power(0.01 * log_w, 0.3) == 1.0
    # more than the finite rows can have
    assert 0.0 < flattening_power(log_w, 0.9) < 1e-5


def test_the_gradient_is_finite_where_one_row_has_all_the_weight():
    generator = affine(shift=(60.0, -60.0))
    config = ObjectiveConfig(likelihood=0.0, path_forward_kl=1.0, path_min_efficiency=0.5)
    _, plain, whole = gradients(PathKL(generator, target()))
    _, flat, logged = gradients(build_objective(generator, target(), config))
    assert whole["truncated_weight"] > 0.5 > logged["truncated_weight"]
    assert logged["power"] < 0.1
    # towards the target, as without, but from half of the rows
    assert (flat[:2] * (affine(shift=(60.0, -60.0)).transitions[0].shift.detach() - MEAN) > 0).all()
    assert torch.isfinite(torch.cat([plain, flat])).all()


def test_a_row_of_a_long_derivative_counts_as_others_do():
    """One of 64 starts far out, where the energy is steep."""
    far = affine()
    start = far.base.sample

    def sample(n, rng, context=None):
        x = start(n, rng, context)["x"]
        x[0] = 1e4
        return State({"x": x}, start(1, rng).spaces)

    far.base.sample = sample
    config = ObjectiveConfig(likelihood=0.0, path_reverse_kl=1.0, energy_cut=1e12)
    _, wild, free = gradients(build_objective(far, target(), config))
    bounded = config.model_copy(update={"path_max_residual": 10.0})
    _, tame, logged = gradients(build_objective(far, target(), bounded))
    _, plain, none = gradients(build_objective(affine(), target(), bounded))
    assert (free["n_long_residuals"], logged["n_long_residuals"], none["n_long_residuals"]) == (0, 1, 0)
    # of the shift, on which x depends alike everywhere
    assert wild[:2].norm() > 100.0
    torch.testing.assert_close(tame[:2], plain[:2], atol=0.5, rtol=0)


def test_weights_are_truncated_and_what_is_removed_is_logged():
    generator = affine(shift=(-0.5, 0.5))
    whole, cut = (gradients(PathKL(generator, target(), max_weight=bound), n_samples=500) for bound in (1e9, 2.0))
    log_w = generator.rollout(500, target(), make_rng(1)).log_weights
    w = torch.softmax(log_w, 0) * 500
    assert cut[2]["truncated_weight"].item() == pytest.approx((w - w.clamp(max=2.0)).mean().item())
    assert whole[2]["truncated_weight"].item() == 0.0
    assert not torch.allclose(whole[1], cut[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_without_energy_are_masked_before_backward(value):
    _, gradient, logged = gradients(PathKL(nonlinear(), Half(value), reverse=1.0))
    assert 0 < logged["n_masked"] < 64
    assert torch.isfinite(gradient).all()
    assert gradient.any()


def test_evaluations_are_counted_and_kernels_refused():
    step = Step(make_rng(0), n_samples=10)
    PathKL(affine(), target())(step)
    assert (step.ledger.n_energy(), step.ledger.n_force()) == (10, 10)
    with pytest.raises(TypeError, match="Bijections"):
        PathKL(Generator(Gaussian(2), [MALA(0.1)]).double(), target())
