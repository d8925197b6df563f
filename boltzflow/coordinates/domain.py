"""Domain, centre and width of every internal coordinate from one structure and the force field's own constants."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from boltzflow._typing import Bool, Float, Float64, Int, Tensor
from boltzflow.coordinates.graph import neighbour_lists, smallest_ring
from boltzflow.coordinates.internal import InternalCoordinateMap
from boltzflow.coordinates.sector import LabelSector
from boltzflow.coordinates.zmatrix import ZMatrix

__all__ = ["InternalDomain"]

# Widths where no term of the force field gives one, nm and rad; see InternalDomain.from_force_field.
_LINK_LENGTH, _LINK_ANGLE = 0.1, 0.5
_FREE_BOND, _FREE_ANGLE = 0.005, 0.2
# Torsions about the bonds of larger rings explore the circle.
_SMALL_RING = 8
_NEARLY_STRAIGHT = math.sin(math.radians(10))


@dataclass(frozen=True, eq=False)
class InternalDomain:
    """Where each internal coordinate lives and how it is distributed before any data.

    Bonds live on (0, inf), angles on (0, pi), torsions on the circle, or on the half circle (0, pi) or (-pi, 0) where
    ``hand`` is +1 or -1. All arrays are float64 in the order of ``ZMatrix``.

    Attributes:
        bond_mean: (n_atoms - 1,) nm.
        bond_std: (n_atoms - 1,) nm.
        angle_mean: (n_atoms - 2,) rad.
        angle_std: (n_atoms - 2,) rad.
        torsion_mean: (n_atoms - 3,) rad.
        torsion_std: (n_atoms - 3,) rad. For siblings the width of the one mode; for proper torsions the width of the
            well of the reference, at most pi; in small rings at least half of the torsion in the ring, so that the
            inverted ring is within four widths.
        covariance: (3 n_atoms - 6, 3 n_atoms - 6) of bonds, angles and torsions, in this order, by the same analysis.
        hand: (n_atoms - 3,) +1, -1 or 0 for (0, pi), (-pi, 0) or the circle, of ``LabelSector``.
        soft: (n_atoms - 3,) bool; True for torsions that explore the circle: the proper ones but for those about bonds
            of rings of up to eight atoms.
    """

    bond_mean: Float64[Tensor, " n_bonds"]
    bond_std: Float64[Tensor, " n_bonds"]
    angle_mean: Float64[Tensor, " n_angles"]
    angle_std: Float64[Tensor, " n_angles"]
    torsion_mean: Float64[Tensor, " n_torsions"]
    torsion_std: Float64[Tensor, " n_torsions"]
    covariance: Float64[Tensor, "d d"]
    hand: Int[Tensor, " n_torsions"]
    soft: Bool[Tensor, " n_torsions"]

    @classmethod
    def from_force_field(
        cls,
        sector: LabelSector,
        reference: Float[Tensor, "n_atoms 3"],
        *,
        bonds: Sequence[tuple[int, int, float, float]],
        angles: Sequence[tuple[int, int, int, float, float]],
        torsions: Sequence[tuple[int, int, int, int, int, float, float]] = (),
        kT: float,
    ) -> "InternalDomain":
        """Estimate centres and widths by a harmonic analysis of the bonded terms at the reference.

        With the terms s_m (bond lengths, angles, torsions) of stiffness k_m and their derivatives S = ds/dx at the
        reference, the bonded energy is 1/2 dx^T (S^T k S) dx, so that q has the covariance kT B (S^T k S)^-1 B^T with
        B = dq/dx on the space without rigid motions, whose diagonal gives the widths. Angles at one atom, rings and
        torsions about one bond are redundant; the inverse takes account of it. A periodic torsion counts with its
        curvature at the reference where that is positive, an angle within 10 degrees of straight with the bends in both
        directions, and a torsion over such an angle not at all.

        Where no term holds a coordinate, a stated width does: pi for every torsion, which makes free rotors finite and
        changes no stiff width, and for angles about an axis that is no bond; 0.1 nm and 0.5 rad for the lengths and
        angles of links; 0.005 nm and 0.2 rad for bonds and angles without a harmonic term, as those of constraints and
        of custom forces are.

        Args:
            sector: fixes the Z-matrix and the half circles.
            reference: (n_atoms, 3) nm, an energy-minimised structure.
            bonds: (i, j, r0 nm, k kJ/mol/nm^2) with energy k (r - r0)^2 / 2, as ``HarmonicBondForce`` stores them;
                Urey-Bradley terms between atoms that are not bonded may be among them.
            angles: (i, j, k, theta0 rad, k kJ/mol/rad^2) with energy k (theta - theta0)^2 / 2, likewise.
            torsions: (i, j, k, l, periodicity, phase rad, k kJ/mol) with energy k (1 + cos(n phi - phase)); proper and
                improper alike. Without them the planar siblings have no stiffness.
            kT: kJ/mol.

        Returns:
            Domains with the centres of the reference, which the nonbonded forces have already moved away from r0 and
            theta0 (on alanine dipeptide by up to one width, towards the thermal mean).
        """
        z = sector.zmatrix
        reference = reference.detach().double().cpu()
        stiff_bonds = {frozenset((i, j)) for i, j, _, stiffness in bonds if stiffness > 0}
        stiff_angles = {(j, frozenset((i, k))) for i, j, k, _, stiffness in angles if stiffness > 0}
        bonded = {frozenset(pair) for pair in z.bonds}
        no_bond = [frozenset(pair) not in stiff_bonds for pair in z.bond_atoms.tolist()]
        no_angle = [(j, frozenset((i, k))) not in stiff_angles for i, j, k in z.angle_atoms.tolist()]
        off_axis = [frozenset((j, k)) not in bonded for _, j, k in z.angle_atoms.tolist()]
        n = z.n_atoms
        widths = torch.cat(
            [
                _widths([(no_bond, _FREE_BOND), (z.linked_bonds, _LINK_LENGTH)], n - 1),
                _widths([(no_angle, _FREE_ANGLE), (off_axis, torch.pi), (z.linked_angles, _LINK_ANGLE)], n - 2),
                torch.full((n - 3,), torch.pi, dtype=torch.float64),
            ]
        )
        covariance = _harmonic_covariance(
            reference, z, bonds=bonds, angles=angles, torsions=torsions, widths=widths, kT=kT
        )
        bond_std, angle_std, torsion_std = covariance.diagonal().sqrt().split([n - 1, n - 2, n - 3])
        q, _ = InternalCoordinateMap(z)(reference[None])
        in_ring = _ring_torsions(z, reference)
        flip = torch.tensor([0.5 * abs(in_ring.get(row, 0.0)) for row in range(n - 3)], dtype=torch.float64)
        soft = torch.as_tensor(z.proper).clone()
        soft[list(in_ring)] = False
        return cls(
            bond_mean=q.bonds[0],
            bond_std=bond_std,
            angle_mean=q.angles[0],
            angle_std=angle_std,
            torsion_mean=q.torsions[0],
            torsion_std=torch.maximum(torsion_std, flip),
            covariance=covariance,
            hand=sector.hand.cpu(),
            soft=soft,
        )


def _widths(kinds: Sequence[tuple[Sequence[bool] | np.ndarray, float]], n: int) -> Tensor:
    """Return the width by which each of n coordinates is restrained, inf where by none; later kinds go first."""
    widths = torch.full((n,), torch.inf, dtype=torch.float64)
    for mask, width in kinds:
        widths[torch.as_tensor(mask)] = width
    return widths


def _ring_torsions(z: ZMatrix, x: Tensor) -> dict[int, float]:
    """Return the rows of the proper torsions about bonds of small rings, each with the torsion in the ring itself."""
    neighbours = neighbour_lists(z.n_atoms, z.bonds)
    found = {}
    for row, (_, b, c, _) in enumerate(z.torsion_atoms.tolist()):
        ring = smallest_ring(b, c, neighbours, largest=_SMALL_RING) if z.proper[row] and c in neighbours[b] else None
        if ring is not None:
            # three atoms lie in a plane, so the torsion of a small ring of three is zero
            found[row] = float(_twist(x[[ring[1], b, c, ring[-2]]][None])) if len(ring) > 3 else 0.0
    return found


def _harmonic_covariance(
    x: Tensor,
    z: ZMatrix,
    *,
    bonds: Sequence[tuple[int, int, float, float]],
    angles: Sequence[tuple[int, int, int, float, float]],
    torsions: Sequence[tuple[int, int, int, int, int, float, float]],
    widths: Tensor,
    kT: float,
) -> Tensor:
    """Return the covariance (d, d) of the internal coordinates under the terms and restraints of given width."""

    def rows(terms: Sequence[tuple], n: int, n_constants: int) -> tuple[Tensor, Tensor]:
        atoms = torch.tensor([term[:n] for term in terms], dtype=torch.int64).reshape(-1, n)
        return atoms, torch.tensor([term[n:] for term in terms], dtype=torch.float64).reshape(-1, n_constants)

    bond_atoms, bond = rows(bonds, 2, 2)
    angle_atoms, angle = rows(angles, 3, 2)
    torsion_atoms, torsion = rows(torsions, 4, 3)
    straight = _bend(x[angle_atoms]).sin() < _NEARLY_STRAIGHT
    defined = (_bend(x[torsion_atoms.unfold(1, 3, 1)].flatten(0, 1)).sin() >= _NEARLY_STRAIGHT).view(-1, 2).all(1)
    torsion_atoms, (periodicity, phase, k) = torsion_atoms[defined], torsion[defined].unbind(1)
    curvature = (-k * periodicity**2 * (periodicity * _twist(x[torsion_atoms]) - phase).cos()).clamp(min=0)
    precision = torch.zeros(x.numel(), x.numel(), dtype=torch.float64)
    for value, atoms, stiffness in [
        (_length, bond_atoms, bond[:, 1]),
        (_bend, angle_atoms[~straight], angle[~straight, 1]),
        (_twist, torsion_atoms, curvature),
        *((partial(_bow, axis=n), angle_atoms[straight], angle[straight, 1]) for n in range(3)),
    ]:
        slopes = _slopes(value, x, atoms)
        precision += slopes.T @ (stiffness[:, None] / kT * slopes)
    b = torch.cat(
        [_slopes(value, x, torch.as_tensor(atoms)) for value, atoms in
         [(_length, z.bond_atoms), (_bend, z.angle_atoms), (_twist, z.torsion_atoms)]]
    )  # fmt: skip
    precision += b.T @ (widths.pow(-2)[:, None] * b)
    # Rigid motions change no coordinate, so any restraint of them serves.
    arm = x - x.mean(0)
    turns = [torch.linalg.cross(arm, axis.expand_as(arm)) for axis in torch.eye(3, dtype=torch.float64)]
    shifts = [axis.expand_as(arm) for axis in torch.eye(3, dtype=torch.float64)]
    rigid = torch.stack([*turns, *shifts]).flatten(1)
    precision += rigid.T @ rigid
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(precision), b.T, upper=False)
    return whitened.T @ whitened


def _slopes(value: Callable[[Tensor], Tensor], x: Tensor, atoms: Tensor) -> Tensor:
    """Return the derivatives (n_terms, 3 n_atoms) of a function of a few atoms' positions, (n_terms, k, 3)."""
    points = x[atoms].requires_grad_()
    (gradient,) = torch.autograd.grad(value(points).sum(), points)
    slopes = torch.zeros(len(atoms), len(x), 3, dtype=torch.float64)
    slopes.index_put_((torch.arange(len(atoms))[:, None], atoms), gradient)
    return slopes.flatten(1)


def _length(points: Tensor) -> Tensor:
    i, j = points.unbind(1)
    return (i - j).norm(dim=-1)


def _bend(points: Tensor) -> Tensor:
    i, j, k = points.unbind(1)
    return torch.atan2(torch.linalg.cross(i - j, k - j).norm(dim=-1), ((i - j) * (k - j)).sum(-1))


def _bow(points: Tensor, *, axis: int) -> Tensor:
    """Return one component of the sum of the unit vectors from j, whose length is pi - theta near a straight angle."""
    i, j, k = points.unbind(1)
    unit = torch.nn.functional.normalize
    return (unit(i - j, dim=-1) + unit(k - j, dim=-1))[:, axis]


def _twist(points: Tensor) -> Tensor:
    i, j, k, last = points.unbind(1)
    n1, n2 = torch.linalg.cross(i - j, k - j), torch.linalg.cross(last - k, k - j)
    return torch.atan2((k - j).norm(dim=-1) * ((i - j) * n2).sum(-1), (n1 * n2).sum(-1))
