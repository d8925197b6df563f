"""All checks that apply to a Target or a Transition, in one call."""

from collections.abc import Sequence

import torch

from boltzflow.generators.generator import Generator
from boltzflow.run import Context, Run, make_rng
from boltzflow.state import State
from boltzflow.targets.harmonic import harmonic_pair
from boltzflow.targets.target import Base, Target
from boltzflow.testing._compare import floating
from boltzflow.testing.bijections import assert_log_ratio
from boltzflow.testing.generators import assert_crooks
from boltzflow.testing.targets import assert_normalised, assert_sampler, assert_target
from boltzflow.testing.transitions import assert_detailed_balance, assert_dtypes, assert_reverse_ratio
from boltzflow.transitions.transition import Bijection, DetailedBalance, Transition

__all__ = ["check_target", "check_transition"]


def check_target(
    target: Target,
    *,
    state: State | None = None,
    rng: torch.Generator | None = None,
    contexts: Sequence[Context | None] = (None,),
    proposal: Target | None = None,
    n: int = 10_000,
) -> None:
    """Run every check that applies to a Target (see `assert_target`, `assert_sampler`, `assert_normalised`).

    The sampler is checked if there is one; log Z if it is known too and either a proposal is given, or d ≤ 4 on lines
    and intervals alone or circles alone.

    Args:
        target: What is tested.
        state: Points of its support; needed where there is no sampler.
        rng: Random stream; None = a fixed one.
        contexts: Every context that is to be tried.
        proposal: Overlapping Target of known density, for `assert_normalised` in higher dimensions.
        n: Number of samples for the statistical checks.

    Raises:
        AssertionError: If a check fails.

    Example:
        >>> from boltzflow.targets import DoubleWell
        >>> check_target(DoubleWell().double())
    """
    rng = make_rng(0) if rng is None else rng
    assert_target(target, rng, state=state, contexts=contexts)
    if type(target).sample is Target.sample:
        return
    for context in contexts:
        assert_sampler(target, n=n, rng=rng, context=context)
        kinds = {space.kind for space in target.fields.values()}
        by_default = target.dimension <= 4 and (kinds <= {"line", "interval"} or kinds == {"circle"})
        # a point mass has no density to overlap with
        if target.log_z is not None and target.measure != "counting" and (by_default or proposal is not None):
            assert_normalised(target, n=n, rng=rng, context=context, proposal=proposal)


def check_transition(
    transition: Transition,
    state: State,
    run: Run,
    *,
    base: Base | None = None,
    target: Target | None = None,
    n: int = 4000,
) -> None:
    """Run every check that applies to a Transition.

    Ratios of single paths, dtypes and Crooks' relation for all; the Jacobian for Bijections; detailed balance for
    DetailedBalance kernels. If the State has one floating-point field on a line, base and target default to a harmonic
    pair on it; otherwise, without them, the checks that need them are left out.

    Args:
        transition: What is tested, in float64.
        state: Points in its domain, float64.
        run: Handed on; its level gives the energy if the Transition needs one.
        base: With exact sampler and known log Z.
        target: With exact sampler and known log Z, overlapping with the base after the Transition.
        n: Number of paths for the statistical checks.

    Raises:
        AssertionError: If a check fails.

    Example:
        >>> from boltzflow.targets import DoubleWell
        >>> from boltzflow.testing import run_at
        >>> from boltzflow.transitions.mala import MALA
        >>> target, rng = DoubleWell().double(), make_rng(0)
        >>> check_transition(MALA(step_size=0.02), target.sample(8, rng), run_at(target, rng))
    """
    if isinstance(transition, (Bijection, DetailedBalance)) or callable(getattr(transition, "log_ratio", None)):
        assert_reverse_ratio(transition, state, run)
    if isinstance(transition, Bijection):
        assert_log_ratio(transition, state, run)
    assert_dtypes(transition, state, run)
    if base is None and target is None:
        fields = floating(state)
        (name,) = fields if len(fields) == 1 else (None,)
        if name is None or state.spaces[name].kind != "line" or state.spaces[name].dimension != fields[name][0].numel():
            return
        base, target = (end.to(state.device, state.dtype) for end in harmonic_pair(state.spaces[name].shape, name=name))
    if base is None or target is None:
        raise ValueError("check_transition: expected both base and target, or neither.")
    if isinstance(transition, DetailedBalance):
        assert_detailed_balance(transition, target, n=n, rng=run.rng, context=run.context)
    generator = Generator(base, [transition])
    assert_crooks(generator, target, n=n, rng=run.rng, context=run.context)
