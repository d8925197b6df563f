"""ApproximateAdaptiveFlow: a continuous flow by an adaptive solver, weighed by its integrated divergence."""

import contextlib
from collections.abc import Iterator

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import wrap
from boltzflow.transitions.step_size import at_least_one
from boltzflow.transitions.transition import Bijection

__all__ = ["ApproximateAdaptiveFlow"]

TIGHTER = 1e-2
"""Factor of the tolerance where the error of log q is measured."""


class ApproximateAdaptiveFlow(Bijection):
    """dx = v dt from 0 to 1 by the Dormand-Prince method with adaptive steps; the log-ratio is ∫ div v dt: approximate.

    Neither is the reverse the inverse of the very map that was applied, nor the integral its log-determinant: weights
    are wrong by what the solver leaves of both. `Generator.sample` measures it: of a few rows of every shard log q is
    evaluated anew, backwards and with a hundredth of the tolerance; the differences stand in the provenance of the
    Ensemble (`log_q_errors`), and a root mean square above 0.01 nat is warned of. Where weights have to be exact there
    are `EulerFlow` and `RungeKuttaFlow`. The divergence is exact.

    The step is chosen so that every row has the tolerance. Needs torchdiffeq, `pip install boltzflow[ode]`.

    Args:
        field: The velocities.
        tolerance: Absolute and relative, of positions and log-ratio.
        max_steps: Of the solver.
        name: Name of the State's field of positions (batch, N, D), or of a flat one (batch, d).

    Raises:
        ValueError: If the tolerance is not positive.
        ImportError: If torchdiffeq is not installed.

    References:
        FFJORD (Grathwohl et al., 2019), https://arxiv.org/abs/1810.01367; Dormand, Prince, J. Comput. Appl. Math. 6, 19
        (1980).
    """

    def __init__(
        self, field: VectorField, *, tolerance: float = 1e-5, max_steps: int = 1000, name: str = "positions"
    ) -> None:
        super().__init__()
        if not tolerance > 0:
            raise ValueError(f"ApproximateAdaptiveFlow tolerance: expected a positive number, got {tolerance}.")
        self.field, self.name, self.tolerance = field, name, tolerance
        self.max_steps = at_least_one("ApproximateAdaptiveFlow max_steps", max_steps)
        self._factor = 1.0
        _solver()

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds its references."""
        return ("ApproximateAdaptiveFlow", *self.field.methods)

    @contextlib.contextmanager
    def tightened(self) -> Iterator[None]:
        """A hundredth of the tolerance inside, and a hundred times the steps."""
        self._factor = TIGHTER
        try:
            yield
        finally:
            self._factor = 1.0

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """From time 0 to 1."""
        return self._solved(state, 0.0, 1.0)

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """From time 1 to 0, the inverse to within the tolerance."""
        return self._solved(state, 1.0, 0.0)

    def _solved(self, state: State, start: float, end: float) -> tuple[State, Float64[Tensor, " batch"]]:
        """Raises RuntimeError if it takes more than `max_steps`."""
        x = state[self.name]
        finite = torch.isfinite(x.detach()).flatten(1).all(1)
        # one row that is not finite would stop all of them
        kept = torch.where(finite.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0).flatten(1)
        before = torch.cat([kept, torch.zeros_like(kept[:, :1])], 1)

        def slope(t: Tensor, y: Tensor) -> Tensor:
            here, time = y[:, :-1].unflatten(1, x.shape[1:]), float(t.detach())
            return torch.cat([self.field(here, time).flatten(1), self.field.divergence(here, time)[:, None]], 1)

        tolerance = self.tolerance * self._factor
        options = {"max_num_steps": round(self.max_steps / self._factor), "norm": _largest}
        times = torch.tensor([start, end], dtype=x.dtype, device=x.device)
        try:
            after = _solver()(slope, before, times, rtol=tolerance, atol=tolerance, method="dopri5", options=options)[1]
        except AssertionError as error:
            raise RuntimeError(
                f"ApproximateAdaptiveFlow: the solver stopped after at most {options['max_num_steps']} steps at a "
                f"tolerance of {tolerance:g} ({error}). Raise max_steps or the tolerance (in float32 to 1e-5 or "
                "more), train the field further, or use RungeKuttaFlow, of fixed steps and exact weights."
            ) from None
        moved = wrap(after[:, :-1].unflatten(1, x.shape[1:]), state.spaces[self.name])
        moved = torch.where(finite.reshape(-1, *[1] * (x.ndim - 1)), moved, torch.nan)
        return state.replace(**{self.name: moved}), torch.where(finite, after[:, -1].double(), torch.nan)

    def extra_repr(self) -> str:
        """Tolerance and the field of the State."""
        return f"tolerance={self.tolerance:g}, max_steps={self.max_steps}, name={self.name!r}"


def _solver():
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise ImportError(
            "ApproximateAdaptiveFlow needs torchdiffeq, which is not installed: pip install 'boltzflow[ode]', or use "
            "RungeKuttaFlow."
        ) from None
    return odeint


def _largest(error: Tensor) -> Tensor:
    """Largest root mean square of a row, so that every row has the tolerance."""
    return error.square().mean(-1).sqrt().max()
