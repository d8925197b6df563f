"""What a system will cost on this machine, and what to expect: everything that can be measured in seconds is."""

import contextlib
import functools
import itertools
import math
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators.families import build_generator
from boltzflow.io.config import RunConfig, SimulationConfig, parse_config
from boltzflow.objectives import build_objective
from boltzflow.preparation.expectation import expectation
from boltzflow.preparation.recipes import recipes_for
from boltzflow.simulation.settings import complete, forces_per_sweep, ladder, molecule_tempering, n_sweeps, records
from boltzflow.state import State
from boltzflow.systems import System, SystemFolder
from boltzflow.training import Trainer
from boltzflow.transitions.molecule import single_bond_axes
from boltzflow.transitions.torsion_move import rotatable_axes

__all__ = ["ForceTiming", "Forecast", "RecipeForecast", "forecast"]

BATCHES = (1, 32, 256, 1024)
BUFFER = 1024
"""Rows of a buffer of samples from which the time of a whole one is worked out."""
BUDGET = 2.0
"""Seconds that one measurement may take."""


@dataclass(frozen=True)
class ForceTiming:
    """Time of one energy with its force.

    Args:
        seconds: Per conformation, median of the repetitions.
        batch: Conformations at once.
        threads: torch threads.
        dtype: Of the arithmetic.
        backend: "compiled", "eager", or "OpenMM" and the platform.
    """

    seconds: float
    batch: int
    threads: int
    dtype: str
    backend: str


@dataclass(frozen=True)
class RecipeForecast:
    """Cost of one recipe.

    Args:
        name: Of the recipe.
        simulation_seconds: Of `boltzflow simulate`; None where the recipe has no simulation.
        training_seconds: Of `boltzflow train`; None where it trains nothing.
        step_seconds: Of one sweep (or MD step of one replica) and of one training step, where measured.
        file_bytes: Of the ensemble that the simulation writes.
        checkpoint_bytes: Of the run's checkpoint with the state of its optimiser.
        peak_bytes: Of the frames and walkers of the simulation in memory.
    """

    name: str
    simulation_seconds: float | None = None
    training_seconds: float | None = None
    step_seconds: dict[str, float] = field(default_factory=dict)
    file_bytes: int | None = None
    checkpoint_bytes: int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Forecast:
    """What `boltzflow forecast` says.

    Args:
        system: Name.
        atoms: Number of atoms.
        residues: Number of residues.
        molecules: Number of molecules.
        dimension: Degrees of freedom without rigid motions.
        rotatable_torsions: Bonds about which both sides can turn, rotors of hydrogens included.
        backend: What evaluates energies.
        reason: Why it is not the torch force field; empty if it is.
        forces: Measured.
        conformation_bytes: Of one walker in a simulation: positions, force, momentum and a proposal, in float64.
        recipes: In the order of recommendation.
        recommended: The first command to run.
        expectation: Sentences on what to expect of the result.
        load: Processes that wanted a processor in the last minute, over the number of processors; NaN if not known.
        seconds: That the forecast took.
    """

    system: str
    atoms: int
    residues: int
    molecules: int
    dimension: int
    rotatable_torsions: int
    backend: str
    reason: str
    forces: tuple[ForceTiming, ...]
    conformation_bytes: int
    recipes: tuple[RecipeForecast, ...]
    recommended: str
    expectation: tuple[str, ...]
    load: float
    seconds: float


def forecast(system: SystemFolder, *, device: torch.device | str = "cpu") -> Forecast:
    """Measure a system on this machine, and work out what its recipes cost.

    Energies are timed for several batches, threads and dtypes; sweeps of parallel tempering and steps of training at
    the very sizes of the recipes, for a few seconds each. Other load on the machine shows in the numbers.

    Args:
        system: What is to be sampled.
        device: Where simulations and trainings would run.
    """
    began = time.perf_counter()
    load = os.getloadavg()[0] / _cores() if hasattr(os, "getloadavg") else math.nan
    try:
        system.potential  # noqa: B018 - whether it can be made is the question
        reason = ""
    except UnsupportedForceError as error:
        reason = " ".join(str(error).split())
    forces = _openmm_forces(system) if reason else _torch_forces(system, device)
    found = [
        _recipe(system, name, config, unknown_forces=bool(reason), device=device)
        for name, config in _configurations(system).items()
    ]
    axes = rotatable_axes(system.bonds, n_atoms=system.n_atoms)
    axes = single_bond_axes(axes, system.bonds, system.elements, system.positions)
    return Forecast(
        system=system.name,
        atoms=system.n_atoms,
        residues=system.topology.n_residues,
        molecules=len(system.topology.find_molecules()),
        dimension=system.dimension,
        rotatable_torsions=len(axes),
        backend=forces[0].backend,
        reason=reason,
        forces=tuple(forces),
        conformation_bytes=_conformation_bytes(system),
        recipes=tuple(found),
        recommended=_first_command(system, found[0].name),
        expectation=tuple(expectation(system.dimension, torch_forces=not reason, periodic=system.box is not None)),
        load=load,
        seconds=time.perf_counter() - began,
    )


