"""How to simulate a molecule: the settings that a configuration leaves open follow from the number of dimensions."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.io.config import SimulationConfig
from boltzflow.simulation.learned_move import LearnedMove
from boltzflow.simulation.parallel_tempering import ParallelTempering
from boltzflow.transitions.molecule import molecule_kernels

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["LARGE", "complete", "forces_per_sweep", "ladder", "molecule_tempering", "n_sweeps", "records"]

LARGE = 250
"""Dimensions above which a simulation is planned by its sweeps, because a sweep takes from a tenth of a second on."""


def ladder(temperature: float, max_temperature: float, *, dimension: int) -> list[float]:
    """Temperatures in geometric progression, close enough to be exchanged.

    With ΔT/T = 2/√d about a quarter of the exchanges of d quadratic degrees of freedom succeed, which gives the fastest
    round trips.

    Args:
        temperature: Of the first, K.
        max_temperature: Of the last, relative to the first; 1 gives a single one.
        dimension: Degrees of freedom d.

    References:
        Kofke, J. Chem. Phys. 117, 6911 (2002); Predescu et al., J. Phys. Chem. B 109, 4189 (2005).
    """
    n_gaps = math.ceil(math.log(max_temperature) / (2 / math.sqrt(max(dimension, 1))))
    return [temperature * max_temperature ** (k / max(n_gaps, 1)) for k in range(n_gaps + 1)]


def complete(settings: SimulationConfig, *, dimension: int) -> SimulationConfig:
    """Fill in what the settings leave open, by the size of the system.

    Parallel tempering of up to 250 dimensions: 32 ladders, 20 000 frames, every fifth sweep after 500. Above, 16
    ladders (10 above 1000 dimensions) make 5000 sweeps after 1000, whatever the number of frames. Molecular dynamics:
    32 replicas, every 1000th step after 10 000.

    Args:
        settings: As configured.
        dimension: Degrees of freedom of the system.

    Raises:
        ValueError: If learned moves are asked for in molecular dynamics.
    """
    if settings.moves is not None and settings.method == "md":
        raise ValueError(
            f"simulation.moves ({settings.moves}): molecular dynamics has no learned moves, because they are "
            "Metropolis-tested; use method pt, or leave them out."
        )
    n = settings.n or 20_000
    if settings.method == "md":
        found = {"chains": 32, "stride": 1000, "burn_in": 10_000}
    elif dimension <= LARGE:
        found = {"chains": 32, "stride": 5, "burn_in": 500}
    else:
        chains = settings.chains or (16 if dimension <= 1000 else 10)
        found = {"chains": chains, "stride": max(1, 5000 // records(settings, chains=chains, dimension=dimension))}
        found["burn_in"] = 1000
    given = {k: v for k, v in settings.model_dump().items() if v is not None}
    return SimulationConfig(**{"n": n, **found, **given})


def records(settings: SimulationConfig, *, dimension: int, chains: int | None = None) -> int:
    """How often every chain is recorded, so that the file gets at least n frames.

    Args:
        settings: Completed, but for the stride.
        dimension: Degrees of freedom of the system.
        chains: In place of those of the settings.
    """
    n_rungs = 1
    if settings.method == "pt" and settings.keep == "all":
        n_rungs = len(ladder(1.0, settings.max_temperature, dimension=dimension))
    return math.ceil((settings.n or 20_000) / ((chains or settings.chains) * n_rungs))


def n_sweeps(settings: SimulationConfig, *, dimension: int) -> int:
    """Sweeps of parallel tempering, or steps of molecular dynamics, of every chain, the burn-in included.

    Args:
        settings: Completed.
        dimension: Degrees of freedom of the system.
    """
    return settings.burn_in + settings.stride * records(settings, dimension=dimension)


def forces_per_sweep(system: "System", settings: SimulationConfig) -> int:
    """Evaluations of energy and force in one sweep of parallel tempering over all walkers, without learned moves.

    Args:
        system: What is simulated.
        settings: Completed.
    """
    n_rungs = len(ladder(1.0, settings.max_temperature, dimension=system.dimension))
    kernels = molecule_kernels(system.bonds, system.elements, positions=system.positions)
    return settings.chains * n_rungs * sum(k.n_steps * getattr(k, "n_leapfrog", 1) for k in kernels)


def molecule_tempering(
    system: "System", settings: SimulationConfig, *, device: torch.device | str = "cpu", seed: int | None = None
) -> ParallelTempering:
    """Parallel tempering of a molecule from its relaxed structure.

    Args:
        system: What is simulated.
        settings: Completed; `moves` is a checkpoint of this system, or a run folder.
        device: Where it runs.
        seed: Random by default.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        CheckpointMismatchError: If it belongs to another system.
        UnsupportedForceError: If the system is periodic.
    """
    if system.box is not None:
        raise UnsupportedForceError(
            f"system {system.name} is in a periodic box: parallel tempering moves single molecules in infinite space. "
            f"Use molecular dynamics: boltzflow simulate {system.source} --method md."
        )
    target = system.target.to(device)
    kernels = molecule_kernels(system.bonds, system.elements, positions=system.positions)
    if settings.moves is not None:
        path = Path(settings.moves)
        generator = system.load_generator(
            checkpoint=path / "checkpoint.pt" if path.is_dir() else path, dtype=torch.float64, device=device
        )
        kernels.append(LearnedMove(generator, every=settings.moves_every))
    return ParallelTempering(
        target,
        target.state(system.positions[None].to(device)),
        temperatures=ladder(system.temperature, settings.max_temperature, dimension=system.dimension),
        n_chains=settings.chains,
        kernels=[kernel.to(device) for kernel in kernels],
        seed=seed,
    )
