"""ApproximateHutchinsonFlow: a continuous flow weighed by noisy traces, the biased baseline of flow perturbation."""

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.run import Run
from boltzflow.state import Space, State
from boltzflow.transitions.flow_noise import centred_directions
from boltzflow.transitions.implicit_steps import ImplicitSteps
from boltzflow.transitions.metropolis import moves_centre
from boltzflow.transitions.step_size import at_least_one

__all__ = ["ApproximateHutchinsonFlow"]


class ApproximateHutchinsonFlow(ImplicitSteps):
    """The steps of `ImplicitSteps`, weighed by Hutchinson's estimate Σ eᵀ ∂v/∂x e / n of ∫ div v: biased.

    Biased twice: the integrated divergence is not the log-determinant of the steps, and the exponential of an unbiased
    estimate S is not unbiased, E[e^S] = e^(mean + Var/2) if S is normal. The second part alone can be corrected, to
    that order. Probes are independent from step to step. A baseline to compare with; `FlowPerturbation` costs as many
    Jacobian-vector products and has neither error.

    Args:
        field: The velocities.
        n_steps: Steps.
        n_probes: Probes of every step, which are averaged.
        probes: "rademacher" or "normal"; without a centre of mass "normal" alone is unbiased for the trace.
        minus_half_variance: Subtract Var/2, estimated from the spread of the probes of every step; at least 2.
        name: Name of the State's field of positions (batch, N, D), or of a flat one (batch, d).

    Raises:
        ValueError: If numbers are not positive, the probes are unknown, or one probe is to tell a variance.

    References:
        FFJORD (Grathwohl et al., 2019), eq. 7, https://arxiv.org/abs/1810.01367; its bias in weights: Peng, Gao (2024),
        https://arxiv.org/abs/2407.10666
    """

    def __init__(
        self,
        field: VectorField,
        *,
        n_steps: int = 1,
        n_probes: int = 1,
        probes: str = "rademacher",
        minus_half_variance: bool = False,
        name: str = "positions",
    ) -> None:
        super().__init__(field, n_steps=n_steps, name=name)
        if probes not in ("rademacher", "normal"):
            raise ValueError(f"ApproximateHutchinsonFlow probes: expected 'rademacher' or 'normal', got {probes!r}.")
        self.n_probes = at_least_one("ApproximateHutchinsonFlow n_probes", n_probes)
        self.probes, self.minus_half_variance = probes, minus_half_variance
        if minus_half_variance and n_probes < 2:
            raise ValueError("ApproximateHutchinsonFlow n_probes: expected at least 2 to estimate a variance, got 1.")

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The steps in order; the log-ratio is an estimate."""
        space = self._space(state)
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k, x, found in self.along(x, space):  # noqa: B020
            ratio = torch.where(found, ratio + self._log_det(x, k, space, run), torch.nan)
        return state.replace(**{self.name: x}), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The explicit inverses in opposite order, with fresh probes."""
        space = self._space(state)
        x, ratio = state[self.name], torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in reversed(range(self.n_steps)):
            ratio = ratio - self._log_det(x, k, space, run)
            x = self.back(x, k, space)
        return state.replace(**{self.name: x}), ratio

    def _log_det(self, y: Float[Tensor, "batch *event"], k: int, space: Space, run: Run) -> Float64[Tensor, " batch"]:
        noise = centred_directions(y, space, self.n_probes, run)
        if self.probes == "rademacher":
            if not moves_centre(space):
                raise ValueError(
                    "ApproximateHutchinsonFlow probes: without a centre of mass expected 'normal', got 'rademacher', "
                    "whose covariance there is not that of the space."
                )
            noise = noise.sign()
        # e − A e is ∂v/∂x e / n
        quadratic = torch.stack(
            [(e * (e - self.pull(y, e, k, space))).double().flatten(1).sum(1) for e in noise.unbind(1)]
        )
        mean = quadratic.mean(0)
        return mean - 0.5 * quadratic.var(0) / self.n_probes if self.minus_half_variance else mean
