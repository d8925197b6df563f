"""ShallowField: a flat vector field of one hidden layer, with divergence and Jacobian in closed form."""

import math

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.networks.vector_field import VectorField

__all__ = ["ShallowField", "time_features"]


class ShallowField(VectorField):
    """v(x, t) = W₂ tanh(W₁ x + B φ(t) + b), φ = (t, sin πt, cos πt), on a flat field of d coordinates.

    The Jacobian is W₂ diag(1 − tanh²) W₁ and its trace a sum over hidden units, so that exact weights are at hand with
    which estimated ones can be compared in many dimensions. The last layer is zero before training.

    Args:
        d: Coordinates.
        hidden: Hidden units.

    Example:
        >>> ShallowField(3, 16)(torch.zeros(5, 3), 0.5).shape
        torch.Size([5, 3])
    """

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(d, hidden)
        self.times = torch.nn.Linear(3, hidden, bias=False)
        self.last = torch.nn.Linear(hidden, d, bias=False)
        torch.nn.init.zeros_(self.last.weight)

    def forward(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch d"]:
        """The velocities, (batch, d)."""
        return self.last(self._hidden(positions, t))

    def divergence(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, " batch"]:
        """Σ_h (1 − tanh²)_h (W₁ W₂)_hh, (batch,)."""
        slope = 1.0 - self._hidden(positions, t).square()
        return slope @ (self.first.weight * self.last.weight.t()).sum(1)

    def jacobian(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch d d"]:
        """W₂ diag(1 − tanh²) W₁, (batch, d, d)."""
        return self._jacobian(self._hidden(positions, t))

    def velocity_and_jacobian(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d d"]]:
        """Both at once."""
        hidden = self._hidden(positions, t)
        return self.last(hidden), self._jacobian(hidden)

    def jvp(
        self,
        positions: Float[Tensor, "batch d"],
        tangent: Float[Tensor, "batch d"],
        t: float | Float[Tensor, " batch"] = 0.0,
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"]]:
        """The velocities and W₂ (1 − tanh²) W₁ · tangent."""
        hidden = self._hidden(positions, t)
        return self.last(hidden), self.last((1.0 - hidden.square()) * (tangent @ self.first.weight.t()))

    def _hidden(self, x: Tensor, t: float | Tensor) -> Tensor:
        return torch.tanh(self.first(x) + self.times(time_features(x, t)))

    def _jacobian(self, hidden: Tensor) -> Tensor:
        return (self.last.weight * (1.0 - hidden.square())[:, None]) @ self.first.weight

    def extra_repr(self) -> str:
        """Sizes."""
        return f"d={self.first.in_features}, hidden={self.first.out_features}"


def time_features(x: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"]) -> Float[Tensor, "batch 3"]:
    """(t, sin πt, cos πt) for every row of x."""
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
    return torch.stack([t, torch.sin(math.pi * t), torch.cos(math.pi * t)], 1)
