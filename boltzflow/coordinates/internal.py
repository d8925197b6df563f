"""Maps between Cartesian positions and the bonds, angles and torsions of a Z-matrix, with log-determinants."""

from typing import NamedTuple

import torch
from torch import nn

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.coordinates.zmatrix import ZMatrix

__all__ = ["InternalCoordinateMap", "InternalCoordinates"]


class InternalCoordinates(NamedTuple):
    """Internal coordinates in the order of ``ZMatrix.order``.

    Attributes:
        bonds: (batch, n_atoms - 1) nm: i-j, j-k, then the bond of every further atom.
        angles: (batch, n_atoms - 2) rad in (0, pi): i-j-k, then the angle of every further atom.
        torsions: (batch, n_atoms - 3) rad in [-pi, pi]: proper torsions, and for siblings the torsion relative to
            the first sibling. An angle of exactly -pi occurs only through a negative zero.
    """

    bonds: Float[Tensor, "batch n_bonds"]
    angles: Float[Tensor, "batch n_angles"]
    torsions: Float[Tensor, "batch n_torsions"]


class InternalCoordinateMap(nn.Module):
    """The bijection between positions modulo rigid motions and internal coordinates.

    With q = (bonds, angles, torsions), and the position and orientation of the molecule integrated out,

        d^{3n}x = 8 pi^2 V * prod_{a not in seed} b_a^2 sin(theta_a) * b_ij^2 b_jk^2 sin(theta_ijk) dq.

    ``to_cartesian`` returns the logarithm of the product without the constant 8 pi^2 V (the volume of SO(3) times that
    of the box for the translation of atom j), ``to_internal`` its negative. Storing a sibling's torsion relative to
    the first sibling is a shift by another coordinate and leaves the determinant unchanged.

    The inner layout is (3, n_atoms, batch), so that every operation is vectorised over the batch. Placement along a
    chain needs no normalisation: with the unit vectors e (b to c), p (towards d, normal to e) and q = p x e of an axis
    (b, c), the atom goes to b + r (cos(theta) e + sin(theta) (cos(phi) p + sin(phi) q)), and the vectors of the axis
    (a, b) are a rotation of those of (b, c). Only the few axes that do not continue one (at the start of a further
    fragment, beside a linear group) are made from positions. The cost is one batched step per level and nothing
    depends on the values.

    Args:
        zmatrix: the references of every atom.

    Example:
        >>> import torch
        >>> from boltzflow.coordinates import InternalCoordinateMap, ZMatrix
        >>> chain = InternalCoordinateMap(ZMatrix.from_bonds(4, [(0, 1), (1, 2), (2, 3)]))
        >>> q, log_det = chain(torch.tensor([[[0.0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1]]]))
        >>> round(float(q.torsions[0, 0].abs()), 4)
        1.5708

    References:
        Practical conversion from torsion space to Cartesian space for in silico protein synthesis (Parsons et al.,
        2005), for the placement of one atom; the volume element is that of spherical coordinates.
    """

    def __init__(self, zmatrix: ZMatrix) -> None:
        super().__init__()
        self.zmatrix = zmatrix
        torsion_atoms = torch.as_tensor(zmatrix.torsion_atoms)
        i, j, k = zmatrix.seed
        place = torch.empty(zmatrix.n_atoms, dtype=torch.int64)
        place[torch.as_tensor(zmatrix.order)] = torch.arange(zmatrix.n_atoms)
        first = torch.as_tensor(zmatrix.first_sibling)
        sibling = torch.nonzero(first >= 0)[:, 0]
        # Atoms at the ends of v1 = r[a] - r[b], v2 = r[c] - r[b], v3 = r[d] - r[c], with the two seed bonds last.
        heads = torch.cat([torsion_atoms[:, 0], torsion_atoms[:, 2], torsion_atoms[:, 3], torch.tensor([i, k])])
        tails = torch.cat([torsion_atoms[:, 1], torsion_atoms[:, 1], torsion_atoms[:, 2], torch.tensor([j, j])])
        for name, index in {
            "_heads": heads,
            "_tails": tails,
            "_place": place,
            "_sibling": sibling,
            "_first": first[sibling],
        }.items():
            self.register_buffer(name, index.clone(), persistent=False)
        # Per level: the parents whose own axis is continued, and (b, c, d) of the atoms with another axis.
        parents = torch.as_tensor(zmatrix.parent_position).split(list(zmatrix.level_sizes))
        axes = place[torch.as_tensor(zmatrix.axis_atoms)].split(list(zmatrix.level_sizes))
        self._other_axes = [bool((parent < 0).any()) for parent in parents]
        for level, (parent, axis) in enumerate(zip(parents, axes, strict=True)):
            self.register_buffer(f"_parent_{level}", parent[parent >= 0].clone(), persistent=False)
            if self._other_axes[level]:
                self.register_buffer(f"_axis_{level}", axis[parent < 0].t().contiguous(), persistent=False)

    def extra_repr(self) -> str:
        """Return sizes for ``repr``."""
        return f"n_atoms={self.zmatrix.n_atoms}, levels={list(self.zmatrix.level_sizes)}"

    def forward(
        self, positions: Float[Tensor, "batch n_atoms 3"]
    ) -> tuple[InternalCoordinates, Float64[Tensor, " batch"]]:
        """Apply ``to_internal``."""
        return self.to_internal(positions)

    def inverse(
        self, coordinates: InternalCoordinates
    ) -> tuple[Float[Tensor, "batch n_atoms 3"], Float64[Tensor, " batch"]]:
        """Apply ``to_cartesian`` to the fields of ``coordinates``."""
        return self.to_cartesian(*coordinates)

    def to_internal(
        self, positions: Float[Tensor, "batch n_atoms 3"]
    ) -> tuple[InternalCoordinates, Float64[Tensor, " batch"]]:
        """Measure bonds, angles and torsions.

        Args:
            positions: (batch, n_atoms, 3) nm.

        Returns:
            The internal coordinates in the dtype of ``positions``, and log|det dq/dx| (batch,) in float64 with the
            convention of the class. Coinciding or exactly collinear atoms give non-finite values.

        Raises:
            ValueError: if the number of atoms is not that of the Z-matrix.
        """
        n_atoms = self.zmatrix.n_atoms
        if positions.shape[1] != n_atoms:
            raise ValueError(
                f"positions: expected (batch, {n_atoms}, 3), got {tuple(positions.shape)}; pass all atoms of the "
                "Z-matrix, in the order of its topology"
            )
        r = positions.permute(2, 1, 0).contiguous()
        v = r.index_select(1, self._heads) - r.index_select(1, self._tails)
        m = n_atoms - 3
        v1, v2, v3, seed = v.split([m, m, m, 2], dim=1)
        n1 = torch.linalg.cross(v1, v2, dim=0)
        n2 = torch.linalg.cross(v3, v2, dim=0)
        bond, axis, n1_norm = _norm(v1), _norm(v2), _norm(n1)
        seed_bonds = _norm(seed)
        seed_normal = _norm(torch.linalg.cross(seed[:, 0], seed[:, 1], dim=0))
        angle = torch.atan2(n1_norm, _dot(v1, v2))
        seed_angle = torch.atan2(seed_normal, _dot(seed[:, 0], seed[:, 1]))
        torsion = torch.atan2(axis * _dot(v1, n2), _dot(n1, n2))
        # b^2 sin(theta) = b |v1 x v2| / |v2|, and b_ij^2 b_jk^2 sin(theta) = b_ij b_jk |v_ij x v_kj|.
        log_det = -torch.log(bond * n1_norm / axis).sum(0, dtype=torch.float64)
        log_det = log_det - torch.log(seed_bonds[0] * seed_bonds[1] * seed_normal).double()
        coordinates = InternalCoordinates(
            bonds=torch.cat([seed_bonds, bond]).t().contiguous(),
            angles=torch.cat([seed_angle[None], angle]).t().contiguous(),
            torsions=torsion.t().contiguous(),
        )
        return coordinates, log_det

    def to_cartesian(
        self,
        bonds: Float[Tensor, "batch n_bonds"],
        angles: Float[Tensor, "batch n_angles"],
        torsions: Float[Tensor, "batch n_torsions"],
    ) -> tuple[Float[Tensor, "batch n_atoms 3"], Float64[Tensor, " batch"]]:
        """Place the atoms.

        Atom j of the seed is at the origin, i on the positive x axis, k in the xy plane with y > 0.

        Args:
            bonds: (batch, n_atoms - 1) nm, positive.
            angles: (batch, n_atoms - 2) rad in (0, pi).
            torsions: (batch, n_atoms - 3) rad, any real number; equal modulo 2 pi.

        Returns:
            Positions (batch, n_atoms, 3) nm and log|det dx/dq| (batch,) in float64 with the convention of the class.
            A bond or angle outside its domain gives a log-determinant of NaN.

        Raises:
            ValueError: if the number of coordinates is not that of the Z-matrix.
        """
        n = self.zmatrix.n_atoms
        shapes = (bonds.shape[1], angles.shape[1], torsions.shape[1])
        if shapes != (n - 1, n - 2, n - 3):
            raise ValueError(f"bonds, angles, torsions: expected {(n - 1, n - 2, n - 3)} columns, got {shapes}")
        b, theta, phi = bonds.t().contiguous(), angles.t().contiguous(), torsions.t().contiguous()
        phi = phi.index_add(0, self._sibling, phi.index_select(0, self._first))
        sin, cos = theta.sin(), theta.cos()
        log_det = 2 * b.log().sum(0, dtype=torch.float64) + sin.log().sum(0, dtype=torch.float64)

        (b_ij, b_jk, b), (sin_ijk, sin), (cos_ijk, cos) = (
            b.split([1, 1, n - 3]),
            sin.split([1, n - 3]),
            cos.split([1, n - 3]),
        )
        frame, position = _seed_frame(b_ij[0], b_jk[0], sin_ijk[0], cos_ijk[0])
        placed = [position]
        # One split for all levels: its gradient is one concatenation, where slices would each allocate the whole.
        scalars = torch.stack([b, sin, cos, phi.sin(), phi.cos()]).split(list(self.zmatrix.level_sizes), dim=1)
        for level, values in enumerate(scalars):
            parent = getattr(self, f"_parent_{level}")
            start, origin = frame.index_select(2, parent), position.index_select(1, parent)
            if self._other_axes[level]:
                points = torch.cat(placed, dim=1)
                b_c_d = [points.index_select(1, index) for index in getattr(self, f"_axis_{level}").unbind(0)]
                start = torch.cat([start, _frame_of(*b_c_d)], dim=2)
                origin = torch.cat([origin, b_c_d[0]], dim=1)
            frame, position = _place_level(start, origin, values)
            placed.append(position)
        r = torch.cat(placed, dim=1).index_select(1, self._place)
        return r.permute(2, 1, 0).contiguous(), log_det


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(0)


