"""Cartesian coordinates of a few atoms in a frame that three of them fix, as an alternative to their internal ones."""

import torch
from torch import nn

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.coordinates.zmatrix import ZMatrix

__all__ = ["CartesianBlock"]


class CartesianBlock(nn.Module):
    """The bijection between body-frame positions and internal coordinates of the atoms in the middle of a molecule.

    The block is the seed i-j-k of the Z-matrix and the further neighbours of j that are placed about the axis (j, i).
    Positions modulo rigid motions have 3m - 6 degrees of freedom; here they are the components that the frame of the
    seed leaves free: j is the origin, i on the positive x axis, k in the half plane z = 0, y > 0. With these, and the
    other atoms anywhere in space,

        d^{3m}x = 8 pi^2 V * x_i^2 y_k * dx_i dx_k dy_k prod_a d^3x_a,

    exactly and for every shape. (Frames superposed on a reference lie in 3m - 6 dimensions, too, but the volume element
    of a superposition depends on the shape by a determinant.) As y_k = b_jk sin(theta_ijk), the volume element is that
    of ``InternalCoordinateMap``, so the block can take the place of its own internal coordinates in any Z-matrix: mixed
    coordinates.

    Args:
        zmatrix: of the whole molecule.

    Attributes:
        atoms: the atoms of the block, i, j and k first.
        columns: (3m - 6,) which of the bonds, angles and torsions of the Z-matrix, in this order, are the block's own:
            b_ij, b_jk, theta_ijk, and (b, theta, phi) of every further atom.
        torsions: (m - 3,) places of the torsions phi within ``columns``.

    Example:
        >>> import torch
        >>> from boltzflow.coordinates import CartesianBlock, ZMatrix
        >>> block = CartesianBlock(ZMatrix.from_bonds(4, [(0, 1), (1, 2), (1, 3)]))
        >>> internal, log_det = block.to_internal(torch.tensor([[1.0, 0.0, 2.0, 0.0, 1.0, 0.0]]))
        >>> [round(abs(value), 4) for value in internal[0].tolist()]
        [1.0, 2.0, 1.5708, 1.0, 1.5708, 0.0]

    References:
        Boltzmann Generators (Noé et al., 2019), for mixed coordinates.
    """

    columns: Tensor
    torsions: Tensor

    def __init__(self, zmatrix: ZMatrix) -> None:
        super().__init__()
        n, (i, j, k) = zmatrix.n_atoms, zmatrix.seed
        rows = [
            row
            for row, (_, *axis) in enumerate(zmatrix.torsion_atoms.tolist())
            if axis == [j, i, k] and not zmatrix.proper[row]
        ]
        self.atoms = (i, j, k, *zmatrix.torsion_atoms[rows, 0].tolist())
        others = [[2 + row, n + row, 2 * n - 3 + row] for row in rows]
        columns = torch.tensor([0, 1, n - 1, *(column for three in others for column in three)])
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("torsions", torch.tensor(range(5, len(columns), 3), dtype=torch.int64), persistent=False)

    def to_internal(
        self, block: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], Float64[Tensor, " batch"]]:
        """Measure the bonds, angles and torsions of the block.

        Args:
            block: (batch, 3m - 6) nm: x_i, x_k, y_k, then (x, y, z) of every further atom.

        Returns:
            Internal coordinates in the order of ``columns``, nm and rad, and log|det d(internal)/d(block)| (batch,) in
            float64. Where x_i or y_k is not positive, b_ij or theta_ijk is not either: there is no such molecule.
        """
        x_i, x_k, y_k = block[:, :3].unbind(1)
        x, y, z = self._others(block)
        b_jk, off_axis = torch.hypot(x_k, y_k), torch.hypot(y, z)
        b = torch.hypot(x, off_axis)
        seed = torch.stack([x_i, b_jk, torch.atan2(y_k, x_k)], 1)
        others = torch.stack([b, torch.atan2(off_axis, x), torch.atan2(-z, y)], 2)
        log_det = -b_jk.log().double() - (b * off_axis).log().sum(1, dtype=torch.float64)
        return torch.cat([seed, others.flatten(1)], 1), log_det

    def to_block(
        self, internal: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], Float64[Tensor, " batch"]]:
        """Place the atoms in the frame of the seed.

        Args:
            internal: (batch, 3m - 6) nm and rad, in the order of ``columns``.

        Returns:
            Body-frame coordinates in nm and log|det d(block)/d(internal)| (batch,) in float64.
        """
        b_ij, b_jk, theta_ijk = internal[:, :3].unbind(1)
        b, theta, phi = self._others(internal)
        off_axis = b * theta.sin()
        seed = torch.stack([b_ij, b_jk * theta_ijk.cos(), b_jk * theta_ijk.sin()], 1)
        others = torch.stack([b * theta.cos(), off_axis * phi.cos(), -off_axis * phi.sin()], 2)
        log_det = b_jk.log().double() + (b * off_axis).log().sum(1, dtype=torch.float64)
        return torch.cat([seed, others.flatten(1)], 1), log_det

    def _others(self, values: Tensor) -> tuple[Tensor, ...]:
        return values[:, 3:].unflatten(1, (len(self.torsions), 3)).unbind(2)
