"""Harmonic systems: known log Z, known free-energy differences, exact samples."""

import math

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import normal
from boltzflow.targets.target import Base

__all__ = ["Harmonic", "harmonic_pair"]


class Harmonic(Base):
    """u = ½ (x − mean)ᵀ precision (x − mean) + offset over the flattened field; does not depend on the context.

    log Z = d/2 log 2π − ½ log det(precision) − offset. As it samples exactly, it also serves as a base.

    Args:
        precision: Positive definite matrix of shape (d, d), or a diagonal of shape (d,).
        mean: Shape (d,); None = 0.
        offset: Added to the energy, in kT.
        shape: Event shape of the field with d entries; None = (d,).
        name: Name of the field.

    Raises:
        ValueError: If the precision is not symmetric and positive definite.
    """

    def __init__(
        self,
        precision: Tensor,
        *,
        mean: Tensor | None = None,
        offset: float = 0.0,
        shape: tuple[int, ...] | None = None,
        name: str = "x",
    ) -> None:
        precision = torch.diag(precision) if precision.ndim == 1 else precision
        d = len(precision)
        factor, failed = torch.linalg.cholesky_ex(precision.detach().double())
        if failed or not torch.allclose(precision, precision.T):
            raise ValueError("Harmonic precision: expected a symmetric positive definite matrix.")
        log_z = 0.5 * d * math.log(2 * math.pi) - factor.diagonal().log().sum().item() - offset
        super().__init__({name: Space("line", shape or (d,))}, log_z=log_z)
        if self.dimension != d:
            raise ValueError(f"Harmonic shape: expected {d} entries, got {shape}.")
        self.register_buffer("precision", precision.detach().clone())
        self.register_buffer("mean", torch.zeros_like(precision[0]) if mean is None else mean.detach().to(precision))
        self.offset = float(offset)
        self.field = name

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Harmonic energy, shape (batch,)."""
        x = (state[self.field].flatten(1) - self.mean).double()
        return 0.5 * ((x @ self.precision.double()) * x).sum(1) + self.offset

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        factor = torch.linalg.cholesky(self.precision)
        z = normal((n, len(self.mean)), rng, self.mean)
        x = torch.linalg.solve_triangular(factor.T, z.T, upper=True).T + self.mean
        return self.state(x.reshape(n, *self.fields[self.field].shape))


def harmonic_pair(
    shape: int | tuple[int, ...], *, name: str = "x", displacement: float = 0.5, coupling: float = 0.3
) -> tuple[Harmonic, Harmonic]:
    """Two overlapping harmonic systems on one field: a unit one, and a displaced, coupled, stiffer one with an offset.

    Their free-energy difference in kT is exactly `first.log_z − second.log_z`.

    Args:
        shape: Event shape of the field, or its number of entries.
        name: Name of the field.
        displacement: Norm of the displacement between the two means.
        coupling: Strength of the coupling between neighbouring entries of the second, below 0.5.

    Returns:
        The two systems, in the default dtype.

    Example:
        >>> first, second = harmonic_pair(3)
        >>> round(first.log_z - second.log_z, 4)
        1.6065
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    d = math.prod(shape)
    off = torch.full((d - 1,), coupling) if d > 1 else torch.zeros(0)
    precision = torch.diag(torch.linspace(1.0, 1.6, d)) + torch.diag(off, 1) + torch.diag(off, -1)
    mean = torch.full((d,), displacement / math.sqrt(d))
    first = Harmonic(torch.ones(d), shape=shape, name=name)
    return first, Harmonic(precision, mean=mean, offset=1.3, shape=shape, name=name)
