"""Domain, centre and width of every internal coordinate from one structure and the force field's own constants."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from boltzflow._typing import Bool, Float, Float64, Int, Tensor
from boltzflow.coordinates.internal import InternalCoordinateMap, InternalCoordinates
from boltzflow.coordinates.sector import LabelSector

__all__ = ["InternalDomain"]


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
            well of the reference, at most pi.
        hand: (n_atoms - 3,) +1, -1 or 0 for (0, pi), (-pi, 0) or the circle, of ``LabelSector``.
        soft: (n_atoms - 3,) bool; True for proper torsions, which explore the circle.
    """

    bond_mean: Float64[Tensor, " n_bonds"]
    bond_std: Float64[Tensor, " n_bonds"]
    angle_mean: Float64[Tensor, " n_angles"]
    angle_std: Float64[Tensor, " n_angles"]
    torsion_mean: Float64[Tensor, " n_torsions"]
    torsion_std: Float64[Tensor, " n_torsions"]
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

        With the terms s_m (bond lengths, angles, torsions) of stiffness k_m and G = ds/dq at the reference, the
        bonded energy is 1/2 dq^T (G^T k G) dq, so that q has the covariance kT (G^T k G)^-1, whose diagonal gives the
        widths. Angles at one atom, rings and torsions about one bond are redundant; the inverse takes account of it. A
        periodic torsion counts with its curvature at the reference where that is positive, and every torsion
        coordinate gets a restraint of width pi, which makes free rotors finite and changes no stiff width.

        Args:
            sector: fixes the Z-matrix and the half circles.
            reference: (n_atoms, 3) nm, an energy-minimised structure.
            bonds: (i, j, r0 nm, k kJ/mol/nm^2) with energy k (r - r0)^2 / 2, as ``HarmonicBondForce`` stores them.
            angles: (i, j, k, theta0 rad, k kJ/mol/rad^2) with energy k (theta - theta0)^2 / 2, likewise.
            torsions: (i, j, k, l, periodicity, phase rad, k kJ/mol) with energy k (1 + cos(n phi - phase)); proper and
                improper alike. Without them the planar siblings have no stiffness.
            kT: kJ/mol.

        Returns:
            Domains with the centres of the reference, which the nonbonded forces have already moved away from r0 and
            theta0 (on alanine dipeptide by up to one width, towards the thermal mean).

        Raises:
            ValueError: if a bond or angle of the Z-matrix has no harmonic term.
        """
        z = sector.zmatrix
        reference = reference.detach().double().cpu()
        stiff_bonds = {frozenset((i, j)) for i, j, _, _ in bonds}
        stiff_angles = {(j, frozenset((i, k))) for i, j, k, _, _ in angles}
        missing = [(i, j) for i, j in z.bond_atoms.tolist() if frozenset((i, j)) not in stiff_bonds]
        missing += [(i, j, k) for i, j, k in z.angle_atoms.tolist() if (j, frozenset((i, k))) not in stiff_angles]
        if missing:
            raise ValueError(
                f"bonds, angles: no harmonic term for the coordinates {missing}; pass the terms of a system without "
                "constraints"
            )

        q_map = InternalCoordinateMap(z)
        q, _ = q_map(reference[None])
        hessian = _bonded_hessian(q_map, q, bonds=bonds, angles=angles, torsions=torsions)
        n = z.n_atoms
        hessian.diagonal()[2 * n - 3 :] += kT / torch.pi**2
        bond_std, angle_std, torsion_std = (kT * hessian.inverse().diagonal()).sqrt().split([n - 1, n - 2, n - 3])
        return cls(
            bond_mean=q.bonds[0],
            bond_std=bond_std,
            angle_mean=q.angles[0],
            angle_std=angle_std,
            torsion_mean=q.torsions[0],
            torsion_std=torsion_std,
            hand=sector.hand.cpu(),
            soft=torch.as_tensor(z.proper),
        )


def _bonded_hessian(
    q_map: InternalCoordinateMap,
    q: InternalCoordinates,
    *,
    bonds: Sequence[tuple[int, int, float, float]],
    angles: Sequence[tuple[int, int, int, float, float]],
    torsions: Sequence[tuple[int, int, int, int, int, float, float]],
) -> Tensor:
    """Return G^T k G (d, d) with G the derivative of the terms' lengths, angles and torsions by q (one frame)."""
    sizes = [part.shape[1] for part in q]
    bond_atoms, angle_atoms = torch.tensor([t[:2] for t in bonds]), torch.tensor([t[:3] for t in angles])
    torsion_atoms = torch.tensor([t[:4] for t in torsions], dtype=torch.int64).reshape(-1, 4)

    def terms(flat: Tensor) -> Tensor:
        x = q_map.to_cartesian(*(part[None] for part in flat.split(sizes)))[0][0]
        i, j = x[bond_atoms].unbind(1)
        lengths = (i - j).norm(dim=-1)
        i, j, k = x[angle_atoms].unbind(1)
        bends = torch.atan2(torch.linalg.cross(i - j, k - j).norm(dim=-1), ((i - j) * (k - j)).sum(-1))
        i, j, k, last = x[torsion_atoms].unbind(1)
        n1, n2 = torch.linalg.cross(i - j, k - j), torch.linalg.cross(last - k, k - j)
        twists = torch.atan2((k - j).norm(dim=-1) * ((i - j) * n2).sum(-1), (n1 * n2).sum(-1))
        return torch.cat([lengths, bends, twists])

    flat = torch.cat([part[0] for part in q])
    twists = terms(flat)[len(bonds) + len(angles) :]
    periodicity, phase, k = torch.tensor([t[4:] for t in torsions], dtype=torch.float64).reshape(-1, 3).unbind(1)
    curvature = (-k * periodicity**2 * (periodicity * twists - phase).cos()).clamp(min=0)
    stiffness = torch.tensor([t[-1] for t in (*bonds, *angles)], dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(terms, flat, vectorize=True)
    return slopes.T @ (torch.cat([stiffness, curvature])[:, None] * slopes)
