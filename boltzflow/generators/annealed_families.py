"""Annealed families from a configuration: the base, the kernel and the levels, and the pilot that finds them."""

from typing import TYPE_CHECKING

import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators.annealing import annealed_importance, smc
from boltzflow.generators.blocks import stochastic_block
from boltzflow.generators.generator import Generator
from boltzflow.generators.normal_base import normal_base
from boltzflow.generators.schedule import Schedule, find_schedule
from boltzflow.io.config import GeneratorConfig
from boltzflow.targets.target import Base
from boltzflow.transitions.transition import Transition

if TYPE_CHECKING:
    from boltzflow.systems import AnalyticSystem, System

__all__ = ["annealed_family", "run_pilot"]


def annealed_family(
    system: "System | AnalyticSystem", config: GeneratorConfig, *, schedule: Schedule | None = None
) -> Generator:
    """The annealed Generator that a configuration describes.

    Before the pilot has written levels into the configuration there is one level, the target itself.

    Args:
        system: With an analytic target.
        config: Of family smc or annealed_importance.
        schedule: From `run_pilot`; None = the levels of the configuration, with its step size at all of them, into
            which a checkpoint then loads those of the pilot.

    Raises:
        UnsupportedForceError: If the target is a molecule, or lives on something else than lines.
        AnnealingError: If the levels do not end at the target.
    """
    settings = config.annealing
    base, kernels = _base(system, settings.base_scale), _kernels(config)
    schedule = Schedule(settings.levels or (1.0,)) if schedule is None else schedule
    if config.family == "annealed_importance":
        return annealed_importance(base, kernels, schedule)
    return smc(base, kernels, schedule, threshold=settings.threshold)


def run_pilot(
    system: "System | AnalyticSystem",
    config: GeneratorConfig,
    *,
    seed: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Schedule:
    """Find the levels and step sizes of an annealed family; given levels stay.

    Args:
        system: With an analytic target.
        config: Of family smc or annealed_importance.
        seed: Random by default; recorded in the schedule.
        dtype: Of the population.
        device: Where it runs.
    """
    settings = config.annealing
    return find_schedule(
        _base(system, settings.base_scale).to(device=device, dtype=dtype),
        system.target.to(device=device),
        _kernels(config),
        levels=settings.levels,
        cess=settings.cess,
        n=settings.pilot_size,
        n_rounds=settings.pilot_rounds,
        threshold=settings.threshold,
        seed=seed,
    )


def _kernels(config: GeneratorConfig) -> list[Transition]:
    settings = config.annealing
    return stochastic_block(
        settings.kernel, step_size=settings.step_size, n_steps=settings.n_steps, n_leapfrog=settings.n_leapfrog
    )


def _base(system: "System | AnalyticSystem", scale: float) -> Base:
    if system.temperature is not None:
        raise UnsupportedForceError(
            f"system {system.name} is a molecule, and the families smc and annealed_importance start from a normal "
            "distribution. Anneal it in Python, from the frames of an ensemble at a higher temperature: "
            "boltzflow.generators.smc over a TemperedPath"
        )
    return normal_base(system.target, scale=scale)
