"""Checks of whole paths: unbiased weights in both directions, and Crooks' relation between them."""

import math

import torch

from boltzflow.generators.generator import Generator, Trajectory
from boltzflow.run import Context
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.testing._compare import check_z_scores, fail, observables
from boltzflow.transitions.transition import BatchStep

__all__ = ["assert_crooks", "assert_unbiased"]

# a z-score with a larger relative error than this would let a wrong weight pass
MAX_ERROR = 0.1


def _known_ratio(generator: Generator, target: Target) -> float:
    if target.log_z is None or generator.base.log_z is None:
        raise ValueError(f"{target.name} and {generator.base.name} must have known log Z to test weights against.")
    return target.log_z - generator.base.log_z


def _require_finite(what: str, trajectory: Trajectory, target: Target) -> None:
    failed = int(trajectory.failed.sum())
    if failed:
        fail(f"{what} to {target.name}: {failed} rows failed with NaN or inf from the model.")


@torch.no_grad()
def _forward(generator: Generator, target: Target, n: int, rng: torch.Generator, context: Context | None) -> Trajectory:
    trajectory = generator.rollout(n, target, rng, context=context)
    _require_finite("rollout", trajectory, target)
    return trajectory


@torch.no_grad()
def _backward(
    generator: Generator, target: Target, n: int, rng: torch.Generator, context: Context | None
) -> Trajectory:
    trajectory = generator.trace_back(target.sample(n, rng, context), target, rng, context=context)
    _require_finite("trace_back", trajectory, target)
    return trajectory


def assert_unbiased(
    generator: Generator,
    target: Target,
    *,
    n: int,
    rng: torch.Generator,
    context: Context | None = None,
    n_populations: int = 50,
) -> None:
    """Check E[w] = Z/Z_base over rollouts, and E[1/w] = Z_base/Z over paths traced back from exact samples.

    With BatchSteps the rows of a population depend on each other: the mean is then taken over the mean weights of
    independent populations, and nothing is traced back.

    Args:
        generator: With a base of known log Z.
        target: With known log Z and, unless there are BatchSteps, an exact sampler.
        n: Number of paths each way; the standard errors must come out below 10 %.
        rng: Random stream.
        context: Passed on.
        n_populations: How many populations share the n paths if there are BatchSteps.

    Raises:
        AssertionError: If a mean is off by more than chance allows, or too uncertain to tell.
    """
    log_ratio = _known_ratio(generator, target)
    name = "E[w] Z_base/Z"
    if any(isinstance(step, BatchStep) for step in generator.transitions):
        populations = [_forward(generator, target, n // n_populations, rng, context) for _ in range(n_populations)]
        relative = {name: torch.stack([(p.log_weights - log_ratio).exp().mean() for p in populations])}
    else:
        relative = {
            name: (_forward(generator, target, n, rng, context).log_weights - log_ratio).exp(),
            "E[1/w] Z/Z_base": (log_ratio - _backward(generator, target, n, rng, context).log_weights).exp(),
        }
    mean = {name: w.mean().item() for name, w in relative.items()}
    error = {name: w.std().item() / math.sqrt(len(w)) for name, w in relative.items()}
    check_z_scores(f"paths from {generator.base.name} to {target.name}", mean, error, expected=1.0)
    for name, value in error.items():
        if value > MAX_ERROR:
            fail(f"{name} = {mean[name]:.3g} ± {value:.2g} says nothing: take more paths, or closer systems.")


def assert_crooks(
    generator: Generator, target: Target, *, n: int, rng: torch.Generator, context: Context | None = None
) -> None:
    """Check Crooks' relation E_forward[w g] = (Z/Z_base) E_backward[g] for bounded functions g of whole paths.

    g runs over 1/(1 + w/c), for several c about Z/Z_base, alone and times sines and cosines of both end points. All
    averages are bounded, so the check holds whatever the spread of w; at c = 1 it is Bennett's acceptance ratio.

    Args:
        generator: With a base of known log Z, and without BatchSteps.
        target: With known log Z and an exact sampler; `boltzflow.targets.harmonic_pair` gives such a pair.
        n: Number of paths each way.
        rng: Random stream.
        context: Passed on.

    Raises:
        AssertionError: If two averages differ by more than chance allows, or the two directions do not overlap.

    References:
        Crooks, Phys. Rev. E 61, 2361 (2000), eq. 6; Bennett, J. Comput. Phys. 22, 245 (1976).
    """
    log_ratio = _known_ratio(generator, target)
    forward = _forward(generator, target, n, rng, context)
    backward = _backward(generator, target, n, rng, context)
    log_f, log_b = forward.log_weights - log_ratio, backward.log_weights - log_ratio
    # a rollout ends under the target, a path traced back starts there: both Trajectories call that state `end`
    ends = {
        "1": (torch.ones_like(log_f), torch.ones_like(log_b)),
        **_paired("end", forward.end, backward.end),
        **_paired("start", forward.start, backward.start),
    }
    mean, error = {}, {}
    for log_c in (-2.0, 0.0, 2.0):
        wf, wb = math.exp(log_c) * torch.sigmoid(log_f - log_c), torch.sigmoid(log_c - log_b)
        overlap = wb.mean().item()
        if log_c == 0.0 and overlap < 0.01:
            fail(f"paths from {generator.base.name} to {target.name}: overlap {overlap:.2g} is too small to tell.")
        for name, (gf, gb) in ends.items():
            a, b = wf * gf, wb * gb
            key = f"⟨{name}⟩ forward − backward at c = e^{log_c:g}"
            mean[key] = (a.mean() - b.mean()).item()
            error[key] = math.sqrt((a.var() + b.var()).item() / n)
    check_z_scores(f"Crooks' relation from {generator.base.name} to {target.name}", mean, error)


def _paired(what: str, forward: State, backward: State) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    f, b = observables(forward, backward), observables(backward, backward)
    return {f"{what}: {name}": (f[name], b[name]) for name in f}
