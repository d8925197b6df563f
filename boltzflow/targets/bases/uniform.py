"""Uniform distribution in a box, on one field."""

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import uniform
from boltzflow.targets.bases._parameters import event_shape, parameter
from boltzflow.targets.target import Base

__all__ = ["Uniform"]


class Uniform(Base):
    """Uniform between bounds for every entry of one field, normalised; does not depend on the context.

    Args:
        shape: Event shape of the field, or its number of entries.
        lower: Lower bounds, a number or a tensor that broadcasts to the shape.
        upper: Upper bounds, likewise; above the lower ones.
        name: Name of the field.
    """

    def __init__(
        self, shape: int | tuple[int, ...], *, lower: float | Tensor = 0.0, upper: float | Tensor = 1.0, name: str = "x"
    ) -> None:
        shape = event_shape(shape)
        super().__init__({name: Space("interval", shape)}, log_z=0.0)
        self.register_buffer("lower", parameter(lower, shape, "Uniform lower"))
        self.register_buffer("upper", parameter(upper, shape, "Uniform upper"))
        parameter(self.upper - self.lower, shape, "Uniform upper − lower", positive=True)
        self.field = name

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Logarithm of the volume inside the box (bounds included), +inf outside; shape (batch,)."""
        x = state[self.field]
        inside = ((x >= self.lower) & (x <= self.upper)).flatten(1).all(1)
        # plus zero times x: the energy stays attached to x, with force zero
        log_volume = (self.upper.double() - self.lower.double()).log().sum() + 0.0 * x.flatten(1).sum(
            1, dtype=torch.float64
        )
        return torch.where(inside, log_volume, torch.inf)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        u = uniform((n, *self.lower.shape), rng, self.lower)
        return self.state((self.lower + (self.upper - self.lower) * u).to(self.lower.dtype))
