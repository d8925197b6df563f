"""RotationField: angular velocities of rotations from one hidden layer, with their derivatives in closed form."""

import math

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["RotationField"]


class RotationField(torch.nn.Module):
    """ω(R, t) = W₂ tanh(W₁ R + B (t, sin πt, cos πt) + b) of n rotations, each in the frame of its own body: Ṙ = R [ω].

    The last layer is zero before training.

    Args:
        n: Rotations.
        hidden: Hidden units.

    Example:
        >>> RotationField(2, 16)(torch.eye(3).expand(5, 2, 3, 3), 0.5).shape
        torch.Size([5, 2, 3])
    """

    def __init__(self, n: int, hidden: int) -> None:
        super().__init__()
        self.n = n
        self.first = torch.nn.Linear(9 * n, hidden)
        self.times = torch.nn.Linear(3, hidden, bias=False)
        self.last = torch.nn.Linear(hidden, 3 * n, bias=False)
        torch.nn.init.zeros_(self.last.weight)
        # the skew matrices [e_k] of the three axes
        skew = torch.zeros(3, 3, 3)
        for k in range(3):
            skew[k, (k + 2) % 3, (k + 1) % 3], skew[k, (k + 1) % 3, (k + 2) % 3] = 1.0, -1.0
        self.register_buffer("_skew", skew, persistent=False)

    def forward(
        self, rotations: Float[Tensor, "batch n 3 3"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch n 3"]:
        """Angular velocities in rad per unit of time, (batch, n, 3)."""
        return self.last(self._hidden(rotations, t)).unflatten(1, (self.n, 3))

    def velocity_and_derivative(
        self, rotations: Float[Tensor, "batch n 3 3"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch n 3"], Float[Tensor, "batch coordinates coordinates"]]:
        """ω and its derivatives along E_k, d/ds ω(R exp(s [e_k])), (batch, 3n, 3n): rows ω and columns k.

        The trace is the divergence with respect to Haar measure.
        """
        hidden = self._hidden(rotations, t)
        # d/ds of R exp(s [e_k]) is R [e_k]
        weight = self.first.weight.unflatten(1, (self.n, 3, 3))
        inner = torch.einsum("hnac,bnad,kdc->bhnk", weight, rotations, self._skew).flatten(2)
        derivative = (self.last.weight * (1.0 - hidden.square())[:, None]) @ inner
        return self.last(hidden).unflatten(1, (self.n, 3)), derivative

    def _hidden(self, rotations: Tensor, t: float | Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=rotations.dtype, device=rotations.device).expand(len(rotations))
        phi = torch.stack([t, torch.sin(math.pi * t), torch.cos(math.pi * t)], 1)
        return torch.tanh(self.first(rotations.flatten(1)) + self.times(phi))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"n={self.n}, hidden={self.last.in_features}"
