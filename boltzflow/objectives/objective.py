"""Objective: a loss module over (generator, target or data) that trains and never defines weights."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from boltzflow._typing import Bool, Float, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.run import Context, Ledger
from boltzflow.state import State

__all__ = ["Objective", "Step"]


@dataclass
class Step:
    """What a loss module sees of one optimisation step.

    Attributes:
        rng: Random stream of the step.
        data: Rows of the training data, for objectives that read them.
        n_samples: Model samples to draw, for objectives that sample.
        context: Passed on to Targets and Transitions.
        ledger: Where target evaluations are counted.
        index: Number of steps before this one, for objectives that change as training goes on.
    """

    rng: torch.Generator
    data: State | None = None
    n_samples: int = 0
    context: Context | None = None
    ledger: Ledger = field(default_factory=Ledger)
    index: int = 0


class Objective(torch.nn.Module, abc.ABC):
    """A loss module: `forward(step)` returns the loss and numbers to log. Data-parallel wrappers wrap it as it is.

    Args:
        generator: What is trained.
    """

    needs_data: bool = False
    needs_samples: bool = False
    can_be_sharded: bool = True
    """Whether parts of a batch can be given to processes that know nothing of each other's rows."""
    is_static: bool = False
    """Whether every step makes the same sequence of kernels without a look at a value: what a CUDA graph can hold."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    @abc.abstractmethod
    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss of one step, a scalar, and detached scalars to log by name."""

    def prepare(self, data: State, context: Context | None, ledger: Ledger) -> State:
        """The training data with all that is evaluated of them once and for all; called before the first step.

        Args:
            data: All rows.
            context: Passed on to Targets.
            ledger: Where target evaluations are counted.
        """
        return data

    def memory(self) -> dict:
        """What a checkpoint needs besides the parameters to continue exactly: tensors and plain values."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Continue from `memory()`."""


def masked_mean(values: Tensor, keep: Tensor) -> Tensor:
    """Mean over the rows kept; the others get a gradient of zero."""
    kept = torch.where(keep, values, torch.zeros_like(values))
    return kept.sum() / keep.sum().clamp(min=1)


def ess_fraction(log_weights: Float64[Tensor, " batch"]) -> Float64[Tensor, ""]:
    """Kish effective sample size per row, for logs."""
    return torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)) / len(log_weights)


def finite_log_prob(
    generator: Generator, state: State, context: Context | None
) -> tuple[Float64[Tensor, " kept"], Bool[Tensor, " batch"]]:
    """Log-density of the rows where it is finite, and which these are; without any, the log-density as it is.

    The others take no part in the graph: a mask on the result would leave 0·NaN in the gradients of the parameters.
    """
    log_q = generator.log_prob(state, context=context)
    finite = torch.isfinite(log_q.detach())
    if bool(finite.all()) or not bool(finite.any()):
        return log_q, finite
    return generator.log_prob(state.index(finite), context=context), finite
