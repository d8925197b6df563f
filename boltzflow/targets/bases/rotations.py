"""Uniform distribution of rotations, on one field."""

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import normal
from boltzflow.targets.target import Base

__all__ = ["UniformRotations"]


class UniformRotations(Base):
    """n independent rotations as matrices, of density 1 with respect to Haar measure.

    Args:
        n: Rotations.
        name: Name of the field, (batch, n, 3, 3).

    References:
        Quaternions of normal components: Marsaglia, Ann. Math. Stat. 43, 645 (1972).
    """

    measure = "haar"

    def __init__(self, n: int = 1, *, name: str = "rotations") -> None:
        super().__init__({name: Space("sphere", (n, 3, 3), 3 * n)}, log_z=0.0)
        self.field, self.n = name, n
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Zero, attached to the rotations; shape (batch,)."""
        return 0.0 * state[self.field].flatten(1).sum(1, dtype=torch.float64)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        q = normal((n, self.n, 4), rng, self._like)
        w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
        entries = [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ]
        return self.state(torch.stack(entries, -1).unflatten(-1, (3, 3)))
