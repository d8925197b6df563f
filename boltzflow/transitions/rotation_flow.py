"""RotationFlow: steps of rotations along angular velocities, weighed by the determinant of those very steps."""

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.coordinates.rotations import rotation_exp, rotation_log, rotation_right_jacobian
from boltzflow.networks.rotation_field import RotationField
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.step_size import at_least_one
from boltzflow.transitions.transition import Bijection

__all__ = ["RotationFlow"]

MAX_NEWTON = 20


class RotationFlow(Bijection):
    """n steps R ← R exp [ω(R, t)/n] at t = 0, 1/n, …; the log-ratio is that of the steps, in Haar measure.

    In frames of the bodies a step maps R exp [ξ] to R′ exp [M ξ], M = exp [ω/n]ᵀ + J E ω/n, with the right Jacobian J
    of the exponential at ω/n and the derivatives E_k of ω; log|det M| is exact for every n. Rotations stay rotations to
    round-off, because they are multiplied by rotations. The reverse solves every step by Newton's method on the group;
    rows whose det M is not positive, or that do not converge, are failures of the model and get NaN.

    Args:
        field: The angular velocities.
        n_steps: Steps.
        name: Name of the State's field of rotations, (batch, n, 3, 3).

    References:
        Lie-Euler steps: Crouch, Grossman, J. Nonlinear Sci. 3, 1 (1993); flows of rotations: Chen, Lipman (2024),
        https://arxiv.org/abs/2302.03660

    Example:
        >>> from boltzflow.run import make_rng
        >>> from boltzflow.targets import UniformRotations
        >>> flow = RotationFlow(RotationField(2, 8), n_steps=4).double()
        >>> flow(UniformRotations(2).double().sample(3, make_rng(1)), Run(make_rng(1)))[1]  # untrained, nothing moves
        tensor([0., 0., 0.], dtype=torch.float64, grad_fn=<AddBackward0>)
    """

    def __init__(self, field: RotationField, *, n_steps: int = 1, name: str = "rotations") -> None:
        super().__init__()
        self.field, self.name = field, name
        self.n_steps = at_least_one("RotationFlow n_steps", n_steps)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The steps in order; the log-ratio is log|det M|."""
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in range(self.n_steps):
            x, matrix = self._step(x, k / self.n_steps)
            ratio = ratio + _log_det(matrix)
        return state.replace(**{self.name: x}), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The inverses in opposite order; minus log|det M| of the same points."""
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in reversed(range(self.n_steps)):
            x = self._solved(x, k / self.n_steps)
            ratio = ratio - _log_det(self._step(x, k / self.n_steps)[1])
        return state.replace(**{self.name: x}), ratio

    def _step(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Where a step ends, and M of it."""
        omega, derivative = self.field.velocity_and_derivative(x, t)
        omega = omega / self.n_steps
        turn, jacobian = rotation_exp(omega), rotation_right_jacobian(omega)
        pushed = jacobian @ derivative.unflatten(1, (-1, 3)) / self.n_steps
        return x @ turn, _blocks(turn.mT) + pushed.flatten(1, 2)

    def _solved(self, y: Float[Tensor, "batch n 3 3"], t: float) -> Float[Tensor, "batch n 3 3"]:
        """The rotations from which a step leads to y; NaN where Newton's method does not converge."""
        tolerance = 64 * torch.finfo(y.dtype).eps
        with torch.no_grad():
            x, converged = y, torch.zeros(len(y), dtype=torch.bool, device=y.device)
            for _ in range(MAX_NEWTON):
                turn, size = self._correction(x, y, t)
                settled = (converged | ~torch.isfinite(size))[:, None, None, None]
                x = torch.where(settled, x, x @ rotation_exp(turn))
                converged = converged | (size <= tolerance)
                if bool(converged.all()):
                    break
            x = torch.where(converged[:, None, None, None], x, torch.nan)
        if not torch.is_grad_enabled():
            return x
        # one more correction, of length zero, has the derivatives of the solution by y and by the parameters
        return x @ rotation_exp(self._correction(x, y, t)[0])

    def _correction(self, x: Tensor, y: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The turn of x that brings the end of its step to y, to first order, and its size."""
        end, matrix = self._step(x, t)
        missing = rotation_log(end.mT @ y).flatten(1)
        solved, _ = torch.linalg.solve_ex(matrix.detach().double(), missing.double()[..., None])
        turn = solved[..., 0].to(x.dtype)
        return turn.unflatten(1, (-1, 3)), turn.detach().abs().amax(1)

    def extra_repr(self) -> str:
        """Steps and the field of the State."""
        return f"n_steps={self.n_steps}, name={self.name!r}"


def _blocks(matrices: Float[Tensor, "batch n 3 3"]) -> Float[Tensor, "batch coordinates coordinates"]:
    """One matrix with the others along its diagonal."""
    n = matrices.shape[1]
    eye = torch.eye(n, dtype=matrices.dtype, device=matrices.device)
    return torch.einsum("bnij,nm->bnimj", matrices, eye).reshape(len(matrices), 3 * n, 3 * n)


def _log_det(matrix: Tensor) -> Float64[Tensor, " batch"]:
    sign, log_det = torch.linalg.slogdet(matrix.double())
    return torch.where(sign > 0, log_det, torch.nan)
