"""Path gradients of both divergences: their means in closed form, no variance at the target, truncation and masks."""

import pytest
import torch

from boltzflow.objectives import PathKL, ReverseKL, SelfWeightedKL, Step
from boltzflow.run import make_rng
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
