"""Step sizes that are given, adapted or learned, and when a step has to be differentiable."""

import torch

from boltzflow._typing import Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.transition import Transition

__all__ = ["Stepped", "at_least_one", "per_row", "positive", "require_one_step", "tracks"]


def positive(name: str, value: float | Tensor) -> Tensor:
    """A positive scalar or (batch,) tensor, float64.

    Raises:
        ValueError: If it is not positive and finite.
    """
    tensor = torch.as_tensor(value, dtype=torch.float64).clone()
    if tensor.ndim > 1 or not bool((torch.isfinite(tensor) & (tensor > 0)).all()):
        raise ValueError(f"{name}: expected a positive number, or one per row, got {value}.")
    return tensor


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """A scalar or (batch,) tensor in the dtype of `like`, shaped to multiply it."""
    value = value.to(like.dtype)
    return value.reshape(-1, *[1] * (like.ndim - 1)) if value.ndim else value


def at_least_one(name: str, value: int) -> int:
    """A number of steps.

    Raises:
        ValueError: If it is below 1.
    """
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}.")
    return value


def require_one_step(transition: Transition, n_steps: int) -> None:
    """Check that the ratio of a pair (x, y) is that of one step.

    Raises:
        ValueError: If there are several: what lies between is not in the pair.
    """
    if n_steps != 1:
        raise ValueError(
            f"{type(transition).__name__}.log_ratio: expected n_steps = 1, got {n_steps}; a pair does not tell what "
            "lies between. Chain single steps, one Transition each."
        )


def tracks(transition: Transition, state: State, run: Run) -> bool:
    """Whether autograd has to see a step: it is on, and the State, the level or the Transition require a gradient.

    Parameters of submodules do not count: those are models that a kernel uses, not settings of its own.
    """
    if not torch.is_grad_enabled():
        return False
    if any(value.requires_grad for value in state.fields.values()):
        return True
    weights = () if run.level is None else (weight for weight, _ in run.level.terms)
    return any(isinstance(w, Tensor) and w.requires_grad for w in weights) or any(
        p.requires_grad for p in transition.parameters(recurse=False)
    )


class Stepped(Transition):
    """A Transition with a step size: `step_size` as given or adapted, times a learned factor if it is learnable."""

    def register_step_size(self, step_size: float | Tensor, *, learnable: bool) -> None:
        """Declare the step size.

        Args:
            step_size: A positive number, or one per row.
            learnable: Whether the logarithm of a factor on it is a parameter, 0 before training.
        """
        self.register_buffer("step_size", positive("step_size", step_size))
        factor = torch.nn.Parameter(torch.zeros((), dtype=torch.float64)) if learnable else None
        self.register_parameter("log_step_factor", factor)

    def current_step_size(self) -> Tensor:
        """The step size with what was learned of it, a scalar or (batch,)."""
        return self.step_size if self.log_step_factor is None else self.step_size * self.log_step_factor.exp()
