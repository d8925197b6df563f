"""Harmonic angles: U = k (theta - theta0)^2 / 2."""

from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.forcefield.geometry import angle
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.term import Term

__all__ = ["HarmonicAngles"]


class HarmonicAngles(Term):
    """Harmonic angles, U = k (theta - theta0)^2 / 2."""

    def __init__(
        self,
        *,
        atoms: Int[Tensor, "n_angles 3"],
        theta0: Float[Tensor, "n_angles"],
        k: Float[Tensor, "n_angles"],
        periodic: bool = False,
    ) -> None:
        """Keep the angles.

        Args:
            atoms: the three atoms of each angle, the vertex in the middle.
            theta0: equilibrium angles in rad.
            k: force constants in kJ/mol/rad^2.
            periodic: whether distances are those of nearest images in a periodic box.
        """
        super().__init__({"atoms": atoms, "theta0": theta0, "k": k}, periodic=periodic)

    def energy(
        self, x: Float[Tensor, "3 n_atoms batch"], r: Tensor | None, box: Tensor | None = None
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        theta = angle(*(x.index_select(1, self.atoms[:, k]) for k in range(3)), box)
        return (0.5 * self.k[:, None] * (theta - self.theta0[:, None]).square()).sum(0).double()


@register_force("HarmonicAngleForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    rows = [force.getAngleParameters(k) for k in range(force.getNumAngles())]
    return HarmonicAngles(
        atoms=tensor([row[:3] for row in rows], None, (3,)),
        theta0=tensor([row[3] for row in rows], dtype),
        k=tensor([row[4] for row in rows], dtype),
        periodic=force.usesPeriodicBoundaryConditions(),
    )
