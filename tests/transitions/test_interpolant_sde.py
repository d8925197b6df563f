"""Stochastic interpolants: both samplers have the same marginals, and the stochastic one exact weights."""

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.networks import ShallowField, VectorField
from boltzflow.objectives import InterpolantMatching, Step
from boltzflow.run import Run, make_rng
from boltzflow.targets import Gaussian, MeanFreeGaussian
from boltzflow.transitions import EulerFlow, Interpolant, InterpolantSDE

SCALE, MEAN, WIDTH = 1.5, 0.7, 0.4
"""Of a normal base, and of a normal target."""

INTERPOLANTS = {
    "linear": Interpolant(),
    "linear with noise": Interpolant(noise=0.8),
    "trigonometric": Interpolant("trigonometric"),
    "trigonometric with noise": Interpolant("trigonometric", noise=0.5),
}


class Exact(VectorField):
    """v = E[ẋ | x] or η = E[z | x] between two normal distributions, times a factor."""

    def __init__(self, interpolant, *, noise=False, factor=1.0):
        super().__init__()
        self.interpolant, self.noise = interpolant, noise
        self.factor = torch.nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, positions, t=0.0):
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, *[1] * (positions.ndim - 1))
        (a, b, c), (da, db, dc) = self.interpolant.at(t), self.interpolant.slopes(t)
        variance = (a * SCALE) ** 2 + (b * WIDTH) ** 2 + c**2
        centred = positions - b * MEAN
        if self.noise:
            return self.factor * c / variance * centred
        return self.factor * (db * MEAN + (a * da * SCALE**2 + b * db * WIDTH**2 + c * dc) / variance * centred)


def stochastic(interpolant, *, factor=1.0, **options):
    noise = interpolant.noise > 0
    how = {"denoiser": Exact(interpolant, noise=True, factor=factor)} if noise else {"base_scale": SCALE}
    field = Exact(interpolant, factor=factor)
    return InterpolantSDE(field, interpolant=interpolant, name="x", **how, **options).double()


def base():
    return Gaussian(2, scale=SCALE).double()


