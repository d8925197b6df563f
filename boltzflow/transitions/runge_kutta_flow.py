"""RungeKuttaFlow: explicit Runge-Kutta steps along a vector field, weighed by the determinant of those very steps."""

from typing import Literal

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import wrap
from boltzflow.transitions.step_size import at_least_one
from boltzflow.transitions.transition import Bijection

__all__ = ["RungeKuttaFlow"]

MAX_NEWTON = 20
STAGES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "midpoint": ((0.0, 0.5), (0.0, 1.0)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""Of every method the times of its stages, each reached along the velocity of the one before, and their weights."""


class RungeKuttaFlow(Bijection):
    """n steps x ← x + Σ_s b_s k_s/n, k_s = v(x + c_s k_{s−1}/n, t + c_s/n); log|det ∂y/∂x| is that of the steps.

    The Jacobian of a step follows from those of v at its stages by the chain rule, K_s = ∂v (1 + c_s K_{s−1}/n), so
    that the log-determinant is exact for every n, as that of `EulerFlow`, which is the method of one stage. The path
    follows the continuous flow to second or fourth order, for a field that was matched to data and is trained no
    further. The reverse solves every step by Newton's method to the last digits; rows whose determinant is not
    positive, or that do not converge, are failures of the model and get NaN.

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
        >>> from boltzflow.run import make_rng
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
        super().__init__()
        if method not in STAGES:
            raise ValueError(f"RungeKuttaFlow method: expected one of {sorted(STAGES)}, got {method!r}.")
        self.field, self.method, self.name = field, method, name
        self.n_steps = at_least_one("RungeKuttaFlow n_steps", n_steps)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds its references."""
        return ("RungeKuttaFlow", type(self.field).__name__)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The steps in order; the log-ratio is log|det ∂y/∂x|."""
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in range(self.n_steps):
            x, matrix = self._step(x, k)
            ratio = ratio + _log_det(matrix)
        return state.replace(**{self.name: wrap(x, state.spaces[self.name])}), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The inverses in opposite order; minus log|det ∂y/∂x| of the same points."""
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in reversed(range(self.n_steps)):
            x = self._solved(x, k)
            ratio = ratio - _log_det(self._step(x, k)[1])
        return state.replace(**{self.name: wrap(x, state.spaces[self.name])}), ratio

    def _step(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Where step k ends, and its Jacobian, (batch, d, d) in float64."""
        h, (times, weights) = 1.0 / self.n_steps, STAGES[self.method]
        eye = torch.eye(x[0].numel(), dtype=torch.float64, device=x.device)
        slope, matrix, end, total = torch.zeros_like(x), torch.zeros_like(eye), x, eye
        for c, b in zip(times, weights, strict=True):
            slope, jacobian = self.field.velocity_and_jacobian(x + c * h * slope, (k + c) * h)
            matrix = jacobian.double() @ (eye + c * h * matrix)
            end, total = end + b * h * slope, total + b * h * matrix
        return end, total

    def _solved(self, y: Float[Tensor, "batch *event"], k: int) -> Float[Tensor, "batch *event"]:
        """The point from which step k leads to y, by Newton's method; NaN where it does not converge."""
        tolerance = 64 * torch.finfo(y.dtype).eps
        rows = (-1, *[1] * (y.ndim - 1))
        with torch.no_grad():
            scale = 1.0 + y.abs().flatten(1).amax(1)
            x, converged = y, torch.zeros(len(y), dtype=torch.bool, device=y.device)
            for _ in range(MAX_NEWTON):
                step = self._correction(x, y, k)
                size = step.abs().flatten(1).amax(1)
                x = torch.where((converged | ~torch.isfinite(size)).reshape(rows), x, x - step)
                converged = converged | (size <= tolerance * scale)
                if bool(converged.all()):
                    break
            x = torch.where(converged.reshape(rows), x, torch.nan)
        # one more step, of length zero, has the derivatives of the solution by y and by the parameters
        return x - self._correction(x, y, k) if torch.is_grad_enabled() else x

    def _correction(self, x: Tensor, y: Tensor, k: int) -> Tensor:
        end, matrix = self._step(x, k)
        solved, _ = torch.linalg.solve_ex(matrix.detach(), (end - y).double().flatten(1)[..., None])
        return solved[..., 0].unflatten(1, x.shape[1:]).to(x.dtype)

    def extra_repr(self) -> str:
        """Steps, method and the field of the State."""
        return f"n_steps={self.n_steps}, method={self.method!r}, name={self.name!r}"


def _log_det(matrix: Float64[Tensor, "batch d d"]) -> Float64[Tensor, " batch"]:
    sign, log_det = torch.linalg.slogdet(matrix)
    return torch.where(sign > 0, log_det, torch.nan)
