"""Noise from a given random stream, drawn on the stream's device and handed over in the wanted dtype and device."""

import math

import torch

from boltzflow._typing import Float64, Tensor

__all__ = ["angles", "normal", "uniform"]


def normal(shape: tuple[int, ...], rng: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal noise of a shape, with the dtype and device of `like`."""
    return torch.randn(shape, dtype=like.dtype, device=rng.device, generator=rng).to(like.device)


def uniform(shape: tuple[int, ...], rng: torch.Generator, like: Tensor) -> Float64[Tensor, "..."]:
    """Uniform noise in [0, 1) on the device of `like`, float64: 24-bit draws would hit 0 in every larger sample."""
    return torch.rand(shape, dtype=torch.float64, device=rng.device, generator=rng).to(like.device)


def angles(shape: tuple[int, ...], rng: torch.Generator, like: Tensor) -> Float64[Tensor, "..."]:
    """Uniform angles in (−π, π], float64."""
    return math.pi - 2 * math.pi * uniform(shape, rng, like)