def _norm(x: Tensor) -> Tensor:
    return (x * x).sum(0).sqrt()


def _seed_frame(b_ij: Tensor, b_jk: Tensor, sin: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vectors (e, p, q) at the seed atoms i, j, k, (3, 3, 3 atoms, batch), and their positions.

    i is the axis (i, j) seen from k, j the axis (j, i) seen from k, and k the axis (k, j) seen from i.
    """
    zero, one = torch.zeros_like(sin), torch.ones_like(sin)
    rows = [
        *(-one, one, -cos, zero, zero, -sin, zero, zero, zero),
        *(zero, zero, sin, one, one, -cos, zero, zero, zero),
        *(zero, zero, zero, zero, zero, zero, one, -one, -one),
        *(b_ij, zero, b_jk * cos, zero, zero, b_jk * sin, zero, zero, zero),
    ]
    e, p, q, position = torch.stack(rows).view(4, 3, 3, -1).unbind(0)
    return torch.stack([e, p, q]), position


def _frame_of(b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return the vectors (e, p, q), (3, 3, atoms, batch), of the axes from b to c towards d, each (3, atoms, batch)."""
    e = (c - b) / _norm(c - b)
    arm = d - b
    p = arm - _dot(arm, e) * e
    p = p / _norm(p)
    return torch.stack([e, p, torch.linalg.cross(p, e, dim=0)])


def _place_level(frame: Tensor, origin: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Place the atoms of one level.

    Args:
        frame: (3, 3, atoms, batch) vectors (e, p, q) of the axis of each atom.
        origin: (3, atoms, batch) nm, the atoms b.
        values: (5, atoms, batch) bond, sin and cos of the angle, sin and cos of the torsion.

    Returns:
        The vectors of the axes (a, b), in which the children of each atom are placed, and the positions.
    """
    e, p, q = frame.unbind(0)
    b, sin_theta, cos_theta, sin_phi, cos_phi = values.unbind(0)
    w = cos_phi * p + sin_phi * q
    u = cos_theta * e + sin_theta * w
    return torch.stack([-u, sin_theta * e - cos_theta * w, cos_phi * q - sin_phi * p]), origin + b * u
