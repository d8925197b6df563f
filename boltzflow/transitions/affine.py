"""Affine bijections: an unconditional scale and shift, and the RealNVP coupling."""

from collections.abc import Mapping, Sequence

import torch

from boltzflow._typing import Bool, Float, Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.coupling import Conditioner
from boltzflow.transitions.transition import Bijection

__all__ = ["Affine", "AffineCoupling"]


class Affine(Bijection):
    """y = shift + scale · x, elementwise.

    With the mean and standard deviation of data as shift and scale, `reverse` standardises the data.

    Args:
        shift: Shift of each coordinate, in the unit of y.
        scale: Positive scale of each coordinate.
        field: Name of the field, of shape (batch, *event).
        learnable: Train shift and log scale.

    Raises:
        ValueError: If a scale is not positive and finite.
    """

    def __init__(
        self,
        shift: Float[Tensor, "*event"],
        scale: Float[Tensor, "*event"],
        *,
        field: str = "q",
        learnable: bool = False,
    ) -> None:
        super().__init__()
        bad = torch.nonzero(~((scale > 0) & torch.isfinite(scale) & torch.isfinite(shift))).flatten()
        if len(bad):
            raise ValueError(
                f"Affine: expected finite shifts and positive, finite scales; coordinates {bad.tolist()} have scales "
                f"{scale[bad].tolist()} and shifts {shift[bad].tolist()}. A coordinate that never varies does not "
                "belong in the flow."
            )
        self.field = field
        self.shift = torch.nn.Parameter(shift.detach().clone(), requires_grad=learnable)
        self.log_scale = torch.nn.Parameter(scale.detach().log(), requires_grad=learnable)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Scale and shift; the log-ratio is the sum of the log scales."""
        y = self.shift + state[self.field] * torch.exp(self.log_scale)
        return state.replace(**{self.field: y}), self.log_scale.sum(dtype=torch.float64).expand(len(state))

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The exact inverse, with its log|det|."""
        x = (state[self.field] - self.shift) * torch.exp(-self.log_scale)
        return state.replace(**{self.field: x}), -self.log_scale.sum(dtype=torch.float64).expand(len(state))

    def forward_with_score(
        self, state: State, run: Run, score: Mapping[str, Tensor]
    ) -> tuple[State, Float64[Tensor, " batch"], dict[str, Tensor]]:
        """As for every Bijection: the score divided by the scale."""
        y, ratio = self.forward(state, run)
        return y, ratio, {**score, self.field: score[self.field] * torch.exp(-self.log_scale.detach())}

    def extra_repr(self) -> str:
        """Field and size."""
        return f"field={self.field!r}, dims={self.shift.numel()}, learnable={self.shift.requires_grad}"


class AffineCoupling(Bijection):
    """y = x · exp(s) + t for some coordinates of a flat field, with s and t a function of the others.

    The transformed coordinates must be lines; the conditioning ones may be of any kind. A new coupling is the identity.

    Args:
        kinds: "circle", "interval" or "line" for each of the d coordinates of the field.
        transformed: Which coordinates are transformed; the rest conditions.
        field: Name of the field, of shape (batch, d).
        hidden: Widths of the hidden layers of the conditioner.
        residual: Use residual blocks.
        harmonics: Harmonics of the circles that the conditioner sees.
        context: Names in `run.context` to condition on, each with its number of features.
        period: Period of the circles.
        max_log_scale: s = max_log_scale · tanh(raw/max_log_scale): one coupling scales by at most this factor's
            exponential.

    References:
        Density estimation using Real NVP (Dinh et al., 2017), eqs. 4-8, https://arxiv.org/abs/1605.08803
    """

    def __init__(
        self,
        kinds: Sequence[str],
        transformed: Bool[Tensor, " d"],
        *,
        field: str = "q",
        hidden: Sequence[int] = (128, 128),
        residual: bool = False,
        harmonics: int = 1,
        context: Mapping[str, int] | None = None,
        period: float = 2.0 * torch.pi,
        max_log_scale: float = 3.0,
    ) -> None:
        super().__init__()
        self.field, self.max_log_scale = field, max_log_scale
        self.conditioner = Conditioner(
            kinds, transformed, 2, hidden=hidden, residual=residual, harmonics=harmonics, context=context, period=period
        )
        wrong = sorted({kinds[i] for i in self.conditioner.transformed} - {"line"})
        if wrong:
            raise ValueError(
                f"AffineCoupling: transformed coordinates must be lines, got {wrong}; use SplineCoupling for those."
            )

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Scale and shift; the log-ratio is log|det ∂y/∂x|."""
        rows, x, log_scale, shift = self._parts(state, run)
        return self._assemble(state, rows, x * torch.exp(log_scale) + shift), log_scale.sum(0, dtype=torch.float64)

    def forward_with_score(
        self, state: State, run: Run, score: Mapping[str, Tensor]
    ) -> tuple[State, Float64[Tensor, " batch"], dict[str, Tensor]]:
        """As for every Bijection, by closed forms and one product with the Jacobian of the network."""
        rows = state[self.field].t().contiguous()
        (raw, shift), pull_back = self.conditioner.with_pull_back(rows, run)
        transformed = self.conditioner.transformed
        x, log_scale = rows.index_select(0, transformed), self._log_scale(raw)
        y = self._assemble(state, rows, x * torch.exp(log_scale) + shift)
        with torch.no_grad():
            before = score[self.field].t()
            moved = before.index_select(0, transformed) * torch.exp(-log_scale)
            # log q((y − shift) e^−s) − s, s = m tanh(raw/m)
            by_log_scale = -before.index_select(0, transformed) * x - 1.0
            by_raw = by_log_scale * (1.0 - (log_scale / self.max_log_scale).square())
            after = (before + pull_back(torch.stack([by_raw, -moved]))).index_copy(0, transformed, moved)
        return y, log_scale.sum(0, dtype=torch.float64), {**score, self.field: after.t()}

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The exact inverse, with its log|det|."""
        rows, y, log_scale, shift = self._parts(state, run)
        return self._assemble(state, rows, (y - shift) * torch.exp(-log_scale)), -log_scale.sum(0, dtype=torch.float64)

    def _parts(self, state: State, run: Run) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = state[self.field].t().contiguous()
        raw, shift = self.conditioner(rows, run).unbind(0)
        return rows, rows.index_select(0, self.conditioner.transformed), self._log_scale(raw), shift

    def _log_scale(self, raw: Tensor) -> Tensor:
        return self.max_log_scale * torch.tanh(raw / self.max_log_scale)

    def _assemble(self, state: State, rows: Tensor, moved: Tensor) -> State:
        return state.replace(**{self.field: rows.index_copy(0, self.conditioner.transformed, moved).t()})