def _configurations(system: System) -> dict[str, RunConfig]:
    """The system's own recipes, else those that suit its size; the default first, and a simulation among them."""
    if system.recipes:
        first = system.definition.recipe
        names = sorted(system.recipes, key=lambda name: name != first)
        found = {name: system.recipe(name) for name in names}
    else:
        found = {
            name: parse_config({**yaml.safe_load(text), "system": system.source})
            for name, text in recipes_for(system).items()
        }
    if not any("simulation" in config.model_fields_set for config in found.values()):
        found["simulate"] = RunConfig(system=system.source, simulation=SimulationConfig())
    return found


def _first_command(system: System, recipe: str) -> str:
    if system.checkpoint_path is not None:
        return f"boltzflow sample {system.name} -n 20000 -o ensemble.h5"
    file = system.folder / "recipes" / f"{recipe}.yaml"
    if not file.is_file() or "simulation" not in system.recipe(recipe).model_fields_set:
        return f"boltzflow simulate {shlex.quote(system.source)}"
    with contextlib.suppress(ValueError):
        file = file.relative_to(Path.cwd())
    return f"boltzflow simulate {shlex.quote(str(file))}"


@contextlib.contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Another number of torch threads for a while; None leaves it."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _median(work: Callable[[], object], *, device: torch.device | str, least: int = 3) -> float:
    """Median seconds of one call, over a tenth of the budget and at least a few calls, unless they are slow."""
    times: list[float] = []
    while len(times) < least or sum(times) < BUDGET / 10:
        started = time.perf_counter()
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
        if sum(times) > BUDGET:
            break
    return statistics.median(times)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch_forces(system: System, device: torch.device | str) -> list[ForceTiming]:
    on_cpu = torch.device(device).type == "cpu"
    timings = []
    for dtype in (torch.float64, torch.float32):
        potential = (system if dtype == system.dtype else replace(system, dtype=dtype)).potential.to(device)
        for threads in sorted({1, _cores()}) if on_cpu else (1,):
            with _threads(threads):
                for batch in BATCHES:
                    x = system.positions.to(device, dtype).expand(batch, -1, -1).contiguous()
                    potential.energy_and_force(x[:1])
                    work = functools.partial(potential.energy_and_force, x)
                    seconds = _median(work, device=device) / batch
                    backend = potential.backend if on_cpu else "eager"
                    timings.append(ForceTiming(seconds, batch, threads, str(dtype).removeprefix("torch."), backend))
                    if seconds * batch > BUDGET / 4:  # larger batches take longer, and not less for a conformation
                        break
    return timings


def _openmm_forces(system: System) -> list[ForceTiming]:
    from boltzflow.forcefield import OpenMMPotential

    with OpenMMPotential(system.openmm_system) as potential:
        x = system.positions[None]
        potential.energy_and_force(x)
        seconds = _median(lambda: potential.energy_and_force(x), device="cpu")
        return [ForceTiming(seconds, 1, 1, "float64", f"OpenMM {potential.platform}")]


def _recipe(
    system: System, name: str, config: RunConfig, *, unknown_forces: bool, device: torch.device | str
) -> RecipeForecast:
    values: dict = {"step_seconds": {}}
    has = config.model_fields_set
    trains = bool(has & {"generator", "objective", "training"})
    walkers = None
    if "simulation" in has or not trains:
        settings = complete(config.simulation, dimension=system.dimension)
        sweeps = n_sweeps(settings, dimension=system.dimension)
        if settings.method == "md":
            step = _md_step(system)
            values["simulation_seconds"] = step * sweeps * settings.chains
            values["step_seconds"]["MD step"] = step
        else:
            step, walkers = _sweep(system, settings, device)
            values["simulation_seconds"] = step * sweeps
            values["step_seconds"]["sweep"] = step
        values |= _sizes(system, settings)
    if trains and not unknown_forces:
        step, buffers, n_parameters = _training_step(system, config, walkers, device)
        values["training_seconds"] = step * config.training.steps + buffers
        values["step_seconds"]["training step"] = step
        # parameters, their moving average, and two moments of the optimiser
        values["checkpoint_bytes"] = 4 * n_parameters * (8 if config.training.dtype == "float64" else 4)
    return RecipeForecast(name, **values)


