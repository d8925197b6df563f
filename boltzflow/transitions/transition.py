"""Transition: one step, deterministic or stochastic, that knows its log-ratio of backward to forward probability."""

import abc
from collections.abc import Mapping

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State

__all__ = ["BatchStep", "Bijection", "DetailedBalance", "Drop", "Transition"]


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

    def forward_with_score(
        self, state: State, run: Run, score: Mapping[str, Tensor]
    ) -> tuple[State, Float64[Tensor, " batch"], dict[str, Tensor]]:
        """`forward`, and what the score of a density becomes: ∂_y log q(y) = J⁻ᵀ (∂_x log q(x) − ∂_x log|det J|).

        This one is a vector-Jacobian product of `reverse` at y, for any Bijection: one more pass. Subclasses override
        it where their structure makes it cheaper.

        Args:
            state: x.
            run: As in `forward`.
            score: ∂_x log q by floating-point field, of its shape.

        Returns:
            y and the log-ratio as `forward` returns them, and ∂_y log q by field, without autograd history.

        References:
            Fast and Unified Path Gradient Estimators for Normalizing Flows (Vaitl et al., 2024), the recursion of
            section 3, https://arxiv.org/abs/2403.15881
        """
        y, ratio = self.forward(state, run)
        with torch.enable_grad():
            leaves = {k: v.detach().requires_grad_() for k, v in y.fields.items() if v.is_floating_point()}
            x, back = self.reverse(State({**y.fields, **leaves}, y.spaces), run)
            found = _pulled(back, x, score, leaves)
        return y, ratio, found

    def reverse_with_score(
        self, state: State, run: Run, score: Mapping[str, Tensor]
    ) -> tuple[State, Float64[Tensor, " batch"], dict[str, Tensor]]:
        """`reverse`, and what the score of a density becomes: ∂_x log p(x) = Jᵀ ∂_y log p(y) + ∂_x log|det J|.

        This one is a vector-Jacobian product of `forward` at x, for any Bijection: one more pass.

        Args:
            state: y.
            run: As in `reverse`.
            score: ∂_y log p by floating-point field, of its shape.

        Returns:
            x and the log-ratio as `reverse` returns them, and ∂_x log p by field, without autograd history.

        References:
            Fast and Unified Path Gradient Estimators for Normalizing Flows (Vaitl et al., 2024), forward KL,
            https://arxiv.org/abs/2403.15881
        """
        x, back = self.reverse(state, run)
        with torch.enable_grad():
            leaves = {k: v.detach().requires_grad_() for k, v in x.fields.items() if v.is_floating_point()}
            y, ratio = self.forward(State({**x.fields, **leaves}, x.spaces), run)
            found = _pulled(ratio, y, score, leaves)
        return x, back, found


def _pulled(
    ratio: Tensor, state: State, score: Mapping[str, Tensor], leaves: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Derivatives by the leaves of the sum of a log-ratio and of a State times its score."""
    pairs = [(ratio, torch.ones_like(ratio)), *[(state[name], value) for name, value in score.items()]]
    outputs, cotangents = zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True)
    found = torch.autograd.grad(outputs, list(leaves.values()), cotangents, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


class DetailedBalance(Transition):
    """A kernel in detailed balance with exp(−u_λ): r = u_λ(y) − u_λ(x), and the reverse is the same kernel.

    Subclasses implement `step`; any number of steps at one level telescopes, so the ratio costs two energies. Rows of
    infinite energy stay: the balance says nothing of them, and a step out could not be made backwards, so that paths
    traced back would come from where no path leads.

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
        """Move; r = u_λ(y) − u_λ(x), 0 where nothing moved and where the energy is infinite."""
        before, state = run.energy(state)
        outside = torch.isinf(before)
        moved = state.where(outside, self.step(state, run))
        after, moved = run.energy(moved)
        return moved, torch.where(outside, 0.0, after - before)

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The same kernel; minus the forward ratio of the path x → y is u_λ(x) − u_λ(y)."""
        return self.forward(state, run)


class Drop(Transition):
    """Takes an auxiliary variable off the State: `forward` draws nothing, `reverse` draws the variable anew.

    r is the log-density of that draw, a function of the State before alone: what u − r is to the joint density, u is to
    that without the variable.
    """

    def log_ratio(self, before: State, after: State, run: Run) -> Float64[Tensor, " batch"]:
        """The forward ratio of a given pair: that of the variable of `before`."""
        return self.forward(before, run)[1]


class BatchStep(torch.nn.Module, abc.ABC):
    """A step that acts on a whole population (resampling): it has no reverse and is not a Transition.

    Attributes:
        level: λ of the energy by which the population is weighted.
    """

    level: float = 1.0

    @abc.abstractmethod
    def choose(self, log_weights: Float64[Tensor, " batch"], rng: torch.Generator) -> Tensor | None:
        """Ancestor of every row, shape (batch,), int64; None if the population is left as it is."""
