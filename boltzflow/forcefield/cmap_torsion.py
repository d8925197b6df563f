"""Correction maps (CMAP): a bicubic periodic surface over two dihedral angles."""

import math
from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.forcefield.geometry import dihedral
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.spline import evaluate_spline, spline_coefficients
from boltzflow.forcefield.term import Term

__all__ = ["CMAPTorsions"]


class CMAPTorsions(Term):
    """Energies that depend on two dihedral angles together, interpolated on periodic maps by bicubic splines.

    References:
        MacKerell, Feig, Brooks, J. Comput. Chem. 25, 1400 (2004).
    """

    def __init__(
        self,
        *,
        atoms: Int[Tensor, "n_torsions 8"],
        map_index: Int[Tensor, "n_torsions"],
        sizes: Int[Tensor, "n_maps"],
        energies: Float[Tensor, "n_values"],
        periodic: bool = False,
    ) -> None:
        """Keep the maps.

        Args:
            atoms: four atoms of the first dihedral angle, then four of the second.
            map_index: which map each pair of angles uses.
            sizes: nodes along each angle, for each map.
            energies: of all maps one after the other, in kJ/mol; in a map the node at angles (2 pi i / size,
                2 pi j / size) stands at i + size j.
            periodic: whether distances are those of nearest images in a periodic box.
        """
        super().__init__(
            {"atoms": atoms, "map_index": map_index, "sizes": sizes, "energies": energies}, periodic=periodic
        )
        maps = energies.double().cpu().split(sizes.square().tolist())
        coefficients = [
            spline_coefficients(values.reshape(size, size).T, periodic=True)
            for values, size in zip(maps, sizes.tolist(), strict=True)
        ]
        table = torch.cat(coefficients) if coefficients else torch.zeros(0, 16)
        self.register_buffer("coefficients", table.to(energies), persistent=False)
        first = sizes.square().cumsum(0) - sizes.square()
        self.register_buffer("size", sizes[map_index][:, None], persistent=False)
        self.register_buffer("first_cell", first[map_index][:, None], persistent=False)

    def energy(
        self, x: Float[Tensor, "3 n_atoms batch"], r: Tensor | None, box: Tensor | None = None
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        cell, fractions = self.first_cell, []
        for start in (0, 4):
            phi = dihedral(*(x.index_select(1, self.atoms[:, start + k]) for k in range(4)), box)
            position = phi * self.size / (2 * math.pi)
            lower = position.detach().floor()
            fractions.append(position - lower)
            # The remainder also brings what a NaN becomes into the map.
            cell = cell + lower.long().remainder(self.size) * (self.size if start == 0 else 1)
        return evaluate_spline(self.coefficients, cell, fractions).sum(0).double()


@register_force("CMAPTorsionForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    rows = [force.getTorsionParameters(k) for k in range(force.getNumTorsions())]
    maps = [force.getMapParameters(k) for k in range(force.getNumMaps())]
    return CMAPTorsions(
        atoms=tensor([row[1:] for row in rows], None, (8,)),
        map_index=tensor([row[0] for row in rows], None),
        sizes=tensor([size for size, _ in maps], None),
        energies=tensor([getattr(value, "_value", value) for _, values in maps for value in values], dtype),
        periodic=force.usesPeriodicBoundaryConditions(),
    )