def _sizes(system: System, settings: SimulationConfig) -> dict[str, int]:
    rungs = 1 if settings.method == "md" else _rungs(system, settings)
    kept = rungs if settings.keep == "all" else 1
    frames = records(settings, dimension=system.dimension) * settings.chains * kept
    row = 12 * system.n_atoms  # positions in float32; and energy, weight, group, chain and time
    walkers = settings.chains * rungs * _conformation_bytes(system)
    return {"file_bytes": frames * (row + 40), "peak_bytes": 2 * frames * row + walkers}


def _rungs(system: System, settings: SimulationConfig) -> int:
    return len(ladder(1.0, settings.max_temperature, dimension=system.dimension))


def _conformation_bytes(system: System) -> int:
    """Positions and force, those of a proposal, and the momentum."""
    return 5 * 3 * system.n_atoms * 8


def _sweep(system: System, settings: SimulationConfig, device: torch.device | str) -> tuple[float, torch.Tensor]:
    """Seconds of a sweep of all ladders, from fewer of them where it takes too long; and where walkers are then."""
    potential = system.potential.to(device)
    x = system.positions.to(device).expand(32, -1, -1).contiguous()
    force = _median(lambda: potential.energy_and_force(x), device=device, least=2) / len(x)
    one_ladder = force * forces_per_sweep(system, settings.model_copy(update={"chains": 1}))
    ladders = max(1, min(settings.chains, int(BUDGET / 4 / one_ladder)))
    simulation = molecule_tempering(system, settings.model_copy(update={"chains": ladders}), device=device, seed=0)
    stamps: list[float] = []
    simulation.burn_in(
        max(4, min(30, int(BUDGET / (ladders * one_ladder)))), on_sweep=lambda: stamps.append(time.perf_counter())
    )
    seconds = statistics.median(b - a for a, b in itertools.pairwise(stamps))
    return seconds * settings.chains / ladders, simulation.state_dict()["fields"]["positions"]


def _md_step(system: System) -> float:
    from boltzflow.simulation.molecular_dynamics import molecular_dynamics

    stamps: list[float] = []
    molecular_dynamics(
        system.openmm_system,
        system.positions,
        temperature=system.temperature,
        n_frames=4,
        stride=20,
        n_equilibration=20,
        on_steps=lambda _: stamps.append(time.perf_counter()),
    )
    return statistics.median(b - a for a, b in itertools.pairwise(stamps)) / 20


def _training_step(
    system: System, config: RunConfig, walkers: torch.Tensor | None, device: torch.device | str
) -> tuple[float, float, int]:
    """Of the untrained model at the recipe's sizes: seconds of a step and of filling all buffers; its parameters."""
    settings = config.training.model_copy(update={"device": str(device)})
    dtype = getattr(torch, settings.dtype)
    with _threads(settings.threads):
        generator = build_generator(system, config.generator, dtype=dtype, device=device)
        target = replace(system, dtype=dtype).target.to(device)
        rows = system.positions[None] if walkers is None else walkers.cpu()
        annealing = config.objective.annealing
        pilot = annealing.model_copy(update={"buffer_size": min(annealing.buffer_size, BUFFER)})
        terms = config.objective.model_copy(update={"annealing": pilot})
        objective = build_objective(generator, target, terms, batch_size=settings.batch_size)
        trainer = Trainer(objective, settings, data=State({"positions": rows.to(device, dtype)}, target.fields))
        trainer.train_step()  # compiles
        trainer.train_step()
        seconds = _median(trainer.train_step, device=device)
        stages = annealing.n_buffers
        filled = _median(lambda: generator.sample(BUFFER, target), device=device, least=1) if stages else 0.0
    buffers = filled * stages * annealing.buffer_size / BUFFER
    return seconds, buffers, sum(p.numel() for p in generator.parameters())
