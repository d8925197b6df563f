"""Stochastic normalizing flows: couplings and stochastic blocks in turn; Cartesian, mixed or internal coordinates."""

from functools import partial
from typing import TYPE_CHECKING

import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators.blocks import stochastic_block
from boltzflow.generators.generator import Generator
from boltzflow.generators.internal import internal_coordinates
from boltzflow.generators.normal_base import normal_base
from boltzflow.io.config import GeneratorConfig, StochasticConfig
from boltzflow.paths import GeometricPath, LearnedSchedule, PullbackPath
from boltzflow.run import make_rng
from boltzflow.targets.bases import ProductBase
from boltzflow.targets.target import Base
from boltzflow.transitions.affine import AffineCoupling
from boltzflow.transitions.coupling import SplineCoupling, alternating_masks
from boltzflow.transitions.elementwise import ElementwiseSpline
from boltzflow.transitions.transition import Bijection, Transition
from boltzflow.transitions.triangular import TriangularAffine

if TYPE_CHECKING:
    from boltzflow.systems import SystemFolder

__all__ = ["block_levels", "stochastic_flow"]


def stochastic_flow(system: "SystemFolder", config: GeneratorConfig) -> Generator:
    """Transforms of several couplings, each followed by a block of stochastic steps on the path to the target.

    On an analytic energy the coordinates are its own, from a standard normal base; particles without a centre of mass
    start and stay on the mean-free subspace. On a molecule they are internal or mixed, see `internal_coordinates`; the
    blocks see the pull-back of the target, and the map to positions comes last. Spline couplings of a molecule are
    followed by marginal splines as in `internal_spline_flow`, affine ones are not. Without couplings it is annealing
    alone, without stochastic steps a plain flow.

    Couplings need one flat field, whose coordinates they tell apart. The positions of particles are refused: a coupling
    of their components would prefer one labelling of identical particles and one orientation. Blocks alone do not.

    Args:
        system: What it samples.
        config: `n_couplings` are divided evenly among the transforms of `stochastic`.

    Raises:
        ValueError: If the couplings cannot be divided evenly, or there are not as many levels as transforms.
        UnsupportedForceError: If couplings are asked for on a field that is not flat, if an analytic energy lives on
            something else than one field on lines, or as by `internal_coordinates`.

    References:
        Stochastic Normalizing Flows (Wu, Köhler, Noé, 2020).
    """
    stochastic = config.stochastic
    n_transforms = stochastic.n_transforms
    if config.n_couplings % n_transforms:
        raise ValueError(
            f"stochastic_flow: {config.n_couplings} couplings cannot be divided evenly among {n_transforms} "
            "transforms; change generator.n_couplings or generator.stochastic.n_transforms."
        )
    levels = block_levels(stochastic)
    base, kinds, field, last = _coordinates(system, config)
    with torch.random.fork_rng(devices=[]):
        # initial weights are a function of the configuration alone, whatever was drawn before
        torch.manual_seed(config.mask_seed)
        transforms = _transforms(config, kinds, field, of_molecule=bool(last))
    transitions: list[Transition] = _block(stochastic, 0.0) if stochastic.prior_block else []
    for transform, level in zip(transforms, levels, strict=True):
        transitions += [*transform, *_block(stochastic, level)]
    path = partial(PullbackPath, through=last) if last else GeometricPath
    if stochastic.learn_levels and stochastic.kernel != "none":
        path = LearnedSchedule(levels, path=path)
    return Generator(base, [*transitions, *last], path=path)


def block_levels(config: StochasticConfig) -> tuple[float, ...]:
    """Where on the path the block after every transform stands: as given, by default 1/n, 2/n, …, 1.

    Raises:
        ValueError: If there are not as many as transforms, they do not ascend, or the last one is not 1.
    """
    n = config.n_transforms
    levels = tuple((k + 1) / n for k in range(n)) if config.levels is None else config.levels
    if len(levels) != n or list(levels) != sorted(levels) or levels[-1] != 1.0:
        raise ValueError(
            f"generator.stochastic.levels: expected {n} ascending levels, one after every transform, of which the last "
            f"is 1, since only there the blocks sample the target; got {list(levels)}."
        )
    return levels


def _block(config: StochasticConfig, level: float) -> list[Transition]:
    if config.kernel == "none":
        return []
    return stochastic_block(
        config.kernel,
        step_size=config.step_size,
        n_steps=config.n_steps,
        level=level,
        n_leapfrog=config.n_leapfrog,
        friction=config.friction,
        learnable=config.learn_steps,
    )


def _transforms(config: GeneratorConfig, kinds: list[str], field: str, *, of_molecule: bool) -> list[list[Bijection]]:
    """Couplings of every transform; those of a molecule end with marginals (of splines) and linear correlations."""
    n, masks = config.stochastic.n_transforms, []
    if config.n_couplings:
        masks = alternating_masks(kinds, config.n_couplings, make_rng(config.mask_seed))
    if config.stochastic.coupling == "affine":
        couplings = [AffineCoupling(kinds, mask, field=field, hidden=config.hidden) for mask in masks]
    else:
        sizes = {"bins": config.n_bins, "hidden": config.hidden, "bound": config.bound}
        couplings = [SplineCoupling(kinds, mask, field=field, **sizes) for mask in masks]
    size = config.n_couplings // n
    transforms: list[list[Bijection]] = [couplings[k * size : (k + 1) * size] for k in range(n)]
    if of_molecule and config.stochastic.coupling == "spline":
        transforms[-1].append(ElementwiseSpline(kinds, bins=config.n_marginal_bins, bound=config.bound))
    if of_molecule and config.full_affine:
        lines = torch.tensor([kind == "line" for kind in kinds])
        transforms[-1].append(TriangularAffine(torch.nonzero(lines).flatten()))
    return transforms


def _coordinates(system: "SystemFolder", config: GeneratorConfig) -> tuple[Base, list[str], str, list[Bijection]]:
    """Base, kinds of its coordinates, their field, and what comes after the blocks."""
    if system.temperature is not None:
        kinds, _, maps = internal_coordinates(system, config)
        return ProductBase(kinds), kinds, "q", maps
    base = normal_base(system.target)
    ((name, space),) = base.fields.items()
    if config.n_couplings and len(space.shape) > 1:
        raise UnsupportedForceError(
            f"stochastic_flow: couplings need one flat field on the line, or a molecule; {system.name} has {name} of "
            f"shape {space.shape}. Set generator.n_couplings to 0 for stochastic blocks alone."
        )
    return base, ["line"] * space.shape[0], name, []
