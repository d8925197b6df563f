"""Transition: one step, deterministic or stochastic, that knows its log-ratio of backward to forward probability."""

import abc

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State

__all__ = ["BatchStep", "Bijection", "DetailedBalance", "Transition"]


class Transition(torch.nn.Module, abc.ABC):
    """One step x → y with r = log p_backward(y→x) − log p_forward(x→y).

    Attributes:
        level: Position λ on the Generator's annealing path whose energy `run` hands over; None if no energy is used.
    """

    level: float | None = None

    @abc.abstractmethod
    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw y from p_forward(·|x).

        Returns:
            y, and r of shape (batch,), float64.
        """

    @abc.abstractmethod
    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw x from p_backward(·|y).

        Returns:
            x, and minus the forward ratio r of that same path, shape (batch,), float64.
        """


class Bijection(Transition):
    """A deterministic invertible map: `forward` returns log|det ∂y/∂x|, `reverse` is the exact inverse."""


class DetailedBalance(Transition):
    """A kernel in detailed balance with exp(−u_λ): r = u_λ(y) − u_λ(x), and the reverse is the same kernel.

    Subclasses implement `step`; any number of steps at one level telescopes, so the ratio costs two energies.

    Args:
        level: λ on the annealing path.
    """

    def __init__(self, *, level: float = 1.0) -> None:
        super().__init__()
        self.level = level

    @abc.abstractmethod
    def step(self, state: State, run: Run) -> State:
        """Move every row by a kernel that leaves exp(−u_λ) invariant and is reversible (palindromic if composed)."""

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Move; r = u_λ(y) − u_λ(x), 0 where nothing moved, −inf when leaving an infinite energy."""
        before, state = run.energy(state)
        moved = self.step(state, run)
        after, moved = run.energy(moved)
        ratio = torch.where(torch.isinf(before) & torch.isinf(after), 0.0, after - before)
        return moved, ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The same kernel; minus the forward ratio of the path x → y is u_λ(x) − u_λ(y)."""
        return self.forward(state, run)


class BatchStep(torch.nn.Module, abc.ABC):
    """A step that acts on a whole population (resampling): it has no reverse and is not a Transition.

    Attributes:
        level: λ of the energy by which the population is weighted.
    """

    level: float = 1.0

    @abc.abstractmethod
    def choose(self, log_weights: Float64[Tensor, " batch"], rng: torch.Generator) -> Tensor | None:
        """Ancestor of every row, shape (batch,), int64; None if the population is left as it is."""
