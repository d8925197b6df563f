"""Internal coordinates that constraints hold fixed."""

import math
from typing import NamedTuple

import torch

from boltzflow._typing import Bool, Float64, Tensor
from boltzflow.coordinates.constraints import Constraints
from boltzflow.coordinates.zmatrix import ZMatrix

__all__ = ["FrozenCoordinates", "frozen_coordinates"]


class FrozenCoordinates(NamedTuple):
    """Which of the bonds, angles and torsions of a Z-matrix are fixed, in this order.

    Attributes:
        mask: (d,) bool, d = 3 n_atoms - 6.
        values: (d,) nm and rad, zero where nothing is fixed.
        log_slope: ln |det d(distances)/d(coordinates)| of the fixed ones, so that prod_k delta(sigma_k) dx is
            |dx/dq| exp(-log_slope) dq over the others.
    """

    mask: Bool[Tensor, " d"]
    values: Float64[Tensor, " d"]
    log_slope: float


def frozen_coordinates(zmatrix: ZMatrix, constraints: Constraints) -> FrozenCoordinates:
    """Find the coordinates that constraints fix: bonds, and angles of which all three sides are constrained.

    That covers bonds to hydrogen, all bonds of molecules without rings, and rigid water.

    Args:
        zmatrix: references of every atom.
        constraints: of the same atoms.

    Raises:
        ValueError: if a constraint is no such bond or side of an angle, as one that closes a ring, or the distance
            between two hydrogens that are placed by different torsions.

    Example:
        >>> import torch
        >>> from boltzflow.coordinates import Constraints, ZMatrix, frozen_coordinates
        >>> sides = torch.tensor([[0, 1], [1, 2], [0, 2]])
        >>> water = Constraints(sides, torch.tensor([0.1, 0.1, 0.1]), masses=torch.ones(3))
        >>> frozen = frozen_coordinates(ZMatrix.from_bonds(3, [(0, 1), (1, 2)]), water)
        >>> [round(value, 3) for value in frozen.values.tolist()]
        [0.1, 0.1, 1.047]
    """
    ends = zip(constraints.pairs.tolist(), constraints.distances.tolist(), strict=True)
    length = {frozenset(pair): distance for pair, distance in ends}
    bonds, angles = zmatrix.bond_atoms.tolist(), zmatrix.angle_atoms.tolist()
    values, left, log_slope = {}, set(length), 0.0
    for row, pair in enumerate(bonds):
        if frozenset(pair) in length:
            values[row] = length[frozenset(pair)]
            left.discard(frozenset(pair))
    for row, (a, b, c) in enumerate(angles, start=len(bonds)):
        side = frozenset((a, c))
        if side in left and {frozenset((a, b)), frozenset((b, c))} <= set(length) - left:
            one, two, across = length[frozenset((a, b))], length[frozenset((b, c))], length[side]
            cosine = (one**2 + two**2 - across**2) / (2 * one * two)
            if not -1 < cosine < 1:
                raise ValueError(f"constraints: {one}, {two} and {across} nm are no sides of a triangle")
            values[row] = math.acos(cosine)
            log_slope += math.log(one * two * math.sin(values[row]) / across)
            left.discard(side)
    if left:
        pairs = sorted(tuple(sorted(pair)) for pair in left)
        raise ValueError(
            f"constraints: the distances between the atoms {pairs[:20]} are neither a bond of the Z-matrix nor the "
            "third side of an angle between two constrained bonds, so that internal coordinates cannot hold them. "
            "Constrain bonds to hydrogen and rigid waters only, or simulate with molecular dynamics"
        )
    d = 3 * zmatrix.n_atoms - 6
    rows = torch.tensor(sorted(values))
    fixed = torch.zeros(d, dtype=torch.float64)
    fixed[rows] = torch.tensor([values[row] for row in rows.tolist()], dtype=torch.float64)
    return FrozenCoordinates(torch.zeros(d, dtype=torch.bool).index_fill(0, rows, value=True), fixed, log_slope)
