"""Interpolant: paths α x_0 + β x_1 + γ z between samples of a base and data, with noise on the way."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["Interpolant"]


@dataclass(frozen=True)
class Interpolant:
    """x_t = α_t x_0 + β_t x_1 + γ_t z with z ~ N(0, I), α_0 = β_1 = 1, α_1 = β_0 = 0 and γ = noise · sin πt.

    Args:
        path: "linear", α = 1 − t and β = t; "trigonometric", α = cos(πt/2) and β = sin(πt/2), which keeps the variance
            where both ends have the same.
        noise: Largest standard deviation of what is added on the way; 0 = none.

    Raises:
        ValueError: If the path is unknown, or the noise negative.

    References:
        Stochastic Interpolants (Albergo, Boffi, Vanden-Eijnden, 2023), https://arxiv.org/abs/2303.08797

    Example:
        >>> [round(float(c), 4) for c in Interpolant(noise=0.5).at(torch.tensor(0.25))]
        [0.75, 0.25, 0.3536]
    """

    path: Literal["linear", "trigonometric"] = "linear"
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Check both."""
        if self.path not in ("linear", "trigonometric") or self.noise < 0:
            raise ValueError(
                f"Interpolant: expected a path 'linear' or 'trigonometric' and noise >= 0, got {self.path!r} and "
                f"{self.noise}."
            )

    def at(self, t: Float[Tensor, "..."]) -> tuple[Tensor, Tensor, Tensor]:
        """The factors α, β and γ at times t in [0, 1]."""
        gamma = self.noise * torch.sin(math.pi * t)
        if self.path == "linear":
            return 1.0 - t, t, gamma
        return torch.cos(0.5 * math.pi * t), torch.sin(0.5 * math.pi * t), gamma

    def slopes(self, t: Float[Tensor, "..."]) -> tuple[Tensor, Tensor, Tensor]:
        """Their derivatives by t."""
        gamma = self.noise * math.pi * torch.cos(math.pi * t)
        if self.path == "linear":
            return -torch.ones_like(t), torch.ones_like(t), gamma
        half = 0.5 * math.pi
        return -half * torch.sin(half * t), half * torch.cos(half * t), gamma
