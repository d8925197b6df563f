"""GatedField: a flat vector field of one hidden layer of gated linear units, with divergence and Jacobian closed."""

import torch
from torch.nn.functional import linear

from boltzflow._typing import Float, Tensor
from boltzflow.networks.shallow_field import time_features
from boltzflow.networks.vector_field import VectorField

__all__ = ["GatedField"]


class GatedField(VectorField):
    """v(x, t) = W₂ [(W₁ x + b) σ(G D x + B φ + c)], φ = (t, sin πt, cos πt), on a flat field of d coordinates.

    Units are linear in x where their gate is open, and gates see a few directions D x and the time. The exact
    velocities of a mixture of Gaussians are of that kind: linear maps, switched from well to well and rescaled in time.
    Jacobian and trace are closed as those of `ShallowField`. The last layer is zero before training.

    Args:
        d: Coordinates.
        hidden: Hidden units.
        n_seen: Directions that the gates see.

    References:
        Gated linear units: Dauphin, Fan, Auli, Grangier (2017), https://arxiv.org/abs/1612.08083

    Example:
        >>> GatedField(3, 16)(torch.zeros(5, 3), 0.5).shape
        torch.Size([5, 3])
    """

    def __init__(self, d: int, hidden: int, *, n_seen: int = 8) -> None:
        super().__init__()
        self.first = torch.nn.Linear(d, hidden)
        self.seen = torch.nn.Linear(d, n_seen, bias=False)
        self.gates = torch.nn.Linear(n_seen, hidden)
        self.times = torch.nn.Linear(3, hidden, bias=False)
        self.last = torch.nn.Linear(hidden, d, bias=False)
        # gates that open and close at many places and times
        torch.nn.init.normal_(self.gates.bias)
        torch.nn.init.normal_(self.times.weight)
        torch.nn.init.zeros_(self.last.weight)

    def forward(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch d"]:
        """The velocities, (batch, d)."""
        units, gates = self._hidden(positions, t)
        return self.last(units * gates)

    def divergence(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, " batch"]:
        """Σ_h [σ W₁ + (W₁ x + b) σ' G D]_h · (W₂)_h, (batch,)."""
        units, gates = self._hidden(positions, t)
        back = self.last.weight.t()
        through_units = (self.first.weight * back).sum(1)
        through_gates = (self.gates.weight * (back @ self.seen.weight.t())).sum(1)
        return gates @ through_units + (units * gates * (1.0 - gates)) @ through_gates

    def jacobian(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch d d"]:
        """W₂ [diag(σ) W₁ + diag((W₁ x + b) σ') G D], (batch, d, d)."""
        return self.velocity_and_jacobian(positions, t)[1]

    def velocity_and_jacobian(
        self, positions: Float[Tensor, "batch d"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d d"]]:
        """Both at once."""
        units, gates = self._hidden(positions, t)
        slopes = units * gates * (1.0 - gates)
        by_gates = (self.last.weight * slopes[:, None]) @ self.gates.weight @ self.seen.weight
        return self.last(units * gates), (self.last.weight * gates[:, None]) @ self.first.weight + by_gates

    def jvp(
        self,
        positions: Float[Tensor, "batch d"],
        tangent: Float[Tensor, "batch d"],
        t: float | Float[Tensor, " batch"] = 0.0,
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"]]:
        """The velocities and their derivative along the tangent."""
        units, gates = self._hidden(positions, t)
        opened = gates * (1.0 - gates) * linear(self.seen(tangent), self.gates.weight)
        return self.last(units * gates), self.last(gates * linear(tangent, self.first.weight) + units * opened)

    def _hidden(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), torch.sigmoid(self.gates(self.seen(x)) + self.times(time_features(x, t)))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"d={self.first.in_features}, hidden={self.first.out_features}, seen={self.seen.out_features}"
