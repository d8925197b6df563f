"""Dihedral angles of many quadruples of atoms at once."""

import torch

from boltzflow._typing import Float, Int, Tensor

__all__ = ["dihedral_angles"]


def dihedral_angles(
    positions: Float[Tensor, "batch n_atoms 3"], atoms: Int[Tensor, "*rows 4"]
) -> Float[Tensor, "batch n_angles"]:
    """Dihedral angles a-b-c-d in (−π, π]: positive where, seen along b→c, d is clockwise from a (IUPAC).

    Args:
        positions: Any length unit.
        atoms: The same quadruples for every row, (n_angles, 4), or those of each row, (batch, n_angles, 4).

    Example:
        >>> x = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1]]])
        >>> round(float(dihedral_angles(x, torch.tensor([[0, 1, 2, 3]]))), 4)
        1.5708
    """
    if atoms.ndim == 2:
        points = positions[:, atoms]
    else:
        rows = torch.arange(len(positions), device=positions.device)
        points = positions[rows[:, None, None], atoms]
    first, axis, last = (points[..., k + 1, :] - points[..., k, :] for k in range(3))
    left, right = torch.linalg.cross(first, axis), torch.linalg.cross(axis, last)
    return torch.atan2((first * right).sum(-1) * axis.norm(dim=-1), (left * right).sum(-1))
