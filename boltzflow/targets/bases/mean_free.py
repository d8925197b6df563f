"""Isotropic normal distribution on the subspace of particle positions with zero centre of mass."""

import math

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import normal
from boltzflow.targets.bases._parameters import parameter
from boltzflow.targets.target import Base

__all__ = ["MeanFreeGaussian"]


class MeanFreeGaussian(Base):
    """N(0, scale²) in the d = (N − 1) D dimensions of positions with zero mean, normalised over that subspace.

    The energy reads only the mean-free part of the positions, so it is invariant under translations. It does not depend
    on the context.

    Args:
        n_particles: N, at least 2.
        n_dimensions: D.
        scale: Standard deviation per degree of freedom; positive.
        name: Name of the field, of shape (N, D).
    """

    measure = "mean-free"

    def __init__(self, n_particles: int, n_dimensions: int = 3, *, scale: float = 1.0, name: str = "positions") -> None:
        if n_particles < 2:
            raise ValueError(f"MeanFreeGaussian n_particles: expected at least 2, got {n_particles}.")
        shape, dimension = (n_particles, n_dimensions), (n_particles - 1) * n_dimensions
        super().__init__({name: Space("line", shape, dimension)}, log_z=0.0)
        self.register_buffer("scale", parameter(scale, (), "MeanFreeGaussian scale", positive=True))
        self.field = name

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """−log of the normalised density on the subspace, shape (batch,)."""
        x = state[self.field]
        z = (x - x.mean(1, keepdim=True)) / self.scale
        constant = self.dimension * (self.scale.double().log() + 0.5 * math.log(2 * math.pi))
        return 0.5 * z.square().flatten(1).sum(1, dtype=torch.float64) + constant

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples, each with zero mean over the particles."""
        # the projection of an isotropic normal is the isotropic normal of the subspace
        x = self.scale * normal((n, *self.fields[self.field].shape), rng, self.scale)
        return self.state(x - x.mean(1, keepdim=True))
