"""Coordinates of a molecule as a flow sees them: internal or mixed, scaled by its force field, and their maps."""

from typing import TYPE_CHECKING

import torch

from boltzflow._typing import Bool, Tensor
from boltzflow.coordinates import CartesianBlock, FrozenCoordinates, InternalDomain, frozen_coordinates
from boltzflow.errors import UnsupportedForceError
from boltzflow.io.config import GeneratorConfig
from boltzflow.targets.molecule import kT
from boltzflow.transitions.block import BlockToInternal
from boltzflow.transitions.internal import InternalToCartesian
from boltzflow.transitions.transition import Bijection

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["internal_coordinates"]


def internal_coordinates(
    system: "System", config: GeneratorConfig
) -> tuple[list[str], Bool[Tensor, " d"], list[Bijection]]:
    """Coordinates in which a flow over a molecule moves; those that constraints freeze are not among them.

    They are internal, or mixed: the atom in the middle and its neighbours are then a whitened block of Cartesian
    coordinates in their own frame, see `coordinates.CartesianBlock`, and the others are internal. Proper torsions are
    circles, unless the couplings of a `stochastic_flow` are affine and can bend lines only: then they are deviations in
    radians from the relaxed structure, of at most half a turn.

    Args:
        system: Gives the Z-matrix, its domain and the temperature.
        config: Which coordinates.

    Returns:
        Their kinds, "circle" or "line"; which are circles, (d,) bool; and the maps from field "q" to positions.

    Raises:
        UnsupportedForceError: If the system is periodic, has virtual sites, or constraints that are no internal
            coordinates; in mixed coordinates if it has any constraints, or molecules are joined within the block.
    """
    block = _block(system) if config.coordinates == "mixed" else None
    domain = _domain(system)
    mean = torch.cat([domain.bond_mean, domain.angle_mean, domain.torsion_mean])
    soft = domain.soft.bool()
    as_lines = config.family == "stochastic_flow" and config.n_couplings > 0 and config.stochastic.coupling == "affine"
    torsion_std = torch.where(soft & as_lines, torch.ones_like(domain.torsion_std), domain.torsion_std)
    scale = torch.cat([domain.bond_std, domain.angle_std, torsion_std])
    n_lengths = len(domain.bond_mean) + len(domain.angle_mean)
    circular = torch.cat([torch.zeros(n_lengths, dtype=torch.bool), soft & (not as_lines)])
    frozen = _frozen(system)
    sampled = circular if frozen is None else circular[~frozen.mask]
    kinds = ["circle" if c else "line" for c in sampled.tolist()]
    maps: list[Bijection] = [
        InternalToCartesian(system.zmatrix, mean=mean, scale=scale, circular=circular, frozen=frozen)
    ]
    if block is not None:
        rows = block.columns
        covariance = domain.covariance[rows][:, rows]
        maps.insert(0, BlockToInternal(block, mean=mean[rows], scale=scale[rows], covariance=covariance))
    return kinds, sampled, maps


def _block(system: "System") -> CartesianBlock:
    if system.n_constraints:
        raise UnsupportedForceError(
            f"system {system.name} has {system.n_constraints} constraints, which hold bonds and angles, and a block in "
            "Cartesian coordinates has none; set generator.coordinates to internal."
        )
    if system.zmatrix.linked_bonds[:2].any():
        raise UnsupportedForceError(
            f"system {system.name}: the middle of its Z-matrix joins two molecules, whose distance is too broad for a "
            "whitened block; set generator.coordinates to internal."
        )
    return CartesianBlock(system.zmatrix)


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
