"""Log-variance: the gradient of KL(q‖p) on the model's samples, of the variance on fixed paths, none at the target."""

import functools

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.objectives import LogVariance, Step
from boltzflow.paths import LearnedSchedule
from boltzflow.run import make_rng
from boltzflow.targets import DoubleWell, Gaussian
from boltzflow.transitions import compiled
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.langevin import OverdampedLangevin
from boltzflow.transitions.resampling import SystematicResampling

from .test_objectives import MEAN, STD, Half, affine, data, gradients, nonlinear, target


@pytest.fixture(autouse=True, scope="module")
def eager():
    with compiled.uncompiled():
        yield


def stochastic():
    """Langevin steps and HMC on learned levels."""
    steps = [OverdampedLangevin(0.05, learnable=True, level=0.4), HMC(0.3, n_leapfrog=2, level=0.7)]
    steps += [OverdampedLangevin(0.03, learnable=True, level=0.7)]
    return Generator(Gaussian(2), steps, path=LearnedSchedule([0.4, 0.7])).double()


def test_own_samples_give_the_gradient_of_the_reverse_divergence():
    generator = affine()
    step = generator.transitions[0]
    shift, scale = step.shift.detach(), step.log_scale.detach().exp()
    expected = torch.cat([(shift - MEAN) / STD**2, scale**2 / STD**2 - 1])
    term = LogVariance(generator, target(), max_deviation=1e9)
    # unbiased for batches of any size
    found = torch.stack([gradients(term, rng=make_rng(7, k), n_samples=40)[1] for k in range(400)])
    assert ((found.mean(0) - expected).abs() < 4.5 * found.std(0) / 20).all()


@pytest.mark.parametrize("paths", ["model", "data"])
@pytest.mark.parametrize("make", [nonlinear, stochastic])
def test_the_gradient_is_that_of_the_variance_on_fixed_paths(make, paths):
    generator = make()
    well = DoubleWell().double()
    term = LogVariance(generator, well, paths=paths, max_deviation=1e9)
    options = {"data": data(25), "n_samples": 25}
    loss, found, logged = gradients(term, **options)
    assert loss == pytest.approx(logged["log_variance"].item(), rel=1e-9)
    states = term.record(Step(make_rng(1), **options))

    def variance():
        return 0.5 * term.log_weights(states, Step(make_rng(2))).var()

    assert logged["log_variance"].item() == pytest.approx(variance().item(), rel=1e-10)
    rng, h, values = make_rng(2), 1e-5, []
    parameters = list(generator.parameters())
    direction = [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in parameters]
    with torch.no_grad():
        for size in (h, -2 * h):
            for p, d in zip(parameters, direction, strict=True):
                p += size * d
            values.append(variance().item())
    slope = found @ torch.cat([d.flatten() for d in direction])
    assert slope.item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)
    assert abs(slope.item()) > 1e-3


@pytest.mark.parametrize("paths", ["model", "data"])
def test_nothing_is_left_at_the_target(paths):
    generator, own = nonlinear(), nonlinear().as_target()
    _, gradient, logged = gradients(LogVariance(generator, own, paths=paths))
    assert gradient.abs().max() < 1e-12
    assert logged["log_variance"] < 1e-24
    assert logged["ess_fraction"].item() == pytest.approx(1.0)


def test_weights_are_those_of_the_generator_and_energies_are_counted():
    generator, well = stochastic(), DoubleWell().double()
    with torch.no_grad():
        expected = generator.rollout(30, well, make_rng(4))
    step = Step(make_rng(4), n_samples=30)
    term = LogVariance(generator, well)
    found = term.log_weights(term.record(step), step)
    assert torch.allclose(found, expected.log_weights, rtol=1e-12, atol=1e-12)
    assert step.ledger.n_energy() >= expected.ledger.n_energy() > 0


def test_rows_without_energy_keep_the_gradient_finite():
    _, gradient, logged = gradients(LogVariance(affine(shift=(0.3, -0.3)), Half(torch.inf)), n_samples=2000)
    assert 0 < logged["n_masked"] < 2000
    assert gradient[0] < -0.3  # the mean moves to where there is density


def test_paths_that_cannot_be_held_fixed_are_refused():
    mixed = functools.partial(Generator, Gaussian(2))
    with pytest.raises(TypeError, match="Affine is trained"):
        LogVariance(mixed([affine().transitions[0], OverdampedLangevin(0.1)]), target())
    with pytest.raises(TypeError, match="SystematicResampling has neither"):
        LogVariance(mixed([SystematicResampling()]), target())
    with pytest.raises(ValueError, match="'model' or 'data'"):
        LogVariance(affine(), target(), paths="both")
