"""Spline flows over the internal coordinates of a molecule."""

from typing import TYPE_CHECKING

import torch

from boltzflow.generators.generator import Generator
from boltzflow.generators.internal import internal_coordinates
from boltzflow.io.config import GeneratorConfig
from boltzflow.run import make_rng
from boltzflow.targets.bases import ProductBase
from boltzflow.transitions.coupling import SplineCoupling, alternating_masks
from boltzflow.transitions.elementwise import ElementwiseSpline
from boltzflow.transitions.transition import Transition
from boltzflow.transitions.triangular import TriangularAffine

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["internal_spline_flow"]


def internal_spline_flow(system: "System", config: GeneratorConfig) -> Generator:
    """Spline couplings over scaled internal coordinates, then the map to Cartesian positions.

    Proper torsions are circles with a uniform base. Bonds, angles and sibling torsions are lines with a standard normal
    base, in units of the widths that the force field's bonded terms give them, so that the untrained flow stands near
    the minimum. Where there are several molecules, their places and orientations are coordinates like the others,
    broadly about those of the relaxed structure; torsions of small rings are lines, too. Coordinates that constraints
    fix are constants, so that samples lie on the constraints and weights are exact. After the couplings every
    coordinate has a marginal spline of its own, and the lines a triangular affine map that takes up their linear
    correlations. With `coordinates: mixed` a block in the middle is Cartesian, see `internal_coordinates`.

    Args:
        system: Gives the Z-matrix, its domain and the temperature.
        config: Sizes.
    """
    kinds, circular, maps = internal_coordinates(system, config)
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
        transitions.append(TriangularAffine(torch.nonzero(~circular).flatten()))
    return Generator(ProductBase(kinds), [*transitions, *maps])
