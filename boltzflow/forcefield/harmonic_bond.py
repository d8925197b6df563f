"""Harmonic bonds: U = k (r - r0)^2 / 2."""

from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.term import Term, pair_distances

__all__ = ["HarmonicBonds"]


class HarmonicBonds(Term):
    """Harmonic bonds, U = k (r - r0)^2 / 2."""

    def __init__(
        self,
        *,
        atoms: Int[Tensor, "n_bonds 2"],
        r0: Float[Tensor, "n_bonds"],
        k: Float[Tensor, "n_bonds"],
        periodic: bool = False,
    ) -> None:
        """Keep the bonds.

        Args:
            atoms: the two atoms of each bond.
            r0: equilibrium lengths in nm.
            k: force constants in kJ/mol/nm^2.
            periodic: whether distances are those of nearest images in a periodic box.
        """
        super().__init__({"atoms": atoms, "r0": r0, "k": k}, periodic=periodic)

    def energy(
        self, x: Float[Tensor, "3 n_atoms batch"], r: Tensor | None, box: Tensor | None = None
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        length = pair_distances(x, self.atoms[:, 0], self.atoms[:, 1], box)
        return (0.5 * self.k[:, None] * (length - self.r0[:, None]).square()).sum(0).double()


@register_force("HarmonicBondForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    rows = [force.getBondParameters(k) for k in range(force.getNumBonds())]
    return HarmonicBonds(
        atoms=tensor([row[:2] for row in rows], None, (2,)),
        r0=tensor([row[2] for row in rows], dtype),
        k=tensor([row[3] for row in rows], dtype),
        periodic=force.usesPeriodicBoundaryConditions(),
    )
