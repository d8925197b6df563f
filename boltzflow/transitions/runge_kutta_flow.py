"""RungeKuttaFlow: explicit Runge-Kutta steps along a vector field, weighed by the determinant of those very steps."""

from typing import Literal

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.transitions.explicit_steps import ExplicitSteps

__all__ = ["RungeKuttaFlow"]

STAGES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "midpoint": ((0.0, 0.5), (0.0, 1.0)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""Of every method the times of its stages, each reached along the velocity of the one before, and their weights."""


class RungeKuttaFlow(ExplicitSteps):
    """n steps x ← x + Σ_s b_s k_s/n, k_s = v(x + c_s k_{s−1}/n, t + c_s/n); log|det ∂y/∂x| is that of the steps.

    The Jacobian of a step follows from those of v at its stages by the chain rule, K_s = ∂v (1 + c_s K_{s−1}/n), so
    that the log-determinant is exact for every n, as that of `EulerFlow`, which is the method of one stage. The path
    follows the continuous flow to second or fourth order, for a field that was matched to data.

    Args:
        field: The velocities.
        n_steps: Steps, of 2 evaluations of field and Jacobian for "midpoint" and 4 for "rk4".
        method: "midpoint" or "rk4".
        name: Name of the State's field of positions (batch, N, D), or of a flat one (batch, d).

    Raises:
        ValueError: If the method is unknown, or there is not a step.

    References:
        Kutta, Z. Math. Phys. 46, 435 (1901).

    Example:
        >>> from boltzflow.networks import ShallowField
        >>> from boltzflow.run import Run, make_rng
        >>> from boltzflow.targets import Gaussian
        >>> flow = RungeKuttaFlow(ShallowField(2, 8), n_steps=2, name="x").double()
        >>> flow(Gaussian(2).double().sample(3, make_rng(1)), Run(make_rng(1)))[1]  # untrained, it moves nothing
        tensor([0., 0., 0.], dtype=torch.float64, grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        field: VectorField,
        *,
        n_steps: int = 1,
        method: Literal["midpoint", "rk4"] = "rk4",
        name: str = "positions",
    ) -> None:
        super().__init__(field, n_steps=n_steps, name=name)
        if method not in STAGES:
            raise ValueError(f"RungeKuttaFlow method: expected one of {sorted(STAGES)}, got {method!r}.")
        self.method = method

    def move(self, x: Float[Tensor, "batch *event"], k: int) -> Float[Tensor, "batch *event"]:
        """Where step k ends."""
        h, (times, weights) = 1.0 / self.n_steps, STAGES[self.method]
        slope, end = torch.zeros_like(x), x
        for c, b in zip(times, weights, strict=True):
            slope = self.field.evaluate("forward", x + c * h * slope, (k + c) * h)
            end = end + b * h * slope
        return end

    def _step(self, x: Tensor, k: int) -> tuple[Tensor, Float64[Tensor, "batch coordinates coordinates"]]:
        h, (times, weights) = 1.0 / self.n_steps, STAGES[self.method]
        eye = torch.eye(x[0].numel(), dtype=torch.float64, device=x.device)
        slope, matrix, end, total = torch.zeros_like(x), torch.zeros_like(eye), x, eye
        for c, b in zip(times, weights, strict=True):
            slope, jacobian = self.field.evaluate("velocity_and_jacobian", x + c * h * slope, (k + c) * h)
            matrix = jacobian.double() @ (eye + c * h * matrix)
            end, total = end + b * h * slope, total + b * h * matrix
        return end, total

    def extra_repr(self) -> str:
        """Steps, method and the field of the State."""
        return f"n_steps={self.n_steps}, method={self.method!r}, name={self.name!r}"
