"""Energy-weighted flow matching: a flow that learns from its own samples, weighted to the Target, and no data."""

from dataclasses import replace

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.buffered import BufferedKL
from boltzflow.objectives.flow_matching import FlowMatching, Pairs
from boltzflow.objectives.objective import Step, ess_fraction
from boltzflow.objectives.path_kl import flattening_power
from boltzflow.targets.target import Target

__all__ = ["EnergyWeightedMatching"]


class EnergyWeightedMatching(BufferedKL):
    """E_μ[w |v − (x_1 − x_0)|²]/E_μ[w], w = e^(−u(x_1))/μ(x_1), with μ the flow at the start of its stage.

    Every stage fills a buffer with samples of the flow as it is, one energy each and no force, weighs them, and matches
    the flow to rows drawn in proportion to w: flow matching with data that the flow has made itself. Its steps need no
    determinant; those of the buffer do. Far from the target few rows have all the weight: with `min_efficiency` w is
    replaced by w^α, with the largest α ≤ 1 at which the buffer has that efficiency, so that the target is approached in
    as many stages as it takes. α and the efficiency at α = 1 are logged as `power` and `target_ess_fraction`.

    A mode that the flow has lost has no samples, and regression to weighted samples is no exact step in any divergence:
    follow it by path gradients.

    Args:
        generator: What is trained; bijective, with one `EulerFlow`.
        target: Whose energy gives the weights; kept out of the module tree.
        n_stages: Number of buffers.
        stage_steps: Optimisation steps on each.
        buffer_size: Samples in each.
        batch_size: Rows of the buffer per step.
        pairs: Of buffer and base, as in `FlowMatching`.
        clip_fraction: Share of the rows whose weights are lowered to the largest of the others.
        min_efficiency: Efficiency of a buffer, below which its weights are raised to a power α < 1; 0 leaves them.

    Raises:
        TypeError: If the Generator is not bijective, or has not exactly one EulerFlow.

    References:
        Energy-Weighted Flow Matching (Dern et al., 2025), the iterative one (iEWFM), https://arxiv.org/abs/2509.03726
    """

    def __init__(
        self,
        generator: Generator,
        target: Target,
        *,
        n_stages: int,
        stage_steps: int,
        buffer_size: int,
        batch_size: int,
        pairs: Pairs = "independent",
        clip_fraction: float = 1e-4,
        min_efficiency: float = 0.0,
    ) -> None:
        sizes = {"stage_steps": stage_steps, "buffer_size": buffer_size, "batch_size": batch_size}
        super().__init__(
            generator, target, n_stages=n_stages, clip_fraction=clip_fraction, control_variate=False, **sizes
        )
        self.matching = FlowMatching(generator, pairs=pairs)
        self.min_efficiency = min_efficiency

    def log_ratio(
        self, stage: int, u: Float64[Tensor, " buffer"], log_q: Float64[Tensor, " buffer"]
    ) -> tuple[Float64[Tensor, " buffer"], dict[str, float]]:
        """α (−u − log q), and what α is."""
        log_w = -u - log_q
        power = flattening_power(log_w, self.min_efficiency)
        found = torch.where(torch.isfinite(log_w), power * log_w, -torch.inf)
        return found, {"power": float(power), "target_ess_fraction": float(ess_fraction(log_w))}

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared error per coordinate on rows of the buffer."""
        rows = self._draw_rows(step)
        loss, logged = self.matching(replace(step, data=self._rows.index(rows)))
        return loss, {**self._logged, **logged}
