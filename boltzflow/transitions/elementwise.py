"""ElementwiseSpline: a learnable marginal for every coordinate, without conditioning."""

from collections.abc import Mapping, Sequence

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.spline_kernels import (
    lookup_score,
    lookup_spline,
    n_spline_parameters,
    positive,
)
from boltzflow.transitions.splines import kind_masks
from boltzflow.transitions.transition import Bijection

__all__ = ["ElementwiseSpline"]


class ElementwiseSpline(Bijection):
    """One rational-quadratic spline per coordinate of a flat field, with parameters of its own.

    Few parameters and many points: here the knots are computed once and looked up, which is cheaper than the fused
    kernel of the couplings. A new one is the identity. Domains and kinds as in `SplineCoupling`.

    Args:
        kinds: "circle", "interval" or "line" for each of the d coordinates of the field.
        field: Name of the field, of shape (batch, d).
        bins: Bins of each spline.
        bound: Half-length of the part of a line that is bent.
        period: Period of the circles.
        min_bin: Smallest width and height of a bin, as a fraction of the domain.
        min_derivative: Smallest derivative at a knot.
        fused: Compiled kernels with closed-form gradients; False uses plain eager operations, for torch.func.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
    """

    def __init__(
        self,
        kinds: Sequence[str],
        *,
        field: str = "q",
        bins: int = 32,
        bound: float = 5.0,
        period: float = 2.0 * torch.pi,
        min_bin: float = 1e-3,
        min_derivative: float = 1e-3,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if bins * min_bin >= 1.0:
            raise ValueError(f"ElementwiseSpline: expected bins·min_bin < 1, got {bins} bins with min_bin={min_bin}.")
        self.field, self.bins, self.bound, self.period = field, bins, bound, period
        self.min_bin, self.min_derivative, self.fused = min_bin, min_derivative, fused
        for name, mask in kind_masks(kinds).items():
            self.register_buffer(name, mask)
        self.raw = torch.nn.Parameter(torch.zeros(len(kinds), n_spline_parameters(bins)))

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Transform; the log-ratio is log|det ∂y/∂x|."""
        return self._apply_spline(state, inverse=False)

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The exact inverse, with its log|det|."""
        return self._apply_spline(state, inverse=True)

    def forward_with_score(
        self, state: State, run: Run, score: Mapping[str, Tensor]
    ) -> tuple[State, Float64[Tensor, " batch"], dict[str, Tensor]]:
        """As for every Bijection; elementwise, (∂_x log q − ∂_x log y') / y' with y' the slope."""
        rows = state[self.field].t().contiguous()
        y, ratio = self.forward(state, run)
        knots = tuple(side.detach() for side in self._knots())
        before = score[self.field].t()
        after = lookup_score(before, rows, knots, self.line, self.circle, bound=self.bound, period=self.period)
        return y, ratio, {**score, self.field: after.t()}

    def _knots(self) -> tuple[Tensor, Tensor, Tensor]:
        """Abscissae, ordinates and derivatives at the knots, each of shape (d, bins + 1)."""
        widths, heights, raw = self.raw.split([self.bins, self.bins, self.bins + 1], dim=1)
        zero, one = torch.zeros_like(raw[:, :1]), torch.ones_like(raw[:, :1])
        sides = []
        for part in (widths, heights):
            sizes = self.min_bin + (1.0 - self.bins * self.min_bin) * torch.softmax(part, dim=1)
            sides.append(torch.cat([zero, sizes.cumsum(1)[:, :-1], one], dim=1))
        first = torch.where(self.line, zero, raw[:, :1])
        last = torch.where(self.line, zero, torch.where(self.circle, raw[:, :1], raw[:, -1:]))
        return *sides, positive(torch.cat([first, raw[:, 1:-1], last], dim=1), self.min_derivative)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds its references."""
        return ("ElementwiseSpline", "circular spline") if bool(self.circle.any()) else ("ElementwiseSpline",)

    def _apply_spline(self, state: State, *, inverse: bool) -> tuple[State, Float64[Tensor, " batch"]]:
        rows = state[self.field].t().contiguous()
        turn = torch.where(self.circle, self.raw[:, -1:], 0.0) / (2.0 * torch.pi)
        y, log_derivative = lookup_spline(
            rows,
            self._knots(),
            turn,
            self.line,
            self.circle,
            inverse=inverse,
            bound=self.bound,
            period=self.period,
            fused=self.fused,
        )
        return state.replace(**{self.field: y.t()}), log_derivative.sum(0, dtype=torch.float64)

    def extra_repr(self) -> str:
        """Field and sizes."""
        return f"field={self.field!r}, dims={len(self.raw)}, bins={self.bins}"
