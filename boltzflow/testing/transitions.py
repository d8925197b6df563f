"""Checks of any Transition: ratios of single paths, invariance, detailed balance, dtypes."""

import copy
from collections.abc import Callable

import torch

from boltzflow.run import Context, Run
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.testing._compare import check_z_scores, fail, floating, observables, run_at, tolerance_for
from boltzflow.testing.bijections import assert_invertible
from boltzflow.transitions.transition import Bijection, DetailedBalance, Transition

__all__ = ["assert_detailed_balance", "assert_dtypes", "assert_leaves_invariant", "assert_reverse_ratio"]


def assert_reverse_ratio(transition: Transition, state: State, run: Run, *, tolerance: float | None = None) -> None:
    """Check that `forward` and `reverse` return the ratio, and minus the ratio, of the path that they made.

    The ratio of a given pair (x, y) comes from the inverse of a Bijection, from the energies of a DetailedBalance
    kernel, and from `log_ratio(x, y, run)` of any other Transition.

    Args:
        transition: What is tested.
        state: Points in its domain.
        run: Handed on; its level gives the energy if the Transition needs one.
        tolerance: On the difference over max(1, |r|); None = 1e-8 in float64, 1e-3 in float32.

    Raises:
        AssertionError: If a ratio differs from that of its own path.
        TypeError: If the Transition offers none of these ways; test it with `assert_crooks`.
    """
    if isinstance(transition, Bijection):
        assert_invertible(transition, state, run, tolerance=tolerance)
        return
    tolerance = tolerance_for(state, tolerance)
    name = type(transition).__name__
    pair = _pair_ratio(transition)
    with torch.no_grad():
        y, ratio = transition.forward(state, run)
        x, minus_ratio = transition.reverse(y, run)
        for what, found, expected in (
            ("forward returns r", ratio, pair(state, y, run)),
            ("reverse returns −r", minus_ratio, -pair(x, y, run)),
        ):
            off = torch.nan_to_num((found - expected).abs() / expected.abs().clamp_min(1.0), nan=torch.inf)
            off = torch.where(found == expected, 0.0, off)  # −inf on both sides
            row = int(off.argmax())
            if off[row] > tolerance:
                fail(
                    f"{name}: {what} = {found[row].item():.10g} in row {row}, but that path has "
                    f"{expected[row].item():.10g} (relative tolerance {tolerance:g})."
                )


def _pair_ratio(transition: Transition) -> Callable[[State, State, Run], torch.Tensor]:
    if isinstance(transition, DetailedBalance):

        def difference_of_energies(x: State, y: State, run: Run) -> torch.Tensor:
            before, after = run.energy(x)[0], run.energy(y)[0]
            return torch.where(torch.isinf(before) & torch.isinf(after), 0.0, after - before)

        return difference_of_energies
    log_ratio = getattr(transition, "log_ratio", None)
    if log_ratio is None:
        raise TypeError(
            f"{type(transition).__name__} has neither log_ratio(x, y, run) nor detailed balance; "
            "test it with assert_crooks."
        )
    return log_ratio


def _moved(
    transition: Transition, target: Target, n: int, rng: torch.Generator, context: Context | None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Observables of exact samples before and after one move."""
    run = run_at(target, rng, context)
    with torch.no_grad():
        x = target.sample(n, rng, context)
        y, _ = transition.forward(x, run)
        before, after = observables(x, x), observables(y, x)
        u, v = run.energy(x)[0], run.energy(y)[0]
    scale = u.std().clamp_min(1e-300)
    before["tanh u"], after["tanh u"] = torch.tanh((u - u.mean()) / scale), torch.tanh((v - u.mean()) / scale)
    return before, after


def assert_leaves_invariant(
    transition: Transition, target: Target, *, n: int, rng: torch.Generator, context: Context | None = None
) -> None:
    """Check that exact samples of the Target are still samples of it after one `forward`.

    Bounded functions of every coordinate and of the energy must keep their means, by z-score of the change of each row.

    Args:
        transition: A kernel that should leave exp(−u) invariant.
        target: With an exact sampler.
        n: Number of samples; the smallest bias that is seen is about 5/√n of a standard deviation.
        rng: Random stream.
        context: Passed on.

    Raises:
        AssertionError: If a mean moves by more than chance allows.
    """
    before, after = _moved(transition, target, n, rng, context)
    change = {name: after[name] - before[name] for name in before}
    check_z_scores(
        f"{type(transition).__name__} on {target.name}: change of a mean under an invariant kernel",
        {name: c.mean().item() for name, c in change.items()},
        {name: c.std().item() / n**0.5 for name, c in change.items()},
    )


def assert_detailed_balance(
    transition: Transition, target: Target, *, n: int, rng: torch.Generator, context: Context | None = None
) -> None:
    """Check that pairs (x, y) of a kernel started from exact samples are as likely as (y, x).

    E[f(x) g(y)] = E[g(x) f(y)] for bounded f and g of neighbouring coordinates and of the energy, by z-score; and the
    invariance that follows from it.

    Args:
        transition: A reversible kernel.
        target: With an exact sampler.
        n: Number of samples.
        rng: Random stream.
        context: Passed on.

    Raises:
        AssertionError: If a pair of means differs by more than chance allows.
    """
    before, after = _moved(transition, target, n, rng, context)
    names = list(before)
    statistics = {f"change of {name}": after[name] - before[name] for name in names}
    for i, f in enumerate(names[:-1]):
        for g in {names[i + 1], names[-1]}:
            statistics[f"({f})({g}) − exchanged"] = before[f] * after[g] - before[g] * after[f]
    check_z_scores(
        f"{type(transition).__name__} on {target.name}: detailed balance",
        {name: s.mean().item() for name, s in statistics.items()},
        {name: s.std().item() / n**0.5 for name, s in statistics.items()},
    )


def assert_dtypes(transition: Transition, state: State, run: Run) -> None:
    """Check that float32 and float64 States keep their dtype and that log-ratios are finite float64 either way.

    Args:
        transition: What is tested; a copy is cast.
        state: Points in its domain.
        run: Handed on.

    Raises:
        AssertionError: If a dtype changes or a log-ratio is not a finite float64.
    """
    name = type(transition).__name__
    for dtype in (torch.float32, torch.float64):
        cast = copy.deepcopy(transition).to(dtype)
        with torch.no_grad():
            y, ratio = cast.forward(state.to(dtype=dtype), run)
            x, minus_ratio = cast.reverse(y, run)
        for what, one, r in (("forward", y, ratio), ("reverse", x, minus_ratio)):
            wrong = {key: str(value.dtype) for key, value in floating(one).items() if value.dtype != dtype}
            if wrong:
                fail(f"{name}: {what} of a {dtype} State returned {wrong}.")
            if r.dtype != torch.float64:
                fail(f"{name}: {what} of a {dtype} State returned a log-ratio in {r.dtype}, expected torch.float64.")
            if not torch.isfinite(r).all():
                fail(f"{name}: {what} of a {dtype} State gave {int((~torch.isfinite(r)).sum())} non-finite log-ratios.")
