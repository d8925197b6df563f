"""Kernels that stand still: the weights stay exact, but nothing is gained, so it is said with what to do."""

import logging
from collections.abc import Iterable

import torch

from boltzflow.transitions.metropolis import MetropolisKernel

__all__ = ["FEWEST_ACCEPTED", "rejects_everything", "reset_acceptance", "warn_of_rejection"]

_log = logging.getLogger(__name__)

FEWEST_ACCEPTED = 0.01
"""Acceptance below which a kernel is taken to stand still."""


def rejects_everything(kernel: MetropolisKernel, rate: float) -> str:
    """What to say of a kernel that accepts next to nothing."""
    step = f" with step size {float(kernel.step_size.mean()):.3g}" if hasattr(kernel, "step_size") else ""
    return (
        f"{type(kernel).__name__} at λ = {kernel.level:.4g}{step} accepts {rate:.2%} of its proposals, where "
        f"{kernel.target_acceptance:.0%} are aimed at. Take a step several times smaller, or let find_schedule adapt it"
    )


def reset_acceptance(transitions: Iterable[torch.nn.Module]) -> None:
    """Forget what the kernels among the steps have counted."""
    for step in transitions:
        if isinstance(step, MetropolisKernel):
            step.reset_acceptance()


def warn_of_rejection(transitions: Iterable[torch.nn.Module]) -> None:
    """Log a warning for the worst kernel that has accepted less than a hundredth since `reset_acceptance`."""
    still = [(t.acceptance_rate(), t) for t in transitions if isinstance(t, MetropolisKernel)]
    still = [(rate, kernel) for rate, kernel in still if rate < FEWEST_ACCEPTED]
    if still:
        rate, kernel = min(still, key=lambda pair: pair[0])
        others = f" ({len(still) - 1} other steps stand still, too)" if len(still) > 1 else ""
        _log.warning("%s%s.", rejects_everything(kernel, rate), others)
