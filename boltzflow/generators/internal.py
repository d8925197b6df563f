"""Internal coordinates of a molecule as a flow sees them: scaled by its force field, with the map to positions."""

from typing import TYPE_CHECKING

import torch

from boltzflow._typing import Bool, Tensor
from boltzflow.coordinates import FrozenCoordinates, InternalDomain, frozen_coordinates
from boltzflow.errors import UnsupportedForceError
from boltzflow.targets.molecule import kT
from boltzflow.transitions.internal import InternalToCartesian

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["internal_coordinates"]


def internal_coordinates(system: "System") -> tuple[list[str], Bool[Tensor, " d"], InternalToCartesian]:
    """Coordinates in which a flow over a molecule moves; those that constraints freeze are not among them.

    Args:
        system: Gives the Z-matrix, its domain and the temperature.

    Returns:
        Their kinds, "circle" or "line"; which are circles, (d,) bool; and the map from field "q" to positions.

    Raises:
        UnsupportedForceError: If the system is periodic, has virtual sites, or constraints that are no internal
            coordinates.
    """
    domain = _domain(system)
    mean = torch.cat([domain.bond_mean, domain.angle_mean, domain.torsion_mean])
    scale = torch.cat([domain.bond_std, domain.angle_std, domain.torsion_std])
    n_lengths = len(domain.bond_mean) + len(domain.angle_mean)
    circular = torch.cat([torch.zeros(n_lengths, dtype=torch.bool), domain.soft.bool()])
    frozen = _frozen(system)
    sampled = circular if frozen is None else circular[~frozen.mask]
    kinds = ["circle" if c else "line" for c in sampled.tolist()]
    placed = InternalToCartesian(system.zmatrix, mean=mean, scale=scale, circular=circular, frozen=frozen)
    return kinds, sampled, placed


def _frozen(system: "System") -> FrozenCoordinates | None:
    constraints = system.target.constraints
    if constraints is None:
        return None
    try:
        return frozen_coordinates(system.zmatrix, constraints)
    except ValueError as error:
        raise UnsupportedForceError(f"system {system.name}: {error}") from None


def _domain(system: "System") -> InternalDomain:
    potential = system.potential
    if potential.periodic or potential.sites is not None:
        what = "is in a periodic box" if potential.periodic else "has virtual sites"
        raise UnsupportedForceError(
            f"system {system.name} {what}, and a flow over internal coordinates is of one molecule without: rotations "
            "would change the energy, or sites have coordinates. Simulate it, or use a System without them"
        )
    bonds, angles, torsions = potential.bonds, potential.angles, potential.torsions

    def rows(*columns: torch.Tensor) -> list[tuple]:
        return list(zip(*(c.tolist() for c in columns), strict=True))

    return InternalDomain.from_force_field(
        system.sector,
        system.positions,
        bonds=[(*atoms, *rest) for atoms, *rest in rows(bonds.atoms, bonds.r0, bonds.k)],
        angles=[(*atoms, *rest) for atoms, *rest in rows(angles.atoms, angles.theta0, angles.k)],
        torsions=[
            (*atoms, *rest)
            for atoms, *rest in rows(torsions.atoms, torsions.periodicity.long(), torsions.phase, torsions.k)
        ],
        kT=kT(system.temperature),
    )
