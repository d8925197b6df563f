"""Angles on the circle: wrapping and differences."""

import math

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["circular_difference", "wrap"]


def wrap(angle: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the representative of an angle in [-pi, pi), in rad; the derivative is 1.

    Example:
        >>> import torch
        >>> [round(x, 4) for x in wrap(torch.tensor([0.5, 3.5 * torch.pi])).tolist()]
        [0.5, -1.5708]
    """
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def circular_difference(angle: Float[Tensor, "..."], other: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the shortest rotation from ``other`` to ``angle`` in [-pi, pi), in rad."""
    return wrap(angle - other)
