"""Error of the log-density where a step is approximate, measured by a second, tighter evaluation."""

import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from boltzflow.run import Context, Run, make_rng
from boltzflow.transitions import ApproximateAdaptiveFlow

if TYPE_CHECKING:
    from boltzflow.generators.generator import Generator, Trajectory

__all__ = ["log_q_errors", "warn_of_log_q_errors"]

_log = logging.getLogger(__name__)

LARGEST_RMS = 0.01
_ROWS = 32


def log_q_errors(generator: "Generator", trajectory: "Trajectory", context: Context | None) -> list[float] | None:
    """Log q of the first rows of a rollout minus what a tighter solver finds, in nat.

    Args:
        generator: That made it.
        trajectory: Without resampling.
        context: Of the run.

    Returns:
        One number for each of at most 32 rows that have not failed; None where every step is exact, or where the
        density of the samples is unknown because another step is stochastic.
    """
    approximate = [t for t in generator.transitions if isinstance(t, ApproximateAdaptiveFlow)]
    if not approximate or not generator.is_bijective:
        return None
    keep = torch.nonzero(~trajectory.failed)[:_ROWS, 0]
    state, total = trajectory.end.index(keep), torch.zeros(len(keep), dtype=torch.float64, device=keep.device)
    run = Run(make_rng(0, device=keep.device), context)
    with contextlib.ExitStack() as stack, torch.no_grad():
        for transition in approximate:
            stack.enter_context(transition.tightened())
        for transition in reversed(generator.transitions):
            state, ratio = transition.reverse(state, run)
            total = total + ratio
        tight = total - generator.base.reduced_energy(state, context).double()
    used = -trajectory.base_energy[keep] - sum(ratio[keep] for ratio in trajectory.log_ratios)
    return (used - tight).tolist()


def warn_of_log_q_errors(errors: Sequence[float]) -> bool:
    """Log a warning if their root mean square is above 0.01 nat; whether it is."""
    if not errors:
        return False
    rms = float(torch.tensor(errors, dtype=torch.float64).square().mean().sqrt())
    large = not rms <= LARGEST_RMS
    if large:
        _log.warning(
            "log q of these samples is wrong by %.2g nat (root mean square over %d rows, against a hundredth of the "
            "tolerance): weights are biased. Lower the tolerance, or use RungeKuttaFlow, whose weights are exact.",
            rms,
            len(errors),
        )
    return large
