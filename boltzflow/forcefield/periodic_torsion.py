"""Periodic torsions, proper and improper: U = k (1 + cos(n phi - phase))."""

from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.forcefield.geometry import dihedral
from boltzflow.forcefield.registry import register_force, tensor
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
        periodic: bool = False,
    ) -> None:
        """Keep the torsions.

        Args:
            atoms: the four atoms of each torsion.
            periodicity: the integer n.
            phase: in rad.
            k: half the barrier, in kJ/mol.
            periodic: whether distances are those of nearest images in a periodic box.
        """
        super().__init__({"atoms": atoms, "periodicity": periodicity, "phase": phase, "k": k}, periodic=periodic)

    def energy(
        self, x: Float[Tensor, "3 n_atoms batch"], r: Tensor | None, box: Tensor | None = None
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        phi = dihedral(*(x.index_select(1, self.atoms[:, k]) for k in range(4)), box)
        return (
            (self.k[:, None] * (1 + torch.cos(self.periodicity[:, None] * phi - self.phase[:, None]))).sum(0).double()
        )


@register_force("PeriodicTorsionForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    rows = [force.getTorsionParameters(k) for k in range(force.getNumTorsions())]
    return PeriodicTorsions(
        atoms=tensor([row[:4] for row in rows], None, (4,)),
        periodicity=tensor([row[4] for row in rows], None),
        phase=tensor([row[5] for row in rows], dtype),
        k=tensor([row[6] for row in rows], dtype),
        periodic=force.usesPeriodicBoundaryConditions(),
    )


@register_force("RBTorsionForce")
def _convert_ryckaert_bellemans(force: Any, system: Any, dtype: torch.dtype) -> Term:
    """Expand each polynomial in cos(phi - pi) into periodic torsions, which is exact."""
    rows = [force.getTorsionParameters(k) for k in range(force.getNumTorsions())]
    # Powers of cos x as sums of cos nx, n = 0 to 5; cos n(phi - pi) = (-1)^n cos n phi.
    powers = torch.tensor(
        [
            [1, 0, 1 / 2, 0, 3 / 8, 0],
            [0, 1, 0, 3 / 4, 0, 5 / 8],
            [0, 0, 1 / 2, 0, 1 / 2, 0],
            [0, 0, 0, 1 / 4, 0, 5 / 16],
            [0, 0, 0, 0, 1 / 8, 0],
            [0, 0, 0, 0, 0, 1 / 16],
        ],
        dtype=torch.float64,
    )
    n = torch.arange(6)
    k = tensor([row[4:] for row in rows], torch.float64, (6,)) @ powers.T * (-1.0) ** n
    # The term with n = 0 is 2 k: it takes the constant and pays for the 1 in each k (1 + cos n phi).
    k[:, 0] = 0.5 * (k[:, 0] - k[:, 1:].sum(1))
    used = k != 0
    return PeriodicTorsions(
        atoms=tensor([row[:4] for row in rows], None, (4,))[:, None].expand(-1, 6, -1)[used],
        periodicity=n.expand(len(rows), 6)[used],
        phase=torch.zeros(int(used.sum()), dtype=dtype),
        k=k[used].to(dtype),
        periodic=force.usesPeriodicBoundaryConditions(),
    )
