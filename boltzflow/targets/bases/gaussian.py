"""Normal distribution with independent entries, on one field."""

import math

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import normal
from boltzflow.targets.bases._parameters import event_shape, parameter
from boltzflow.targets.target import Base

__all__ = ["Gaussian"]


class Gaussian(Base):
    """N(mean, scale²) for every entry of one field, normalised; does not depend on the context.

    Args:
        shape: Event shape of the field, or its number of entries.
        mean: Number or tensor that broadcasts to the shape.
        scale: Standard deviation, likewise; positive.
        name: Name of the field.

    Example:
        >>> base = Gaussian(2, scale=3.0)
        >>> base.sample(5, torch.Generator().manual_seed(0))["x"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self, shape: int | tuple[int, ...], *, mean: float | Tensor = 0.0, scale: float | Tensor = 1.0, name: str = "x"
    ) -> None:
        shape = event_shape(shape)
        super().__init__({name: Space("line", shape)}, log_z=0.0)
        self.register_buffer("mean", parameter(mean, shape, "Gaussian mean"))
        self.register_buffer("scale", parameter(scale, shape, "Gaussian scale", positive=True))
        self.field = name

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """−log of the normalised density, shape (batch,)."""
        z = (state[self.field] - self.mean) / self.scale
        constant = self.scale.double().log().sum() + 0.5 * self.mean.numel() * math.log(2 * math.pi)
        return 0.5 * z.square().flatten(1).sum(1, dtype=torch.float64) + constant

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        return self.state(self.mean + self.scale * normal((n, *self.mean.shape), rng, self.mean))
