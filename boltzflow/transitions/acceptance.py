"""Kernels that stand still: the weights stay exact, but nothing is gained, so it is said with what to do."""

import logging
from collections.abc import Iterable

import torch

from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.step_size import Stepped

__all__ = ["FEWEST_ACCEPTED", "rejects_everything", "reset_acceptance", "warn_of_rejection"]

_log = logging.getLogger(__name__)

FEWEST_ACCEPTED = 0.01
"""Acceptance below which a kernel is taken to stand still."""


def rejects_everything(
    kernel: MetropolisKernel, rate: float, *, where: str | None = None, step_size: float | None = None
) -> str:
    """What to say of a kernel that accepts next to nothing; a further remedy may follow.

    Args:
        kernel: Which.
        rate: Its acceptance.
        where: Of its state; by default its level.
        step_size: There; by default its own, if it has one.
    """
    if step_size is None and hasattr(kernel, "step_size"):
        own = kernel.current_step_size() if isinstance(kernel, Stepped) else kernel.step_size
        step_size = float(own.detach().mean())
    step = "" if step_size is None else f" with step size {step_size:.3g}"
    return (
        f"{type(kernel).__name__} at {where or f'λ = {kernel.level:.4g}'}{step} accepts {rate:.2%} of its proposals, "
        f"where {kernel.target_acceptance:.0%} are aimed at. Take a step several times smaller"
    )


def reset_acceptance(transitions: Iterable[torch.nn.Module]) -> None:
    """Forget what the kernels among the steps have counted."""
    for step in transitions:
        if isinstance(step, MetropolisKernel):
            step.reset_acceptance()


def warn_of_rejection(transitions: Iterable[torch.nn.Module]) -> bool:
    """Log a warning for the worst kernel that has accepted less than a hundredth since `reset_acceptance`.

    Kernels without a step size, such as swaps of particles, may be right with that.

    Returns:
        Whether there is one.
    """
    stepped = [t for t in transitions if isinstance(t, MetropolisKernel) and hasattr(t, "step_size")]
    still = [(kernel.acceptance_rate(), kernel) for kernel in stepped]
    still = [(rate, kernel) for rate, kernel in still if rate < FEWEST_ACCEPTED]
    if still:
        rate, kernel = min(still, key=lambda pair: pair[0])
        others = f" ({len(still) - 1} other steps stand still, too)" if len(still) > 1 else ""
        remedy = "or have it adapted (find_schedule) or learned (generator.stochastic.learn_steps)"
        _log.warning("%s, %s%s.", rejects_everything(kernel, rate), remedy, others)
    return bool(still)
