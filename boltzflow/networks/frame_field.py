"""FrameField: velocities of labelled atoms from a network that sees them in a frame of their own."""

import itertools
import math
from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.networks.vector_field import VectorField

__all__ = ["FrameField"]


class FrameField(VectorField):
    """v = R φ(Rᵀ(x − x_a), t) minus its mean, with the frame R of three atoms a, b, c and a dense network φ.

    The first axis points from a to b, the third is normal to the plane of a, b and c. Seen in that frame a molecule has
    no rotations left, so any φ gives a field that goes with translations and proper rotations, and knows left from
    right. All coordinates see one another, and the exact Jacobian is a product of matrices, for about as many
    operations as N·D velocities and far less time. It is of one molecule, and only where a, b and c are never in line.

    Args:
        n_particles: N, in three dimensions.
        frame: Atoms a, b and c; best two bonds in the middle of a molecule.
        scale: Length by which coordinates are divided before the network sees them, of the order of their spread; what
            the network gives counts in tenths of it.
        hidden: Widths of the hidden layers.
        n_harmonics: Harmonics of t that the network sees.

    Raises:
        ValueError: If the frame is not of three different atoms, or the scale not positive.

    References:
        Frame averaging (Puny et al., 2022), https://arxiv.org/abs/2110.03336, with one frame.

    Example:
        >>> field = FrameField(5, frame=(0, 1, 2), scale=0.3).double()
        >>> field(torch.rand(7, 5, 3, dtype=torch.float64), 0.5).shape
        torch.Size([7, 5, 3])
    """

    rotates = True

    def __init__(
        self,
        n_particles: int,
        *,
        frame: Sequence[int],
        scale: float,
        hidden: Sequence[int] = (128, 128),
        n_harmonics: int = 4,
    ) -> None:
        super().__init__()
        a, b, c = (int(atom) for atom in frame)
        if len({a, b, c}) < 3 or not 0 <= min(a, b, c) <= max(a, b, c) < n_particles or scale <= 0:
            raise ValueError(
                f"FrameField: expected three different atoms of {n_particles} and a positive scale, got {(a, b, c)} "
                f"and {scale}."
            )
        self.types = tuple(range(n_particles))
        self.n_particles, self.scale = n_particles, float(scale)
        self._unit = 0.1 * self.scale
        self.register_buffer("_frame", torch.tensor([a, b, c]), persistent=False)
        self.register_buffer("_harmonics", math.pi * torch.arange(1, n_harmonics + 1.0), persistent=False)
        widths = [3 * n_particles + 2 * n_harmonics, *hidden, 3 * n_particles]
        self.layers = torch.nn.ModuleList([torch.nn.Linear(*ends) for ends in itertools.pairwise(widths)])
        torch.nn.init.zeros_(self.layers[-1].weight)
        torch.nn.init.zeros_(self.layers[-1].bias)

    def forward(
        self, positions: Float[Tensor, "batch particles 3"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch particles 3"]:
        """The velocities, (batch, N, 3)."""
        axes, y = self._seen(positions)
        f, _ = self._network(y, t)
        v = f @ axes.mT
        return v - v.mean(1, keepdim=True)

    def velocity_and_jacobian(
        self, positions: Float[Tensor, "batch particles 3"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch particles 3"], Float[Tensor, "batch coordinates coordinates"]]:
        """Both at once, the Jacobian by the chain rule written out."""
        n = self.n_particles
        axes, y = self._seen(positions)
        f, slopes = self._network(y, t)
        matrix = self.layers[0].weight[:, : 3 * n] / self.scale
        for layer, slope in zip(self.layers[1:], slopes, strict=True):
            matrix = layer.weight @ (slope[..., None] * matrix)
        matrix = matrix * self._unit
        # In the frame: δy_i = ξ_i − ξ_a − ω × y_i and δv_i = δf_i + ω × f_i, where ω is how the frame turns with ξ.
        by_atom = matrix.unflatten(2, (n, 3))
        turned = torch.einsum("bmik,bikl->bml", by_atom, _cross(y)) - _cross(f).flatten(1, 2)
        of_frame = [turned @ turn for turn in self._turns(y)]
        of_frame[0] = of_frame[0] - by_atom.sum(2)
        blocks = by_atom.index_add(2, self._frame, torch.stack(of_frame, 2)).unflatten(1, (n, 3))
        blocks = blocks - blocks.mean(1, keepdim=True)
        # back from the frame, on both sides
        rows = torch.einsum("bkl,bilm->bikm", axes, blocks.flatten(3))
        jacobian = rows.unflatten(3, (n, 3)) @ axes.mT[:, None, None]
        v = f @ axes.mT
        return v - v.mean(1, keepdim=True), jacobian.flatten(3).flatten(1, 2)

    def jacobian(
        self, positions: Float[Tensor, "batch particles 3"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch coordinates coordinates"]:
        """∂v/∂x, (batch, 3N, 3N)."""
        return self.velocity_and_jacobian(positions, t)[1]

    def _seen(self, x: Tensor) -> tuple[Float[Tensor, "batch 3 3"], Float[Tensor, "batch particles 3"]]:
        """The axes of the frame as columns, and positions in it."""
        a, b, c = x[:, self._frame].unbind(1)
        along = torch.nn.functional.normalize(b - a, dim=1)
        normal = torch.nn.functional.normalize(torch.linalg.cross(along, c - a), dim=1)
        axes = torch.stack([along, torch.linalg.cross(normal, along), normal], 2)
        return axes, (x - a[:, None]) @ axes

    def _network(self, y: Tensor, t: float | Tensor) -> tuple[Tensor, list[Tensor]]:
        """Velocities in the frame, and the slopes of the activations of every hidden layer."""
        t = torch.as_tensor(t, dtype=y.dtype, device=y.device).reshape(-1, 1)
        times = torch.cat([torch.cos(self._harmonics * t), torch.sin(self._harmonics * t)], 1)
        h = torch.cat([y.flatten(1) / self.scale, times.expand(len(y), -1)], 1)
        slopes = []
        for layer in self.layers[:-1]:
            pre = layer(h)
            sigmoid = torch.sigmoid(pre)
            h = pre * sigmoid
            slopes.append(sigmoid * (1.0 + pre - h))
        return self._unit * self.layers[-1](h).unflatten(1, (self.n_particles, 3)), slopes

    def _turns(self, y: Tensor) -> list[Float[Tensor, "batch 3 3"]]:
        """How the frame turns, ω, with each of its three atoms, all in the frame, where b is (b₁, 0, 0)."""
        _, b, c = y[:, self._frame].unbind(1)
        b1, c1, c2, zero = b[:, 0], c[:, 0], c[:, 1], torch.zeros_like(b[:, 0])
        of_b = [zero, zero, -c1 / (b1 * c2), zero, zero, -1.0 / b1, zero, 1.0 / b1, zero]
        of_c = [zero, zero, 1.0 / c2, *[zero] * 6]
        turn_b, turn_c = (torch.stack(entries, 1).unflatten(1, (3, 3)) for entries in (of_b, of_c))
        return [-turn_b - turn_c, turn_b, turn_c]

    def extra_repr(self) -> str:
        """Sizes."""
        return f"particles={self.n_particles}, frame={tuple(self._frame.tolist())}, scale={self.scale:.6g}"


def _cross(v: Float[Tensor, "batch n 3"]) -> Float[Tensor, "batch n 3 3"]:
    """Matrices [v]ₓ with [v]ₓ w = v × w."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
