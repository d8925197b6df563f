"""Kernels that sample a molecule well, from its bond graph."""

from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.coordinates.graph import connected_components, neighbour_lists, split_by_bonds
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.rigid_move import RigidMove
from boltzflow.transitions.torsion_blocks import TorsionBlocks, torsion_blocks
from boltzflow.transitions.torsion_move import TorsionAxes, TorsionMove, rotatable_axes

__all__ = ["double_bonds", "molecule_blocks", "molecule_kernels", "single_bond_axes", "soft_axes"]

# Shorter bonds between planar atoms are double, in nm: C=C is 0.134, but C-C between two of them 0.146; C=N and N=N are
# 0.125 to 0.130, but a single C-N to a ring 0.138. Amides, 0.133, have a nitrogen with three neighbours.
_DOUBLE = {frozenset({(6, 3)}): 0.140, frozenset({(6, 3), (7, 2)}): 0.134, frozenset({(7, 2)}): 0.134}
# Atoms nearer than this to the line through a bond do not move about it, nm.
_ON_THE_LINE = 0.02


def double_bonds(
    bonds: Sequence[tuple[int, int]], elements: Sequence[int], positions: Float[Tensor, "n_atoms 3"]
) -> list[tuple[int, int]]:
    """C=C, C=N and N=N bonds in no ring, told by their length and the number of neighbours of their ends.

    Args:
        bonds: Pairs of atom indices.
        elements: Atomic number of every atom.
        positions: A relaxed structure, nm.
    """
    neighbours = neighbour_lists(len(elements), bonds)
    _, sides = split_by_bonds(neighbours)
    return [
        (i, j)
        for i, j in sorted(sides)
        if float((positions[i] - positions[j]).norm())
        < _DOUBLE.get(frozenset((int(elements[k]), len(neighbours[k])) for k in (i, j)), 0.0)
    ]


def single_bond_axes(
    axes: TorsionAxes,
    bonds: Sequence[tuple[int, int]],
    elements: Sequence[int],
    positions: Float[Tensor, "n_atoms 3"],
) -> TorsionAxes:
    """The axes without double bonds, which keep E and Z apart, and without those about which nothing turns.

    At the end of a linear group, as of a nitrile, all that would turn is on the line.

    Args:
        axes: Of the whole molecule.
        bonds: Pairs of atom indices.
        elements: Atomic number of every atom.
        positions: A relaxed structure, nm.
    """
    double = {frozenset(pair) for pair in double_bonds(bonds, elements, positions)}
    kept = []
    for (i, j), moving in zip(axes.pairs.tolist(), axes.moving, strict=True):
        along = positions[j] - positions[i]
        arm = positions[moving] - positions[i]
        off_line = torch.linalg.cross(arm, along.expand_as(arm)).norm(dim=1) / along.norm()
        if frozenset((i, j)) not in double and bool((off_line > _ON_THE_LINE).any()):
            kept.append((i, j))
    return axes.select(kept)


def soft_axes(axes: TorsionAxes, bonds: Sequence[tuple[int, int]], elements: Sequence[int]) -> TorsionAxes:
    """The axes about which a molecule changes shape: without amide bonds and rotors that turn only hydrogens.

    Args:
        axes: Of the whole molecule.
        bonds: Pairs of atom indices.
        elements: Atomic number of every atom.
    """
    neighbours = neighbour_lists(len(elements), bonds)

    def amide(nitrogen: int, carbon: int) -> bool:
        return (
            elements[nitrogen] == 7
            and elements[carbon] == 6
            and any(elements[k] == 8 and len(neighbours[k]) == 1 for k in neighbours[carbon])
        )

    hydrogen = torch.tensor([z == 1 for z in elements])
    kept = [
        (i, j)
        for (i, j), moving in zip(axes.pairs.tolist(), axes.moving, strict=True)
        if not (amide(i, j) or amide(j, i) or bool(hydrogen[moving].all()))
    ]
    return axes.select(kept)


def molecule_kernels(
    bonds: Sequence[tuple[int, int]], elements: Sequence[int], *, positions: Float[Tensor, "n_atoms 3"] | None = None
) -> list[MetropolisKernel]:
    """Short HMC trajectories and torsion moves, for `ParallelTempering` on Cartesian "positions" in nm.

    Where there are several molecules, rigid moves of each are added.

    The settings are those that gave most independent visits to the rare αL basin of alanine dipeptide at 300 K: equal
    masses, 5 leapfrog steps and 5 uniform rotations about φ or ψ per sweep give about 70 visits per 10⁶ force
    evaluations (30 with a ladder of 300, 400 and 540 K), 10 steps with physical masses and one rotation about any bond
    about 3.

    Args:
        bonds: Pairs of atom indices.
        elements: Atomic number of every atom.
        positions: A relaxed structure in nm, by which torsion moves leave out double bonds; None if there are none.
    """
    kernels: list[MetropolisKernel] = [HMC(1e-3, n_leapfrog=5)]
    axes = _turnable(bonds, elements, positions)
    soft = soft_axes(axes, bonds, elements)
    if len(soft):
        kernels.append(TorsionMove(soft, weights=(1.0, 0.0, 0.0), n_steps=5))
    if len(axes):
        kernels.append(TorsionMove(axes))
    if len(connected_components(neighbour_lists(len(elements), bonds))) > 1:
        kernels.append(RigidMove(bonds, n_atoms=len(elements)))
    return kernels


def molecule_blocks(
    bonds: Sequence[tuple[int, int]],
    elements: Sequence[int],
    *,
    positions: Float[Tensor, "n_atoms 3"] | None = None,
    families: Sequence[str] = ("side", "pivot"),
    **options: int,
) -> TorsionBlocks:
    """Blocks of soft torsions for a `TorsionBlockFlow` that takes the place of uniform rotations about soft axes.

    The default families are those that turned most per trial on Trp-cage at 300 K (`benchmarks/torsion_blocks.py`).

    Args:
        bonds: Pairs of atom indices.
        elements: Atomic number of every atom.
        positions: A relaxed structure in nm, by which double bonds are left out; None if there are none.
        families: See `torsion_blocks`.
        **options: Of `torsion_blocks`.

    Raises:
        ValueError: If there is no such block.
    """
    axes = soft_axes(_turnable(bonds, elements, positions), bonds, elements)
    return torsion_blocks(axes, bonds, elements, families=families, **options)


def _turnable(
    bonds: Sequence[tuple[int, int]], elements: Sequence[int], positions: Float[Tensor, "n_atoms 3"] | None
) -> TorsionAxes:
    axes = rotatable_axes(bonds, n_atoms=len(elements))
    return axes if positions is None else single_bond_axes(axes, bonds, elements, positions)
