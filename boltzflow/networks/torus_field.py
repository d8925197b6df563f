"""TorusField: a vector field of angles of one hidden layer, with divergence and Jacobian in closed form."""

import math

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.networks.vector_field import VectorField

__all__ = ["TorusField"]


class TorusField(VectorField):
    """v(φ, t) = W₂ tanh(W₁ (cos kφ, sin kφ)_k + B (t, sin πt, cos πt) + b) on a torus of d angles in rad.

    Angles are seen by their harmonics k = 1, …, K alone, so that v is periodic. The last layer is zero before training.

    Args:
        d: Angles.
        hidden: Hidden units.
        n_harmonics: K.

    References:
        Flow Matching on General Geometries (Chen, Lipman, 2024), https://arxiv.org/abs/2302.03660

    Example:
        >>> field = TorusField(3, 16)
        >>> x = torch.rand(5, 3)
        >>> torch.allclose(field(x, 0.5), field(x + 2 * torch.pi, 0.5))
        True
    """

    def __init__(self, d: int, hidden: int, *, n_harmonics: int = 2) -> None:
        super().__init__()
        self.first = torch.nn.Linear(2 * n_harmonics * d, hidden)
        self.times = torch.nn.Linear(3, hidden, bias=False)
        self.last = torch.nn.Linear(hidden, d, bias=False)
        torch.nn.init.zeros_(self.last.weight)
        self.register_buffer("_harmonics", torch.arange(1.0, n_harmonics + 1), persistent=False)

    def forward(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch d"]:
        """The velocities in rad per unit of time, (batch, d)."""
        return self.last(self._hidden(positions, t)[0])

    def divergence(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, " batch"]:
        """Σ ∂v/∂φ, (batch,)."""
        hidden, inner = self._hidden(positions, t)
        return torch.einsum("bh,bhd,dh->b", 1.0 - hidden.square(), inner, self.last.weight)

    def jacobian(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch d d"]:
        """∂v/∂φ, (batch, d, d)."""
        return self.velocity_and_jacobian(positions, t)[1]

    def velocity_and_jacobian(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d d"]]:
        """Both at once."""
        hidden, inner = self._hidden(positions, t)
        return self.last(hidden), (self.last.weight * (1.0 - hidden.square())[:, None]) @ inner

    def _hidden(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Hidden layer, and the derivative by the angles of what goes into it, (batch, hidden, d)."""
        k = self._harmonics[:, None]
        cos, sin = torch.cos(k * x[:, None]), torch.sin(k * x[:, None])
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        phi = torch.stack([t, torch.sin(math.pi * t), torch.cos(math.pi * t)], 1)
        hidden = torch.tanh(self.first(torch.cat([cos, sin], 1).flatten(1)) + self.times(phi))
        by_cos, by_sin = self.first.weight.unflatten(1, (2, len(k), -1)).unbind(1)
        inner = (by_sin * (k * cos)[:, None] - by_cos * (k * sin)[:, None]).sum(2)
        return hidden, inner

    def extra_repr(self) -> str:
        """Sizes."""
        return f"d={self.last.out_features}, hidden={self.last.in_features}, n_harmonics={len(self._harmonics)}"
