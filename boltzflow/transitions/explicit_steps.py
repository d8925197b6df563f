"""ExplicitSteps: steps x ← f(x, t) along a vector field, weighed by the log-determinant of those very steps."""

import abc
from collections.abc import Mapping

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import wrap
from boltzflow.transitions.step_size import at_least_one
from boltzflow.transitions.transition import Bijection

__all__ = ["ExplicitSteps"]

MAX_NEWTON = 40


class ExplicitSteps(Bijection):
    """n steps in order; log|det ∂y/∂x| is that of the steps, whatever n is. Subclasses say what a step is.

    The determinant of every step comes from LU. A step is one to one where its Jacobian is positive definite, between
    any two points joined by such points: rows at which the determinant is not positive are failures of the model and
    get NaN. The reverse solves every step by Newton's method to the last digits; rows that do not converge are failures
    as well.

    Angles are brought back to [-π, π); positions are not wrapped into the box: what reads them takes nearest images.
    Where the space of the field has no centre of mass v must have none either; along translations, which v does not
    see, the determinant is 1.

    Args:
        field: The velocities.
        n_steps: Steps.
        name: Name of the State's field of positions (batch, N, D), or of a flat one (batch, d).
    """

    def __init__(self, field: VectorField, *, n_steps: int = 1, name: str = "positions") -> None:
        super().__init__()
        self.field, self.name = field, name
        self.n_steps = at_least_one(f"{type(self).__name__} n_steps", n_steps)

    @abc.abstractmethod
    def move(self, x: Float[Tensor, "batch *event"], k: int) -> Float[Tensor, "batch *event"]:
        """Where step k ends.

        Args:
            x: Where it starts.
            k: Which step, from 0.
        """

    @abc.abstractmethod
    def _step(self, x: Tensor, k: int) -> tuple[Tensor, Float64[Tensor, "batch coordinates coordinates"]]:
        """Where step k ends, and its Jacobian."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds its references."""
        return (type(self).__name__, *self.field.methods)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The steps in order; the log-ratio is log|det ∂y/∂x|."""
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in range(self.n_steps):
            x, matrix = self._step(x, k)
            ratio = ratio + self._log_det(matrix)
        return self._placed(state, x), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The inverses in opposite order; minus log|det ∂y/∂x| of the same points."""
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in reversed(range(self.n_steps)):
            x = self._solved(x, k)
            ratio = ratio - self._log_det(self._step(x, k)[1])
        return self._placed(state, x), ratio

    def forward_with_score(
        self, state: State, run: Run, score: Mapping[str, Tensor]
    ) -> tuple[State, Float64[Tensor, " batch"], dict[str, Tensor]]:
        """As for every Bijection, step by step; the log-ratio has no autograd history here.

        The parameters then enter by the velocities alone: no derivative of a determinant by them is ever formed.
        """
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        carried = score[self.name]
        for k in range(self.n_steps):
            matrix, log_det, slope = self._slope(x, k)
            carried = _solve(matrix.mT, carried - slope)
            x = self.move(x, k)
            ratio = ratio + log_det
        return self._placed(state, x), ratio, {**score, self.name: carried}

    def reverse_with_score(
        self, state: State, run: Run, score: Mapping[str, Tensor]
    ) -> tuple[State, Float64[Tensor, " batch"], dict[str, Tensor]]:
        """As for every Bijection, step by step; the log-ratio has no autograd history here.

        The parameters then enter by the solutions alone, as in `forward_with_score` by the velocities.
        """
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        carried = score[self.name]
        for k in reversed(range(self.n_steps)):
            x = self._solved(x, k)
            matrix, log_det, slope = self._slope(x, k)
            carried = slope + (carried.double().flatten(1)[:, None] @ matrix).reshape(x.shape).to(x)
            ratio = ratio - log_det
        return self._placed(state, x), ratio, {**score, self.name: carried}

    def _placed(self, state: State, x: Tensor) -> State:
        return state.replace(**{self.name: wrap(x, state.spaces[self.name])})

    def _slope(self, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Jacobian of a step, its log-determinant and the derivative of that by x; without autograd history."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            matrix = self._step(leaf, k)[1]
            log_det = self._log_det(matrix)
            if not log_det.requires_grad:
                return matrix.detach(), log_det, torch.zeros_like(leaf)
            (slope,) = torch.autograd.grad(log_det.sum(), leaf)
        return matrix.detach(), log_det.detach(), slope

    def _log_det(self, matrix: Float64[Tensor, "batch coordinates coordinates"]) -> Float64[Tensor, " batch"]:
        sign, log_det = torch.linalg.slogdet(matrix)
        return torch.where(sign > 0, log_det, torch.nan)

    def _solved(self, y: Float[Tensor, "batch *event"], k: int) -> Float[Tensor, "batch *event"]:
        """The point from which step k leads to y, by Newton's method; NaN where it does not converge.

        The Jacobian of a row serves as long as its steps become ten times shorter every time. Rows that have converged
        are left alone, so that batches have many sizes and nothing is compiled.
        """
        tolerance = 64 * torch.finfo(y.dtype).eps
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            limit = tolerance * (1.0 + y.abs().flatten(1).amax(1))
            # what would be the start if the step were the same there
            x, found = 2.0 * y - self.move(y, k), torch.full_like(y, torch.nan)
            rows, size = torch.arange(len(y), device=y.device), torch.zeros_like(limit)
            stale, factors = torch.ones_like(rows, dtype=torch.bool), _factors(y)
            for _ in range(MAX_NEWTON):
                end = torch.empty_like(x)
                if bool(stale.any()):
                    end[stale], matrix = self._step(x[stale], k)
                    for old, new in zip(factors, torch.linalg.lu_factor_ex(matrix)[:2], strict=True):
                        old[stale] = new
                if not bool(stale.all()):
                    end[~stale] = self.move(x[~stale], k)
                step = torch.linalg.lu_solve(*factors, (end - y[rows]).double().flatten(1)[..., None])[..., 0]
                x = x - step.reshape(x.shape).to(x)
                before, size = size, step.abs().amax(1).to(y)
                done = size <= limit[rows]
                found[rows[done]] = x[done]
                left = ~done & torch.isfinite(size)
                if not bool(left.any()):
                    break
                stale = ~(size < 0.1 * before)[left]
                x, rows, size, factors = x[left], rows[left], size[left], [one[left] for one in factors]
            x = found
        if not torch.is_grad_enabled():
            return x
        # one more step, of length zero, has the derivatives of the solution by y and by the parameters
        with torch.no_grad():
            matrix = self._step(x, k)[1]
        return x - _solve(matrix, self.move(x, k) - y)

    def extra_repr(self) -> str:
        """Steps and the field of the State."""
        return f"n_steps={self.n_steps}, name={self.name!r}"


def _solve(matrix: Float64[Tensor, "batch coordinates coordinates"], right: Tensor) -> Tensor:
    solved, _ = torch.linalg.solve_ex(matrix, right.double().flatten(1)[..., None])
    return solved[..., 0].unflatten(1, right.shape[1:]).to(right.dtype)


def _factors(y: Tensor) -> list[Tensor]:
    """Room for the LU factors of a matrix for every row, and their pivots."""
    n, size = len(y), y[0].numel()
    matrices = torch.empty(n, size, size, dtype=torch.float64, device=y.device)
    return [matrices, torch.empty(n, size, dtype=torch.int32, device=y.device)]
