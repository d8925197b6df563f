"""Neal's funnel: one coordinate sets the width of all others."""

import math

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import normal
from boltzflow.targets.target import Target

__all__ = ["Funnel"]


class Funnel(Target):
    """x_0 ~ N(0, variance), x_i | x_0 ~ N(0, exp(x_0)); field "x", normalised (log Z = 0); no context is read.

    Args:
        dimension: d, at least 2.
        variance: Of x_0. 9 is the hard funnel of Neal and of FAB; PIS and the continuous GFlowNet paper used 1.

    References:
        Neal, Ann. Stat. 31, 705 (2003), section 8.
    """

    def __init__(self, dimension: int = 10, *, variance: float = 9.0) -> None:
        if dimension < 2 or not variance > 0:
            raise ValueError(
                f"Funnel: expected dimension >= 2 and a positive variance, got {dimension} and {variance}."
            )
        super().__init__({"x": Space("line", (dimension,))}, log_z=0.0)
        self.register_buffer("variance", torch.tensor(float(variance)))

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """−log of the normalised density, shape (batch,)."""
        x = state["x"].double()
        neck, rest = x[:, 0], x[:, 1:]
        variance = self.variance.double()
        # the square of a product, because exp(−x_0) alone overflows early
        scaled = (rest * (-0.5 * neck).exp()[:, None]).square().sum(1)
        constant = 0.5 * self.dimension * math.log(2 * math.pi) + 0.5 * variance.log()
        return 0.5 * neck.square() / variance + 0.5 * scaled + 0.5 * rest.shape[1] * neck + constant

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        z = normal((n, self.dimension), rng, self.variance)
        neck = self.variance.sqrt() * z[:, :1]
        return self.state(torch.cat([neck, z[:, 1:] * (0.5 * neck).exp()], 1))
