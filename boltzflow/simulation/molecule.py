"""Kernels that sample a molecule well, from its bond graph."""

from collections.abc import Sequence

import torch

from boltzflow.coordinates.graph import connected_components, neighbour_lists
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.rigid_move import RigidMove
from boltzflow.transitions.torsion_move import TorsionAxes, TorsionMove, rotatable_axes

__all__ = ["molecule_kernels", "soft_axes"]


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


def molecule_kernels(bonds: Sequence[tuple[int, int]], elements: Sequence[int]) -> list[MetropolisKernel]:
    """Short HMC trajectories and torsion moves, for `ParallelTempering` on Cartesian "positions" in nm.

    Where there are several molecules, rigid moves of each are added.

    The settings are those that gave most independent visits to the rare αL basin of alanine dipeptide at 300 K: equal
    masses, 5 leapfrog steps and 5 uniform rotations about φ or ψ per sweep give about 70 visits per 10⁶ force
    evaluations (30 with a ladder of 300, 400 and 540 K), 10 steps with physical masses and one rotation about any bond
    about 3.

    Args:
        bonds: Pairs of atom indices.
        elements: Atomic number of every atom.
    """
    kernels: list[MetropolisKernel] = [HMC(1e-3, n_leapfrog=5)]
    axes = rotatable_axes(bonds, n_atoms=len(elements))
    soft = soft_axes(axes, bonds, elements)
    if len(soft):
        kernels.append(TorsionMove(soft, weights=(1.0, 0.0, 0.0), n_steps=5))
    if len(axes):
        kernels.append(TorsionMove(axes))
    if len(connected_components(neighbour_lists(len(elements), bonds))) > 1:
        kernels.append(RigidMove(bonds, n_atoms=len(elements)))
    return kernels
