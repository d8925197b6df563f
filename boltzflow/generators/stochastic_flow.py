"""Stochastic normalizing flows: couplings and stochastic blocks in turn, in Cartesian or internal coordinates."""

from functools import partial
from typing import TYPE_CHECKING

import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators.blocks import stochastic_block
from boltzflow.generators.generator import Generator
from boltzflow.generators.internal import internal_coordinates
from boltzflow.io.config import GeneratorConfig, StochasticConfig
from boltzflow.paths import GeometricPath, LearnedSchedule, PullbackPath
from boltzflow.run import make_rng
from boltzflow.targets.bases import Gaussian, ProductBase
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

    On an analytic energy with one flat field the coordinates are its own, from a standard normal base. On a molecule
    they are its internal coordinates as in `internal_spline_flow`, in which the blocks see the pull-back of the target;
    the map to positions comes last. Without couplings it is annealing alone, without stochastic steps a plain flow.

    Args:
        system: What it samples.
        config: `n_couplings` are divided evenly among the transforms of `stochastic`.

    Raises:
        ValueError: If the couplings cannot be divided evenly, or there are not as many levels as transforms.
        UnsupportedForceError: If the system has neither a flat field nor internal coordinates.

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
    base, kinds, field, last = _coordinates(system)
    with torch.random.fork_rng(devices=[]):
        # initial weights are a function of the configuration alone, whatever was drawn before
        torch.manual_seed(config.mask_seed)
        transforms = _transforms(config, kinds, field, marginals=bool(last))
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


def _transforms(config: GeneratorConfig, kinds: list[str], field: str, *, marginals: bool) -> list[list[Bijection]]:
    """Couplings of every transform; internal coordinates have marginals and linear correlations after the last one."""
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
    if marginals:
        transforms[-1].append(ElementwiseSpline(kinds, bins=config.n_marginal_bins, bound=config.bound))
        if config.full_affine:
            lines = torch.tensor([kind == "line" for kind in kinds])
            transforms[-1].append(TriangularAffine(torch.nonzero(lines).flatten()))
    return transforms


def _coordinates(system: "SystemFolder") -> tuple[Base, list[str], str, list[Bijection]]:
    """Base, kinds of its coordinates, their field, and what comes after the blocks."""
    if system.temperature is not None:
        kinds, _, placed = internal_coordinates(system)
        return ProductBase(kinds), kinds, "q", [placed]
    fields = system.target.fields
    (name, space), *others = fields.items()
    if others or space.kind != "line" or len(space.shape) != 1:
        raise UnsupportedForceError(
            f"stochastic_flow: expected a system with one flat field on the line, or a molecule; {system.name} has "
            f"{ {n: (s.kind, s.shape) for n, s in fields.items()} }."
        )
    return Gaussian(space.shape, name=name), ["line"] * space.shape[0], name, []
