"""Gradients of path objectives against finite differences of the exact expectation, accept-reject steps included."""

import functools
import math

import pytest
import torch

from boltzflow.generators import Generator, stochastic_block
from boltzflow.objectives import PathLikelihood, ReverseKL, Step
from boltzflow.paths import LearnedSchedule
from boltzflow.run import make_rng
from boltzflow.targets import DoubleWell, Gaussian, Wells
from boltzflow.transitions import Affine, RandomWalkMetropolis, UnadjustedHMC

WELL = (0.0, -0.3, -1.5, 0.0, 0.5)
STEP, LEVEL, SCALE = 1.3, 0.6, 1.2


def well(x):
    return sum(c * x**k for k, c in enumerate(WELL))


def normal_energy(x):
    return 0.5 * x**2 + 0.5 * math.log(2 * math.pi)


def generator():
    """Scaled normal, then one Metropolis step; scale, step size and level are learned."""
    steps = [
        Affine(torch.zeros(1), torch.full((1,), SCALE), field="x", learnable=True),
        RandomWalkMetropolis(STEP, learnable=True, level=LEVEL),
    ]
    return Generator(Gaussian(1), steps, path=LearnedSchedule([LEVEL])).double()


def grid(low, high, n=601):
    x = torch.linspace(low, high, n, dtype=torch.float64)
    return x, torch.full((n,), (high - low) / (n - 1), dtype=torch.float64)


def after_step(x, noise, step, level):
    """Both outcomes of a Metropolis step with their probabilities: [(y, P), (x, 1 − P)], and u_λ."""

    def u(z):
        return (1 - level) * normal_energy(z) + level * well(z)

    y = x + step * noise
    accept = torch.exp(torch.clamp(u(x) - u(y), max=0.0))
    return [(y, accept), (x.expand_as(y), 1 - accept)], u


def exact_reverse_kl(log_scale, log_step, level):
    z, dz = grid(-9, 9)
    n, dn = grid(-8, 8, 401)
    z, n = z[:, None], n[None]
    weight = torch.exp(-normal_energy(z) - normal_energy(n)) * dz[:, None] * dn[None]
    x = z * math.exp(log_scale)
    outcomes, u = after_step(x, n, math.exp(log_step), level)
    return float(
        sum((weight * p * (well(y) - log_scale - (u(y) - u(x)) - normal_energy(z))).sum() for y, p in outcomes)
    )


def exact_path_likelihood(log_scale, log_step, level):
    x, dx = grid(-6, 6)
    n, dn = grid(-8, 8, 401)
    p = torch.exp(-well(x)) * dx
    x, n = x[:, None], n[None]
    weight = (p / p.sum())[:, None] * torch.exp(-normal_energy(n)) * dn[None]
    outcomes, u = after_step(x, n, math.exp(log_step), level)
    # the way forward goes from y to x
    return float(
        sum(
            (weight * q * (normal_energy(y * math.exp(-log_scale)) + log_scale + u(x) - u(y))).sum()
            for y, q in outcomes
        )
    )


@functools.cache
def exact_gradient(loss):
    """Central differences with respect to log scale, log step and level."""
    point, found = [math.log(SCALE), math.log(STEP), LEVEL], []
    for k in range(3):
        ends = []
        for sign in (1, -1):
            moved = list(point)
            moved[k] += sign * 1e-3
            ends.append(loss(*moved))
        found.append((ends[0] - ends[1]) / 2e-3)
    return torch.tensor(found)


def sampled_gradients(objective, *, n_batches=24, batch=1500):
    """Gradients over independent batches, with respect to the same three numbers."""
    flow = objective.generator
    affine, kernel = flow.transitions
    rows = []
    for k in range(n_batches):
        rng = make_rng(3, k)
        data = objective._target[0].sample(batch, rng) if objective.needs_data else None
        flow.zero_grad()
        loss, _ = objective(Step(rng=rng, data=data, n_samples=batch))
        loss.backward()
        # λ = σ(a_1 − a_2) moves by λ (1 − λ) with a_1 at fixed a_2
        level = flow.path.log_increments.grad[0] / (LEVEL * (1 - LEVEL))
        rows.append(torch.stack([affine.log_scale.grad[0], kernel.log_step_factor.grad, level]))
    return torch.stack(rows)


CASES = {"forward": (ReverseKL, exact_reverse_kl), "reverse": (PathLikelihood, exact_path_likelihood)}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_exact_expectation(name):
    kind, loss = CASES[name]
    target = Wells(1, coefficients=WELL, wells=(0,)).double()
    gradients = sampled_gradients(kind(generator(), target))
    error = gradients.std(0) / math.sqrt(len(gradients))
    exact = exact_gradient(loss)
    assert ((gradients.mean(0) - exact) / error).abs().max() < 3.5
    assert (error < 0.1 * exact.abs().max()).all()


@pytest.mark.parametrize("name", CASES)
def test_without_the_decisions_they_are_not(name, monkeypatch):
    kind, loss = CASES[name]
    module = f"boltzflow.objectives.{'reverse_kl' if name == 'forward' else 'path_likelihood'}.decision_term"
    monkeypatch.setattr(module, lambda decisions, costs, keep: torch.zeros(()))
    target = Wells(1, coefficients=WELL, wells=(0,)).double()
    gradients = sampled_gradients(kind(generator(), target))
    error = gradients.std(0) / math.sqrt(len(gradients))
    z = (gradients.mean(0) - exact_gradient(loss)) / error
    assert z.abs().max() > 8


@pytest.mark.parametrize("kernel", ["langevin", "unadjusted_hmc", "bbk", "baoab", "obabo"])
def test_steps_without_decisions_have_the_gradient_of_their_path(kernel):
    block = stochastic_block(kernel, step_size=0.1, n_steps=2, n_leapfrog=2, level=0.5, learnable=True)
    flow = Generator(Gaussian(2), block, path=LearnedSchedule([0.5])).double()
    target = DoubleWell().double()
    objectives = [ReverseKL(flow, target), PathLikelihood(flow, target)]
    parameters = [p for p in flow.parameters() if p.requires_grad]
    data = target.sample(32, make_rng(1))

    def loss():
        return sum(objective(Step(rng=make_rng(2), data=data, n_samples=32))[0] for objective in objectives)

    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat = parameter.data.view(-1)
        for k in range(len(flat)):
            ends = []
            for shift in (1e-5, -2e-5):
                flat[k] += shift
                ends.append(loss().item())
            flat[k] += 1e-5
            assert float(gradient.view(-1)[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-6)


def test_learned_masses_move_the_loss_as_autograd_says():
    masses = {"x": torch.tensor([0.5, 2.0], dtype=torch.float64)}
    step = UnadjustedHMC(0.1, n_leapfrog=3, masses=masses, learnable=True, level=0.5)
    flow = Generator(Gaussian(2), [step]).double()
    objective = ReverseKL(flow, DoubleWell().double())
    (gradient,) = torch.autograd.grad(objective(Step(rng=make_rng(2), n_samples=64))[0], [step._log_mass_factor_x])
    ends = []
    for shift in (1e-5, -2e-5):
        step._log_mass_factor_x.data[1] += shift
        ends.append(objective(Step(rng=make_rng(2), n_samples=64))[0].item())
    assert float(gradient[1]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_without_gradients_nothing_is_decided():
    flow = generator()
    with torch.no_grad():
        trajectory = flow.rollout(8, Wells(1, coefficients=WELL, wells=(0,)).double(), make_rng(0))
    assert trajectory.decisions == [None, None]
