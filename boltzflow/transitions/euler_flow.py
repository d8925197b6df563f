"""EulerFlow: explicit Euler steps along a vector field, weighed by the log-determinant of those very steps."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import wrap
from boltzflow.transitions.step_size import at_least_one
from boltzflow.transitions.transition import Bijection

__all__ = ["EulerFlow"]

MAX_NEWTON = 20


class EulerFlow(Bijection):
    """n steps x ← x + v(x, t)/n at t = 0, 1/n, …; log|det ∂y/∂x| is that of the steps, whatever n is.

    The determinant of every step comes from a Cholesky factorisation of 1 + ∂v/∂x/n if the field is a gradient, from LU
    otherwise. A step is one to one where its Jacobian is positive definite, between any two points joined by such
    points: rows at which it is not (at which an LU determinant is not positive) are failures of the model and get NaN.
    The reverse solves every step by Newton's method to the last digits; rows that do not converge are failures as well.

    Angles are brought back to [-π, π); positions are not wrapped into the box: what reads them takes nearest images.
    Where the space of the field has no centre of mass v must have none either; along translations, which v does not
    see, the determinant is 1.

    Moving one particle after the other, each given all others, would leave determinants of D × D, and takes a third of
    the time (43 disks, float64, one thread: 99 instead of 302 µs per row). Its result depends on the order of the
    particles; all are moved at once here so that particles of one type stay alike.

    Args:
        field: The velocities.
        n_steps: Steps.
        name: Name of the State's field of positions (batch, N, D), or of a flat one (batch, d).

    Attributes:
        is_compiled: Whether the field goes through `torch.compile`: minutes at the start, then less time per step; for
            training, where all batches have one size. The reverse is not compiled.

    References:
        Invertible Residual Networks (Behrmann et al., 2019), https://arxiv.org/abs/1811.00995; normalising flows along
        temperature in liquids: Jung, Biroli, Berthier (2024), https://arxiv.org/abs/2404.09914

    Example:
        >>> from boltzflow.networks import PairField
        >>> from boltzflow.run import make_rng
        >>> from boltzflow.targets import DoubleWellCluster
        >>> flow = EulerFlow(PairField([0] * 4, 2, reach=6.0)).double()
        >>> x = torch.randn(3, 4, 2, dtype=torch.float64, generator=make_rng(1))
        >>> state = DoubleWellCluster().state(x - x.mean(1, keepdim=True))
        >>> flow(state, Run(make_rng(1)))[1]  # untrained, it moves nothing
        tensor([0., 0., 0.], dtype=torch.float64, grad_fn=<AddBackward0>)
    """

    is_compiled = False

    def __init__(self, field: VectorField, *, n_steps: int = 1, name: str = "positions") -> None:
        super().__init__()
        self.field, self.name = field, name
        self.n_steps = at_least_one("EulerFlow n_steps", n_steps)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds its references."""
        return ("EulerFlow", type(self.field).__name__)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The steps in order; the log-ratio is log|det ∂y/∂x|."""
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in range(self.n_steps):
            v, jacobian = self._evaluate("velocity_and_jacobian", x, k / self.n_steps)
            x = x + v / self.n_steps
            ratio = ratio + self._log_det(jacobian)
        return self._placed(state, x), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The inverses in opposite order; minus log|det ∂y/∂x| of the same points."""
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in reversed(range(self.n_steps)):
            x = self._solved(x, k / self.n_steps)
            ratio = ratio - self._log_det(self.field.jacobian(x, k / self.n_steps))
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
            t = k / self.n_steps
            jacobian, log_det, slope = self._slope(x, t)
            carried = self._newton_step(carried - slope, jacobian.mT)
            x = x + self._evaluate("forward", x, t) / self.n_steps
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
            t = k / self.n_steps
            x = self._solved(x, t)
            jacobian, log_det, slope = self._slope(x, t)
            carried = slope + (carried.double().flatten(1)[:, None] @ self._matrix(jacobian)).reshape(x.shape).to(x)
            ratio = ratio - log_det
        return self._placed(state, x), ratio, {**score, self.name: carried}

    def _evaluate(self, what: str, x: Tensor, t: float) -> Any:
        if not self.is_compiled:
            return getattr(self.field, what)(x, t)
        # a tensor, since every number would be compiled anew
        return _compiled(what)(self.field, x, x.new_full((len(x),), t))

    def _placed(self, state: State, x: Tensor) -> State:
        return state.replace(**{self.name: wrap(x, state.spaces[self.name])})

    def _slope(self, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """∂v/∂x, log|det(1 + ∂v/∂x/n)| and its derivative by x; without autograd history."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            jacobian = self._evaluate("jacobian", leaf, t)
            log_det = self._log_det(jacobian)
            if not log_det.requires_grad:
                return jacobian.detach(), log_det, torch.zeros_like(leaf)
            (slope,) = torch.autograd.grad(log_det.sum(), leaf)
        return jacobian.detach(), log_det.detach(), slope

    def _matrix(self, jacobian: Tensor) -> Float64[Tensor, "batch coordinates coordinates"]:
        eye = torch.eye(jacobian.shape[1], dtype=torch.float64, device=jacobian.device)
        return eye + jacobian.double() / self.n_steps

    def _log_det(self, jacobian: Tensor) -> Float64[Tensor, " batch"]:
        matrix = self._matrix(jacobian)
        if self.field.is_gradient:
            return _PositiveLogDet.apply(matrix)[0]
        sign, log_det = torch.linalg.slogdet(matrix)
        return torch.where(sign > 0, log_det, torch.nan)

    def _solved(self, y: Float[Tensor, "batch *event"], t: float) -> Float[Tensor, "batch *event"]:
        """The point x with x + v(x, t)/n = y, by Newton's method; NaN where it does not converge."""
        tolerance = 64 * torch.finfo(y.dtype).eps
        with torch.no_grad():
            scale = 1.0 + y.abs().flatten(1).amax(1)
            x, converged = y, torch.zeros(len(y), dtype=torch.bool, device=y.device)
            for _ in range(MAX_NEWTON):
                v, jacobian = self.field.velocity_and_jacobian(x, t)
                step = self._newton_step(x + v / self.n_steps - y, jacobian)
                size = step.abs().flatten(1).amax(1)
                x = torch.where(_rows(converged | ~torch.isfinite(size), x), x, x - step)
                converged = converged | (size <= tolerance * scale)
                if bool(converged.all()):
                    break
            x = torch.where(_rows(converged, x), x, torch.nan)
        if not torch.is_grad_enabled():
            return x
        # one more step, of length zero, has the derivatives of the solution by y and by the parameters
        v = self.field(x, t)
        with torch.no_grad():
            jacobian = self.field.jacobian(x, t)
        return x - self._newton_step(x + v / self.n_steps - y, jacobian)

    def _newton_step(self, residual: Tensor, jacobian: Tensor) -> Tensor:
        solved, _ = torch.linalg.solve_ex(self._matrix(jacobian), residual.double().flatten(1)[..., None])
        return solved[..., 0].unflatten(1, residual.shape[1:]).to(residual.dtype)

    def extra_repr(self) -> str:
        """Steps and the field of the State."""
        return f"n_steps={self.n_steps}, name={self.name!r}"


@functools.cache
def _compiled(what: str) -> Callable:
    return torch.compile(lambda field, x, t: getattr(field, what)(x, t), dynamic=False)


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


class _PositiveLogDet(torch.autograd.Function):
    """log det of symmetric positive definite matrices, NaN of others."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix):
        factor, info = torch.linalg.cholesky_ex(matrix)
        bad = (info != 0)[:, None, None]
        factor = torch.where(bad, torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device), factor)
        log_det = 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return torch.where(bad[:, 0, 0], torch.nan, log_det), factor, bad

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, factor, bad = output
        ctx.mark_non_differentiable(factor, bad)
        ctx.save_for_backward(factor, bad)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _factor, _bad):
        factor, bad = ctx.saved_tensors
        return torch.where(bad, 0.0, grad[:, None, None] * torch.cholesky_inverse(factor))
