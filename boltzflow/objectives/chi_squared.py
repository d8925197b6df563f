"""The forward χ² divergence from the Generator's own weighted samples."""

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.self_weighted import SelfWeightedKL
from boltzflow.targets.target import Target

__all__ = ["ChiSquared"]


class ChiSquared(SelfWeightedKL):
    """log E_q[w²] = log(1 + χ²(p‖q)), w = p/q normalised: minus the logarithm of the sampling efficiency.

    It is the divergence with α = 2, and its gradient, from the model's own samples held fixed,

        ∇ log E_q[w²] = −E_q[(w²/E_q[w²] − 1) ∇log q],

    has no variance at q = p. Far from there few rows carry all of it: `AnnealedBootstrap` has the same minimum and
    draws its samples where w² q is. w is truncated at `max_weight`, and the weight removed is logged.

    Args:
        generator: What is trained; bijective.
        target: Whose energy gives the weights; kept out of the module tree.
        max_weight: Largest w, in units of its mean.

    Raises:
        TypeError: If the Generator is not bijective.

    References:
        Variational Inference via χ Upper Bound Minimization (Dieng et al., 2017), section 2; Flow Annealed Importance
        Sampling Bootstrap (Midgley et al., 2023), eq. 3.
    """

    def __init__(self, generator: Generator, target: Target, *, max_weight: float = 20.0) -> None:
        super().__init__(generator, target, max_weight=max_weight)

    def _coefficient(self, log_w: Float64[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        w = torch.softmax(log_w, 0) * len(log_w)
        kept = w.clamp(max=self.max_weight)
        return kept.square() / kept.square().mean() - 1.0, 1.0 - kept.mean()