@pytest.mark.parametrize("path", ["linear", "trigonometric"])
def test_slopes_are_those_of_the_factors(path):
    t = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None].requires_grad_()
    made = Interpolant(path, noise=0.3)
    for value, slope in zip(made.at(t), made.slopes(t), strict=True):
        (found,) = torch.autograd.grad(value.sum(), t)
        torch.testing.assert_close(found, slope.detach())
    ends = torch.stack(made.at(torch.tensor([0.0, 1.0], dtype=torch.float64)))
    torch.testing.assert_close(ends, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_deterministic_and_stochastic_steps_have_the_same_marginals(name):
    n, interpolant = 10_000, INTERPOLANTS[name]
    samplers = [EulerFlow(Exact(interpolant), n_steps=100, name="x").double()]
    samplers += [stochastic(interpolant, n_steps=100, diffusion=d) for d in (0.1, 1.0)]
    for sampler in samplers:
        with torch.no_grad():
            x = sampler(base().sample(n, make_rng(1)), Run(make_rng(2)))[0]["x"]
        z = (x.mean() - MEAN) / (WIDTH / (2 * n) ** 0.5)
        width = (x.std() / WIDTH - 1) / (1 / (4 * n) ** 0.5)
        # 100 Euler steps leave an error of their own, which is below 1 %
        assert abs(z) < 4 + 0.01 * MEAN / (WIDTH / (2 * n) ** 0.5)
        assert abs(width) < 4 + 0.02 * (4 * n) ** 0.5


class Shifted(Gaussian):
    """A normal distribution about 0.7."""

    def reduced_energy(self, state, context=None):
        return super().reduced_energy(state.replace(x=state["x"] - MEAN), context)


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("factor", [1.0, 0.95])
def test_weights_are_exact_for_few_steps_and_wrong_fields(name, factor):
    target = Shifted(2, scale=WIDTH).double()
    made = Generator(base(), [stochastic(INTERPOLANTS[name], factor=factor, n_steps=80, diffusion=1.0)])
    ensemble = made.sample(5000, target, seed=1, batch_size=5000)
    log_z = ensemble.log_z()
    assert log_z.error < 0.05
    assert abs(log_z.z_score(0.0)) < 4
    second = ensemble.expectation(lambda state: (state["x"] - MEAN).square().mean(1))
    assert abs(second.z_score(WIDTH**2)) < 4


def test_weights_narrow_with_the_number_of_steps():
    target = Shifted(2, scale=WIDTH).double()
    spread = [
        float(Generator(base(), [sampler]).sample(2000, target, seed=1).ess_fraction())
        for sampler in (stochastic(Interpolant(), n_steps=n, diffusion=0.3) for n in (10, 40, 80))
    ]
    assert spread[0] < spread[1] < spread[2]
    assert spread[2] > 0.7


def test_reverse_is_minus_forward_of_the_same_path():
    one = stochastic(Interpolant(noise=0.5), n_steps=1, diffusion=0.5)
    x = base().sample(50, make_rng(1))
    y, ratio = one(x, Run(make_rng(2)))
    torch.testing.assert_close(one.log_ratio(x, y, Run(make_rng(0))), ratio)
    back, minus = one.reverse(y, Run(make_rng(3)))
    torch.testing.assert_close(one.log_ratio(back, y, Run(make_rng(0))), -minus)


def test_paths_traced_back_bound_from_the_other_side():
    target = Shifted(2, scale=WIDTH).double()
    made = Generator(base(), [stochastic(INTERPOLANTS["linear"], n_steps=40, diffusion=1.0)])
    samples = target.sample(5000, make_rng(4))
    samples = samples.replace(x=samples["x"] + MEAN)
    with torch.no_grad():
        log_w = made.trace_back(samples, target, make_rng(5)).log_weights
    inverse = torch.exp(-log_w)
    assert abs(inverse.mean() - 1.0) < 4 * inverse.std() / len(inverse) ** 0.5


def test_positions_without_a_centre_of_mass_keep_it():
    class Shrink(VectorField):
        def forward(self, positions, t=0.0):
            return -0.3 * positions

    made = InterpolantSDE(Shrink(), base_scale=1.0, n_steps=4, diffusion=0.5).double()
    ensemble = (
        Generator(MeanFreeGaussian(4, 2), [made]).double().sample(20_000, MeanFreeGaussian(4, 2).double(), seed=1)
    )
    assert ensemble.samples["positions"].mean(1).__abs__().max() < 1e-12
    assert abs(ensemble.log_z().z_score(0.0)) < 4


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_the_exact_fields_are_the_minimum(name):
    interpolant = INTERPOLANTS[name]
    made = Generator(base(), [stochastic(interpolant, diffusion=0.3)])
    data = base().state(MEAN + WIDTH * torch.randn(100_000, 2, dtype=torch.float64, generator=make_rng(6)))
    objective = InterpolantMatching(made)
    slopes = []
    for k in range(10):
        loss, _ = objective(Step(make_rng(7, k), data=data.index(slice(10_000 * k, 10_000 * (k + 1)))))
        slopes.append(torch.stack(torch.autograd.grad(loss, list(made.parameters()))))
    slopes = torch.stack(slopes)
    z = slopes.mean(0) / (slopes.std(0) / 10**0.5)
    assert len(z) == (2 if interpolant.noise else 1)
    assert z.abs().max() < 5


def test_what_it_needs():
    field = ShallowField(2, 4)
    with pytest.raises(ValueError, match="got neither"):
        InterpolantSDE(field)
    with pytest.raises(ValueError, match="got both"):
        InterpolantSDE(field, denoiser=field, base_scale=1.0)
    with pytest.raises(ValueError, match="use EulerFlow along the same field"):
        InterpolantSDE(field, base_scale=1.0, diffusion=0.0)
    with pytest.raises(ValueError, match="needs a denoiser"):
        InterpolantSDE(field, base_scale=1.0, interpolant=Interpolant(noise=0.1))
    with pytest.raises(ValueError, match="expected a path"):
        Interpolant(noise=-1.0)
    deterministic = Generator(Gaussian(2), [EulerFlow(field, name="x")])
    with pytest.raises(ValueError, match="expected an interpolant"):
        InterpolantMatching(deterministic)
    assert InterpolantMatching(deterministic, interpolant=Interpolant(noise=0.1)).interpolant.noise == 0.1
    several = InterpolantSDE(field, base_scale=1.0, n_steps=2, name="x")
    state = Gaussian(2).sample(2, make_rng(1))
    with pytest.raises(ValueError, match="step"):
        several.log_ratio(state, state, Run(make_rng(0)))
