"""Annealed samplers as Generators: annealed importance sampling, sequential Monte Carlo, and both with maps."""

import copy
import math
from collections.abc import Callable, Sequence

import torch

from boltzflow.errors import AnnealingError
from boltzflow.generators.generator import Generator
from boltzflow.generators.schedule import Schedule
from boltzflow.paths import GeometricPath, Path, TemperedPath
from boltzflow.targets.target import Base, Target
from boltzflow.transitions.resampling import SystematicResampling
from boltzflow.transitions.transition import BatchStep, Bijection, Transition

__all__ = ["annealed_importance", "smc"]


def annealed_importance(
    base: Base,
    kernels: Transition | Sequence[Transition],
    schedule: Schedule | Sequence[float],
    *,
    maps: Sequence[Bijection] | None = None,
    path: Callable[[Target, Target], Path] = GeometricPath,
    last: Sequence[Transition] = (),
) -> Generator:
    """Annealed importance sampling: the kernels at every level from the base to the target; paths are independent.

    Args:
        base: Where paths start.
        kernels: Moves at every level; copied.
        schedule: From `find_schedule`, or levels that rise and end at 1.
        maps: A Bijection before the kernels of every level.
        path: Makes the annealing path.
        last: Steps after the last level, see `anneal_from`.

    Raises:
        AnnealingError: If the levels do not end at the target, or `maps` or step sizes do not fit.

    References:
        Neal, Stat. Comput. 11, 125 (2001).

    Example:
        >>> from boltzflow.targets import DoubleWell, Gaussian
        >>> from boltzflow.transitions import HMC
        >>> kernel = HMC(0.1, n_leapfrog=3)
        >>> generator = annealed_importance(Gaussian(2, scale=2.0), kernel, [0.25, 0.5, 0.75, 1.0])
        >>> len(generator.transitions)
        4
    """
    return _assembled(base, kernels, schedule, maps, path, last, threshold=None)


def smc(
    base: Base,
    kernels: Transition | Sequence[Transition],
    schedule: Schedule | Sequence[float],
    *,
    threshold: float = 0.5,
    maps: Sequence[Bijection] | None = None,
    path: Callable[[Target, Target], Path] = GeometricPath,
    last: Sequence[Transition] = (),
) -> Generator:
    """Sequential Monte Carlo: at every level systematic resampling where it is due, then the kernels.

    One population is one batch of `sample`: give `batch_size`, and n of 20 populations or more, so that errors are
    between populations. With `maps` it is annealed flow transport: a map carries the population from level to level.
    Over a `TemperedPath` from frames of an equilibrated ensemble at a higher temperature, with threshold=1, it is
    population annealing.

    Args:
        base: Where paths start.
        kernels: Moves at every level; copied.
        schedule: From `find_schedule`, or levels that rise and end at 1.
        threshold: Resample when the effective fraction of the population is below.
        maps: A Bijection before the resampling of every level.
        path: Makes the annealing path.
        last: Steps after the last level, see `anneal_from`.

    Raises:
        AnnealingError: If the levels do not end at the target, or `maps` or step sizes do not fit.

    References:
        Del Moral, Doucet and Jasra, J. R. Stat. Soc. B 68, 411 (2006); with maps Arbel, Matthews and Doucet, ICML
        2021; population annealing Hukushima and Iba, AIP Conf. Proc. 690, 200 (2003).

    Example:
        >>> from boltzflow.targets import DoubleWell, Gaussian
        >>> from boltzflow.transitions import HMC
        >>> from boltzflow.generators import find_schedule
        >>> base, target, kernel = Gaussian(2, scale=2.0), DoubleWell(), HMC(0.1, n_leapfrog=3)
        >>> generator = smc(base, kernel, find_schedule(base, target, kernel, n=200, seed=1))
        >>> ensemble = generator.sample(2000, target, seed=1, batch_size=100)
        >>> abs(ensemble.log_z().z_score(target.log_z)) < 4
        True
    """
    return _assembled(base, kernels, schedule, maps, path, last, threshold=threshold)


def _assembled(
    base: Base,
    kernels: Transition | Sequence[Transition],
    schedule: Schedule | Sequence[float],
    maps: Sequence[Bijection] | None,
    path: Callable[[Target, Target], Path],
    last: Sequence[Transition],
    *,
    threshold: float | None,
) -> Generator:
    schedule = schedule if isinstance(schedule, Schedule) else Schedule(tuple(schedule))
    kernels = [kernels] if isinstance(kernels, Transition) else list(kernels)
    if maps is not None and len(maps) != len(schedule):
        raise AnnealingError(f"maps: expected one for each of {len(schedule)} levels, got {len(maps)}.")
    steps: list[Transition | BatchStep] = []
    for k, level in enumerate(schedule.levels):
        # resampling for the target itself would only add noise to averages
        if maps is not None:
            steps.append(maps[k])
        if threshold is not None and level < 1.0:
            steps.append(SystematicResampling(threshold=threshold, level=level))
        sizes = [math.nan] * len(kernels) if schedule.step_sizes is None else schedule.step_sizes[k]
        if len(sizes) != len(kernels):
            raise AnnealingError(f"schedule: has steps of {len(sizes)} kernels, but {len(kernels)} were given.")
        steps += [_at(kernel, level, size) for kernel, size in zip(kernels, sizes, strict=True)]
    generator = Generator(base, [*steps, *last], path=path)
    tempered = threshold is not None and getattr(path, "func", path) is TemperedPath
    generator.trained_by = (
        *(("constant CESS schedule", "step size adaptation") if schedule.seed is not None else ()),
        *(("population annealing",) if tempered else ()),
    )
    return generator


def _at(kernel: Transition, level: float, step_size: float) -> Transition:
    kernel = copy.deepcopy(kernel)
    if kernel.level is not None:
        kernel.level = level
    if not math.isnan(step_size):
        kernel.step_size = torch.full_like(kernel.step_size, step_size)
    return kernel
