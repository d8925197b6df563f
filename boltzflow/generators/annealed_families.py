"""Annealed families from a configuration: the base, the kernel and the levels, and the pilot that finds them."""

from functools import partial
from typing import TYPE_CHECKING

import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators.annealing import annealed_importance, smc
from boltzflow.generators.blocks import stochastic_block
from boltzflow.generators.generator import Generator
from boltzflow.generators.hot_frames import hot_frames
from boltzflow.generators.normal_base import normal_base
from boltzflow.generators.schedule import Schedule, find_schedule
from boltzflow.generators.trained_base import Start, checkpoint_file, trained_base
from boltzflow.io.config import AnnealedSamplerConfig, GeneratorConfig
from boltzflow.networks.pair_field import PairField
from boltzflow.paths import GeometricPath
from boltzflow.targets.target import Base
from boltzflow.transitions.euler_flow import EulerFlow
from boltzflow.transitions.molecule import molecule_kernels
from boltzflow.transitions.particle_moves import swap_monte_carlo
from boltzflow.transitions.transition import Transition

if TYPE_CHECKING:
    from boltzflow.systems import AnalyticSystem, System

__all__ = ["annealed_family", "run_pilot"]


def annealed_family(
    system: "System | AnalyticSystem", config: GeneratorConfig, *, schedule: Schedule | None = None
) -> Generator:
    """The annealed Generator that a configuration describes.

    It starts from a normal distribution or, with `annealing.base`, from the frames of an ensemble at a higher
    temperature, with resampling population annealing, or from the density of a trained flow. With `annealing.maps` it
    is an annealed flow, whose maps move nothing until they are fitted (`boltzflow.objectives.fit_transport`). Before
    the pilot has written levels into the configuration there is one level, the target itself.

    Args:
        system: With an analytic target, or any where there are frames to start from.
        config: Of family smc or annealed_importance.
        schedule: From `run_pilot`; None = the levels of the configuration, with its step size at all of them, into
            which a checkpoint then loads those of the pilot.

    Raises:
        UnsupportedForceError: If the target is a molecule and there is no base, lives on something else than lines, or
            has constraints; or if there are to be maps of something else than particles.
        CheckpointMismatchError: If the base is not of this system, or not that of the pilot.
        AnnealingError: If the levels do not end at the target.
    """
    settings = config.annealing
    (base, path, last), kernels = _start(system, settings), _kernels(system, settings)
    schedule = Schedule(settings.levels or (1.0,)) if schedule is None else schedule
    maps = _maps(system, settings, len(schedule))
    if config.family == "annealed_importance":
        generator = annealed_importance(base, kernels, schedule, maps=maps, path=path, last=last)
    else:
        generator = smc(base, kernels, schedule, threshold=settings.threshold, maps=maps, path=path, last=last)
    if settings.base is not None and checkpoint_file(settings.base) is not None:
        generator.trained_by = (*generator.trained_by, "annealing from a flow")
    return generator


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
        system: As for `annealed_family`.
        config: Of family smc or annealed_importance.
        seed: Random by default; recorded in the schedule.
        dtype: Of the population.
        device: Where it runs.
    """
    settings = config.annealing
    base, path, _ = _start(system, settings)
    return find_schedule(
        base.to(device=device, dtype=dtype),
        system.target.to(device=device),
        [kernel.to(device) for kernel in _kernels(system, settings)],
        path=path,
        levels=settings.levels,
        cess=settings.cess,
        n=settings.pilot_size,
        n_rounds=settings.pilot_rounds,
        threshold=settings.threshold,
        seed=seed,
    )


def _kernels(system: "System | AnalyticSystem", settings: AnnealedSamplerConfig) -> list[Transition]:
    if settings.coordinates == "latent" and settings.kernel in ("molecule", "swap"):
        raise UnsupportedForceError(
            f"generator.annealing.kernel {settings.kernel}: moves atoms, and with annealing.coordinates: latent there "
            "are none; choose hmc, mala or metropolis, or coordinates: samples."
        )
    if settings.kernel == "molecule":
        moves = molecule_kernels(system.bonds, system.elements, positions=system.positions)
        return moves * settings.n_steps
    if settings.kernel == "swap":
        if not hasattr(system.target, "species"):
            raise UnsupportedForceError(
                f"system {system.name} has no particles with species to swap: choose another "
                "generator.annealing.kernel."
            )
        return swap_monte_carlo(system.target.species, step_size=settings.step_size, n_sweeps=settings.n_steps)
    return stochastic_block(
        settings.kernel, step_size=settings.step_size, n_steps=settings.n_steps, n_leapfrog=settings.n_leapfrog
    )


def _maps(system: "System | AnalyticSystem", settings: AnnealedSamplerConfig, n_levels: int) -> list[EulerFlow] | None:
    if settings.maps == "none":
        return None
    space = system.target.fields.get("positions")
    if system.temperature is not None or space is None or len(space.shape) != 2:
        raise UnsupportedForceError(
            f"system {system.name} is not made of particles whose pairs alone say what they are: leave "
            "generator.annealing.maps out."
        )
    species = [int(kind) for kind in getattr(system.target, "species", [0] * space.shape[0])]
    field = partial(
        PairField,
        species,
        space.shape[1],
        box=getattr(system.target, "length", None),
        reach=settings.map_reach,
        start=settings.map_start,
        n_basis=settings.map_basis,
    )
    return [EulerFlow(field()) for _ in range(n_levels)]


def _start(system: "System | AnalyticSystem", settings: AnnealedSamplerConfig) -> Start:
    """Where paths start, what makes the path from there, and what follows its end."""
    checkpoint, latent, by_energy = None, settings.coordinates == "latent", settings.path == "energy"
    if settings.base is not None:
        checkpoint = checkpoint_file(settings.base)
    if latent and checkpoint is None:
        raise UnsupportedForceError(
            "generator.annealing.coordinates: latent coordinates are those of a trained flow; name its checkpoint or "
            "run folder in generator.annealing.base."
        )
    if by_energy and checkpoint is None:
        raise UnsupportedForceError(
            "generator.annealing.path: energy is the path from what a flow was trained for; name its checkpoint or run "
            "folder in generator.annealing.base, or leave it out."
        )
    if latent:
        return trained_base(system, checkpoint, sha256=settings.base_sha256, latent=True, by_energy=by_energy)
    constraints = getattr(system.target, "constraints", None)
    if constraints is not None:
        raise UnsupportedForceError(
            f"system {system.name} has {len(constraints)} constraints, which moves in Cartesian coordinates would "
            "leave: the families smc and annealed_importance need a System without (constraints=None, "
            "rigidWater=False)."
        )
    if checkpoint is not None:
        return trained_base(system, checkpoint, sha256=settings.base_sha256, by_energy=by_energy)
    if settings.base is not None:
        return *hot_frames(system, settings.base, sha256=settings.base_sha256), []
    return _base(system, settings.base_scale), GeometricPath, []


def _base(system: "System | AnalyticSystem", scale: float) -> Base:
    if system.temperature is not None:
        raise UnsupportedForceError(
            f"system {system.name} is a molecule, which no normal distribution resembles: the families smc and "
            "annealed_importance anneal it in temperature, from the frames of an ensemble at a higher one, or from a "
            "trained flow. Make frames by `boltzflow simulate SYSTEM@TEMPERATURE -o hot.h5`, or train a flow, and name "
            "the file or its run folder in generator.annealing.base."
        )
    return normal_base(system.target, scale=scale)
