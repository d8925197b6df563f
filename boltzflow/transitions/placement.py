"""Place and orientation as auxiliary variables of flows that move atoms in the space of the laboratory."""

import math

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import Space, State
from boltzflow.transitions.step_size import positive
from boltzflow.transitions.transition import Drop

__all__ = ["DropPlacement"]


class DropPlacement(Drop):
    """Take the centre c of N points, and for molecules their orientation, off the positions.

    r is log N(c; 0, scale²), and for a molecule less log 8π² of the uniform orientations, so that log w = log N(c) − u
    + … is for the measure "cartesian modulo rigid motions", in which c and an orientation are what is left out of dx.
    For particles of measure "mean-free" r has −(D/2) log N, since √N c is the orthonormal coordinate. The centre is
    normal in all of its D coordinates: the distribution of its distance from the origin, r² exp(−r²/2 scale²) in three
    dimensions, in place of that of c weighs samples by r² more, with an effective fraction of 0.6 at best.

    `reverse` draws c and, for a molecule, a rotation: maximum likelihood then sees every frame in another orientation.

    Args:
        scale: Standard deviation of every coordinate of c.
        rotate: Whether the positions are those of a molecule in three dimensions; else of mean-free particles.
        name: Field of the State, (batch, N, D).

    Raises:
        ValueError: If the scale is not positive.

    References:
        Centre: Scalable Equilibrium Sampling with Sequential Boltzmann Generators (Tan et al., 2025), section 4,
        https://arxiv.org/abs/2502.18462, there weighed by the distance.

    Example:
        >>> from boltzflow.run import make_rng
        >>> from boltzflow.targets import Gaussian
        >>> state = Gaussian((4, 3), name="positions").double().sample(2, make_rng(1))
        >>> placed, ratio = DropPlacement(0.5).forward(state, Run(make_rng(1)))
        >>> placed["positions"].mean(1).abs().max() < 1e-12
        tensor(True)
    """

    def __init__(self, scale: float, *, rotate: bool = True, name: str = "positions") -> None:
        super().__init__()
        self.scale, self.rotate, self.name = float(positive("DropPlacement scale", scale)), rotate, name

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Move the centre to the origin; orientations stay, as one of those that are alike."""
        x = state[self.name]
        centre = x.mean(1, keepdim=True)
        n, d = x.shape[1:]
        left_out = math.log(8 * math.pi**2) if self.rotate else 0.5 * d * math.log(n)
        normal = 0.5 * (centre[:, 0].double() / self.scale).square().sum(1)
        constant = d * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))
        space = Space("line", (n, d), (n - 1) * d - (3 if self.rotate else 0))
        return state.with_fields({self.name: x - centre}, {self.name: space}), -normal - constant - left_out

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw a centre, and an orientation."""
        x = state[self.name]
        x = x - x.mean(1, keepdim=True)
        if self.rotate:
            x = x @ _rotations(run.normal(x.new_empty(len(x), 4)))
        x = x + self.scale * run.normal(x[:, :1].detach())
        placed = state.with_fields({self.name: x}, {self.name: Space("line", tuple(x.shape[1:]))})
        return placed, -self.forward(placed, run)[1]

    def extra_repr(self) -> str:
        """Scale and the field of the State."""
        return f"scale={self.scale:.6g}, rotate={self.rotate}, name={self.name!r}"


def _rotations(q: Float[Tensor, "batch 4"]) -> Float[Tensor, "batch 3 3"]:
    """Rotation matrices of quaternions of any length; uniform for normal ones."""
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)
