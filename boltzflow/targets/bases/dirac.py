"""Point mass: every path starts from the same place."""

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets.bases._parameters import event_shape, parameter
from boltzflow.targets.target import Base

__all__ = ["Dirac"]


class Dirac(Base):
    """Point mass at a location: probability 1 there (u = 0), u = +inf anywhere else; does not depend on the context.

    The reference measure is the point itself, so a reverse path must end exactly on it, as pinned Brownian bridges do.

    Args:
        shape: Event shape of the field, or its number of entries.
        location: Number or tensor that broadcasts to the shape.
        name: Name of the field.
    """

    measure = "counting"

    def __init__(self, shape: int | tuple[int, ...], *, location: float | Tensor = 0.0, name: str = "x") -> None:
        shape = event_shape(shape)
        super().__init__({name: Space("line", shape)}, log_z=0.0)
        self.register_buffer("location", parameter(location, shape, "Dirac location"))
        self.field = name

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """0 on the location and +inf elsewhere, shape (batch,)."""
        x = state[self.field]
        here = (x == self.location).flatten(1).all(1)
        # zero times x: the energy stays attached to x, with force zero
        return torch.where(here, 0.0 * x.flatten(1).sum(1, dtype=torch.float64), torch.inf)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """The location, n times."""
        return self.state(self.location.expand(n, *self.location.shape).clone())
