"""Assembled Generators: from a system and a configuration to a base and a sequence of Transitions."""

from typing import TYPE_CHECKING

import torch

from boltzflow.coordinates import FrozenCoordinates, InternalDomain, frozen_coordinates
from boltzflow.errors import UnsupportedForceError
from boltzflow.generators.annealed_families import annealed_family
from boltzflow.generators.generator import Generator
from boltzflow.io.config import GeneratorConfig
from boltzflow.run import make_rng
from boltzflow.targets.bases import ProductBase
from boltzflow.targets.molecule import kT
from boltzflow.transitions.coupling import SplineCoupling, alternating_masks
from boltzflow.transitions.elementwise import ElementwiseSpline
from boltzflow.transitions.internal import InternalToCartesian
from boltzflow.transitions.transition import Transition
from boltzflow.transitions.triangular import TriangularAffine

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["build_generator", "internal_spline_flow"]


def build_generator(
    system: "System",
    config: GeneratorConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Generator:
    """Build the untrained Generator that a configuration describes.

    Args:
        system: What it samples.
        config: Family and sizes.
        dtype: Of parameters and samples.
        device: Where it runs.

    Raises:
        UnsupportedForceError: If the system is periodic, has virtual sites, or constraints that are no internal
            coordinates.
    """
    families = {
        "internal_spline_flow": internal_spline_flow,
        "smc": annealed_family,
        "annealed_importance": annealed_family,
    }
    return families[config.family](system, config).to(device=device, dtype=dtype)


def internal_spline_flow(system: "System", config: GeneratorConfig) -> Generator:
    """Spline couplings over scaled internal coordinates, then the map to Cartesian positions.

    Proper torsions are circles with a uniform base. Bonds, angles and sibling torsions are lines with a standard normal
    base, in units of the widths that the force field's bonded terms give them, so that the untrained flow stands near
    the minimum. Where there are several molecules, their places and orientations are coordinates like the others,
    broadly about those of the relaxed structure; torsions of small rings are lines, too. Coordinates that constraints
    fix are constants, so that samples lie on the constraints and weights are exact. After the couplings every
    coordinate has a marginal spline of its own, and the lines a triangular affine map that takes up their linear
    correlations.

    Args:
        system: Gives the Z-matrix, its domain and the temperature.
        config: Sizes.
    """
    domain = _domain(system)
    mean = torch.cat([domain.bond_mean, domain.angle_mean, domain.torsion_mean])
    scale = torch.cat([domain.bond_std, domain.angle_std, domain.torsion_std])
    n_lengths = len(domain.bond_mean) + len(domain.angle_mean)
    circular = torch.cat([torch.zeros(n_lengths, dtype=torch.bool), domain.soft.bool()])
    frozen = _frozen(system)
    sampled = circular if frozen is None else circular[~frozen.mask]
    kinds = ["circle" if c else "line" for c in sampled.tolist()]
    rng = make_rng(config.mask_seed)
    # Initial weights are a function of the configuration alone, whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.mask_seed)
        transitions: list[Transition] = [
            SplineCoupling(kinds, mask, bins=config.n_bins, hidden=config.hidden, bound=config.bound)
            for mask in alternating_masks(kinds, config.n_couplings, rng)
        ]
    transitions.append(ElementwiseSpline(kinds, bins=config.n_marginal_bins, bound=config.bound))
    if config.full_affine:
        transitions.append(TriangularAffine(torch.nonzero(~sampled).flatten()))
    to_positions = InternalToCartesian(system.zmatrix, mean=mean, scale=scale, circular=circular, frozen=frozen)
    transitions.append(to_positions)
    return Generator(ProductBase(kinds), transitions)


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
