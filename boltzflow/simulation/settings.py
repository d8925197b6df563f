"""How to simulate a system: the settings that a configuration leaves open follow from the number of dimensions."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.io.config import SimulationConfig
from boltzflow.run import Run, make_rng, new_seed
from boltzflow.simulation.flow_training import FlowTraining
from boltzflow.simulation.isir import ISIR
from boltzflow.simulation.learned_move import LearnedKernel, LearnedMove
from boltzflow.simulation.neutra import NeuTra
from boltzflow.simulation.parallel_tempering import ParallelTempering
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.metropolis import MetropolisKernel, centred_normal
from boltzflow.transitions.molecule import molecule_kernels
from boltzflow.transitions.particle_moves import SpeciesSwap

if TYPE_CHECKING:
    from boltzflow.generators.generator import Generator
    from boltzflow.systems import AnalyticSystem, System

__all__ = [
    "LARGE",
    "chains_of",
    "complete",
    "forces_per_sweep",
    "ladder",
    "molecule_tempering",
    "n_sweeps",
    "records",
]

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
        ValueError: If learned moves are asked for in molecular dynamics, or their settings without any, if the
            generator of latent coordinates is missing, or if frames of rungs are to be kept that there are none of.
    """
    if settings.method == "neutra" and settings.moves is None:
        raise ValueError(
            "simulation.method neutra: chains run in the latent coordinates of a generator; name its run or checkpoint "
            "by simulation.moves (--moves)."
        )
    wanted = [k for k in ("moves_proposals", "moves_training") if getattr(settings, k)]
    if wanted and (settings.moves is None or settings.method != "pt"):
        raise ValueError(
            f"simulation.{wanted[0]}: there are no learned moves; name their generator by simulation.moves, and use "
            "method pt."
        )
    if settings.method == "neutra" and settings.keep == "all":
        raise ValueError("simulation.keep all: method neutra has no ladder of temperatures; use cold.")
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


def chains_of(
    system: "System | AnalyticSystem",
    settings: SimulationConfig,
    *,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> ParallelTempering:
    """The Markov chains of a configuration: parallel tempering, or HMC in the latent coordinates of a generator.

    A molecule starts from its relaxed structure, an analytic system from standard normal points or where its Target has
    a `start`, both relaxed; latent chains from samples of the generator.

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
    if settings.method == "neutra":
        generator = _generator(system, settings, device)
        return NeuTra(generator, system.target.to(device), n_chains=settings.chains, seed=seed)
    if system.temperature is not None:
        return molecule_tempering(system, settings, device=device, seed=seed)
    seed = new_seed() if seed is None else seed
    target = system.target.to(device)
    return ParallelTempering(
        target,
        getattr(target, "start", partial(_scattered, target))(settings.chains, make_rng(seed, 1, device=device)),
        temperatures=ladder(1.0, settings.max_temperature, dimension=system.dimension),
        n_chains=settings.chains,
        kernels=[*(kernel.to(device) for kernel in _analytic(target)), *_learned(system, settings, device)],
        seed=seed,
    )


def _analytic(target: Target) -> list[MetropolisKernel]:
    """HMC, and of mixtures exchanges of species, two per particle.

    For the ternary liquid at T = 0.23 ten leapfrog steps and these exchanges take half the evaluations per effective
    sample of the energy that swap Monte Carlo with displacements of single particles takes.
    """
    species = getattr(target, "species", None)
    if species is None or len(species.unique()) < 2:
        return [HMC(0.1, n_leapfrog=5)]
    return [HMC(0.02, n_leapfrog=10), SpeciesSwap(species, n_steps=2 * len(species))]


def _scattered(target: Target, n: int, rng: torch.Generator) -> State:
    """Standard normal points on lines, uniform ones on circles and intervals."""
    fields = {}
    for name, space in target.fields.items():
        like = torch.zeros(n, *space.shape, dtype=torch.float64, device=rng.device)
        x = centred_normal(like, space, Run(rng))
        if space.kind in ("circle", "interval"):
            x = torch.rand(like.shape, generator=rng, dtype=like.dtype, device=rng.device)
            x = 2 * math.pi * (x - 0.5) if space.kind == "circle" else x
        fields[name] = x
    return State(fields, target.fields)


def _generator(
    system: "System | AnalyticSystem", settings: SimulationConfig, device: torch.device | str
) -> "Generator":
    path = Path(settings.moves)
    return system.load_generator(
        checkpoint=path / "checkpoint.pt" if path.is_dir() else path, dtype=torch.float64, device=device
    )


def _learned(
    system: "System | AnalyticSystem", settings: SimulationConfig, device: torch.device | str
) -> list[LearnedKernel]:
    """The kernel that proposes what a generator draws, if there is one."""
    if settings.moves is None:
        return []
    training = FlowTraining(steps=settings.moves_training) if settings.moves_training else None
    options = {"every": settings.moves_every, "training": training}
    generator = _generator(system, settings, device)
    if settings.moves_proposals is None:
        return [LearnedMove(generator, **options)]
    return [ISIR(generator, n_proposals=settings.moves_proposals, **options)]


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
    return ParallelTempering(
        target,
        target.state(system.positions[None].to(device)),
        temperatures=ladder(system.temperature, settings.max_temperature, dimension=system.dimension),
        n_chains=settings.chains,
        kernels=[*(kernel.to(device) for kernel in kernels), *_learned(system, settings, device)],
        seed=seed,
    )
