"""Periodic torsions, proper and improper: U = k (1 + cos(n phi - phase))."""

from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.forcefield.registry import nonperiodic, register_force, tensor
from boltzflow.forcefield.term import Term

__all__ = ["PeriodicTorsions"]


class PeriodicTorsions(Term):
    """Periodic torsions, proper and improper, U = k (1 + cos(n phi - phase)).

    phi follows the IUPAC sign: 0 is cis, and clockwise is positive when looking from the second atom to the third.
    """

    def __init__(
        self,
        *,
        atoms: Int[Tensor, "n_torsions 4"],
        periodicity: Int[Tensor, "n_torsions"],
        phase: Float[Tensor, "n_torsions"],
        k: Float[Tensor, "n_torsions"],
    ) -> None:
        """Keep the torsions.

        Args:
            atoms: the four atoms of each torsion.
            periodicity: the integer n.
            phase: in rad.
            k: half the barrier, in kJ/mol.
        """
        super().__init__({"atoms": atoms, "periodicity": periodicity, "phase": phase, "k": k})

    def energy(self, x: Float[Tensor, "3 n_atoms batch"], r: Tensor | None) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        a, b, c, d = (x.index_select(1, self.atoms[:, k]) for k in range(4))
        u, v, w = b - a, c - b, d - c
        m, n = torch.linalg.cross(u, v, dim=0), torch.linalg.cross(v, w, dim=0)
        sine = v.square().sum(0).sqrt() * (u * n).sum(0)
        phi = torch.atan2(sine, (m * n).sum(0))
        return (
            (self.k[:, None] * (1 + torch.cos(self.periodicity[:, None] * phi - self.phase[:, None]))).sum(0).double()
        )


@register_force("PeriodicTorsionForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    nonperiodic(force)
    rows = [force.getTorsionParameters(k) for k in range(force.getNumTorsions())]
    return PeriodicTorsions(
        atoms=tensor([row[:4] for row in rows], None, (4,)),
        periodicity=tensor([row[4] for row in rows], None),
        phase=tensor([row[5] for row in rows], dtype),
        k=tensor([row[6] for row in rows], dtype),
    )
