"""Checks and conversion of the parameters of a base; done once, at construction."""

import torch

from boltzflow._typing import Tensor

__all__ = ["event_shape", "parameter"]


def event_shape(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    """An event shape as a tuple; a number means a vector of that length."""
    return (shape,) if isinstance(shape, int) else tuple(shape)


def parameter(value: float | Tensor, shape: tuple[int, ...], what: str, *, positive: bool = False) -> Tensor:
    """A tensor of the shape, in the dtype of a floating-point tensor that was given and the default dtype otherwise.

    Raises:
        ValueError: If it does not broadcast to the shape, holds NaN, or is not positive where it must be.
    """
    tensor = torch.as_tensor(value)
    if not tensor.is_floating_point() or not isinstance(value, Tensor):
        tensor = tensor.to(torch.get_default_dtype())
    try:
        tensor = tensor.detach().expand(shape).clone()
    except RuntimeError:
        raise ValueError(f"{what}: expected a shape that broadcasts to {shape}, got {tuple(tensor.shape)}.") from None
    if torch.isnan(tensor).any():
        raise ValueError(f"{what}: expected numbers, got NaN in {int(torch.isnan(tensor).sum())} entries.")
    if positive and not (tensor > 0).all():
        raise ValueError(f"{what}: expected positive values, got a minimum of {tensor.min().item()}.")
    return tensor
