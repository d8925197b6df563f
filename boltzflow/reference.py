"""Reference ensembles by simulation, which can be killed and resumed at any moment."""

import glob
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError
from boltzflow.io.config import SimulationConfig
from boltzflow.run import Ledger, make_rng
from boltzflow.simulation import ChainResult, series_diagnostics
from boltzflow.simulation.frames import Frames, SystemFrames
from boltzflow.simulation.settings import chains_of, complete, ladder, n_sweeps, records
from boltzflow.simulation.unfinished import Unfinished
from boltzflow.systems import SystemFolder
from boltzflow.training import Processes, processes

__all__ = ["SAVE_EVERY", "simulate"]

logger = logging.getLogger(__name__)

SAVE_EVERY = 300.0
"""Seconds between writes of a simulation; its weights by MBAR take seconds."""


def simulate(
    system: SystemFolder,
    settings: SimulationConfig,
    *,
    path: str | Path | None = None,
    progress: bool | None = None,
    resume: bool = False,
    save_every: float = SAVE_EVERY,
) -> Ensemble | None:
    """Make a reference ensemble by parallel tempering, HMC in latent coordinates, or molecular dynamics.

    Under torchrun processes share the shards of the chains, each of which has a random stream keyed by (seed, shard),
    so that the file does not depend on their number; every shard then has an unfinished file of its own, and the
    ensemble is written at the end.

    Args:
        system: What is simulated.
        settings: What is None follows from the size of the system, see `boltzflow.simulation.settings.complete`.
        path: HDF5 file; written at the end, and by parallel tempering now and then, each time complete. Until the end
            there is a file PATH.unfinished beside it, which a killed simulation goes on from. None = neither.
        progress: Whether to show a bar; by default only on a terminal.
        resume: Go on with an unfinished simulation, if there is one.
        save_every: Seconds between writes.

    Returns:
        The ensemble; after an interrupt it has the frames that were finished, and `provenance.interrupted` says so.
        None on all processes but the first.

    Raises:
        KeyboardInterrupt: If it came before the first frame was finished, or into a simulation in shards, which goes on
            from its files.
        FileExistsError: If there is an unfinished simulation and `resume` is False.
        CheckpointMismatchError: If it, or the finished one, was made with other settings.
        ValueError: If the shards do not divide the chains, or the processes the shards.
    """
    world = processes()
    settings = complete(settings, dimension=system.dimension)
    n_shards = world.agree(settings.shards or (_recorded_shards(path) if resume else None) or world.size)
    # the number is recorded where there are several: a simulation in one piece has no parts
    settings = settings.model_copy(update={"shards": n_shards if n_shards > 1 else None})
    if settings.chains % n_shards or n_shards % world.size:
        raise ValueError(
            f"simulation.shards: expected a number that divides {settings.chains} chains and is a multiple of "
            f"{world.size} processes, got {n_shards}; set it, or the number of chains or of processes."
        )
    finished = None
    if resume and path is not None and world.is_first and not _unfinished_files(path):
        finished = _finished(path, system, settings)
    if world.agree(finished is not None):
        return finished
    show = (sys.stderr.isatty() if progress is None else progress) and world.is_first
    if n_shards > 1:
        return _in_shards(system, settings, path, world, show=show, resume=resume, every=save_every)
    unfinished = Unfinished(path, system, settings, every=save_every)
    saved = _to_go_on_from(unfinished, resume=resume)
    settings = settings.model_copy(update={"seed": unfinished.seed})

    def save(part: _Part) -> None:
        _ensemble(part, system, settings, unfinished.seconds).save(path)

    part = _run(system, settings, settings.seed, unfinished, saved, show=show, save=save)
    ensemble = _ensemble(part, system, settings, unfinished.seconds)
    if path is not None:
        ensemble.save(path)
    if not ensemble.provenance.interrupted:
        unfinished.remove()
    return ensemble


@dataclass
class _Part:
    """What a simulation, or one shard of it, has found."""

    frames: Frames
    diagnostics: dict[str, Any]
    ledger: Ledger
    methods: tuple[str, ...]

    def state_dict(self) -> dict[str, Any]:
        """As tensors and plain values."""
        return {
            "frames": self.frames.state_dict(),
            "diagnostics": self.diagnostics,
            "ledger": self.ledger.as_dict(),
            "methods": list(self.methods),
        }


def _run(
    system: SystemFolder,
    settings: SimulationConfig,
    seed: int,
    unfinished: Unfinished,
    saved: dict | None,
    *,
    show: bool,
    save: Callable[[_Part], None] | None,
) -> _Part:
    run = _dynamics if settings.method == "md" else _tempering
    return run(system, settings, seed, unfinished, saved, show=show, save=save)


def _in_shards(
    system: SystemFolder,
    settings: SimulationConfig,
    path: str | Path | None,
    world: Processes,
    *,
    show: bool,
    resume: bool,
    every: float,
) -> Ensemble | None:
    """Equal parts of the chains as simulations of their own, whose streams are keyed by (seed, shard)."""
    n_shards = settings.shards
    mine = range(world.rank, n_shards, world.size)
    files = [Unfinished(path, system, settings, every=every, shard=shard) for shard in mine]
    saved = [_to_go_on_from(file, resume=resume) for file in files]
    # a shard that was killed before its first write has no file
    recorded = [file.seed for file, state in zip(files, saved, strict=True) if state is not None]
    known = [seed for found in world.gather_objects(recorded) for seed in found]
    seed = known[0] if known else world.agree(files[0].seed)
    columns = records(settings, dimension=system.dimension) * settings.chains // n_shards
    n_rungs = 1 if settings.keep == "cold" else len(ladder(1.0, settings.max_temperature, dimension=system.dimension))
    own = settings.model_copy(
        update={
            "chains": settings.chains // n_shards,
            "n": columns * (n_rungs if settings.method == "pt" else 1),
            "seed": seed,
        }
    )
    found = []
    for shard, file, state in zip(mine, files, saved, strict=True):
        file.set_seed(seed)
        if state is not None and "part" in state:
            found.append(state["part"])
            continue
        part = _run(
            system, own, make_rng(seed, shard).initial_seed(), file, state, show=show and not shard, save=None
        ).state_dict()
        part["seconds"] = file.seconds
        found.append(part)
        file.write(lambda part=part: {"part": part})
    collected = world.collect(found)
    # shard k was the (k // size)-th of process k % size
    parts = [collected[k % world.size][k // world.size] for k in range(n_shards)] if world.is_first else []
    ensemble = None
    if world.is_first:
        ensemble = _ensemble(
            _joined(system, parts), system, settings.model_copy(update={"seed": seed}), sum(p["seconds"] for p in parts)
        )
        if path is not None:
            ensemble.save(path)
    world.wait()
    for file in files:
        file.remove()
    return ensemble


def _joined(system: SystemFolder, parts: list[dict[str, Any]]) -> _Part:
    """The parts of all shards as one simulation: rates are means, counts are sums."""
    diagnostics = {k: v for k, v in parts[0]["diagnostics"].items() if k not in ("series", "step_sizes", "seed")}
    for name in ("swap_rates", "acceptance"):
        if name in diagnostics:
            diagnostics[name] = np.mean([part["diagnostics"][name] for part in parts], axis=0).tolist()
    if "round_trips" in diagnostics:
        diagnostics["round_trips"] = sum(part["diagnostics"]["round_trips"] for part in parts)
    diagnostics["shards"] = [
        {k: part["diagnostics"][k] for k in ("seed", "step_sizes") if k in part["diagnostics"]} for part in parts
    ]
    ledger = Ledger()
    for part in parts:
        ledger.merge(Ledger.from_dict(part["ledger"]))
    frames = SystemFrames.joined(system, [part["frames"] for part in parts])
    return _Part(frames, diagnostics, ledger, tuple(parts[0]["methods"]))


def _to_go_on_from(unfinished: Unfinished, *, resume: bool) -> dict | None:
    if unfinished.exists and not resume:
        raise FileExistsError(f"{unfinished.path} is of a simulation that can go on: give --resume, or remove it.")
    return unfinished.read() if resume else None


def _unfinished_files(path: str | Path) -> list[Path]:
    """Files of a simulation that can go on at a path, whole or in shards."""
    path = Path(path)
    found = [Path(f"{path}.unfinished"), *path.parent.glob(f"{glob.escape(path.name)}.*.unfinished")]
    return [file for file in found if file.exists()]


def _recorded_shards(path: str | Path | None) -> int | None:
    """Shards of the simulation that goes on, or is finished, at a path; None if there is none."""
    if path is None:
        return None
    for file in _unfinished_files(path):
        return Unfinished.settings_of(file)["shards"] or 1
    if not Path(path).exists():
        return None
    settings = Ensemble.load(path).provenance.extra.get("simulation", {}).get("settings", {})
    return settings.get("shards") or 1


def _ensemble(part: _Part, system: SystemFolder, settings: SimulationConfig, seconds: float) -> Ensemble:
    n_rungs = 1
    if settings.method == "pt" and settings.keep == "all":
        n_rungs = len(ladder(1.0, settings.max_temperature, dimension=system.dimension))
    extra: dict[str, Any] = {"settings": settings.model_dump(mode="json")}
    if settings.moves is not None:
        extra["moves"] = {"source": settings.moves}
        extra["moves"] |= {"every": settings.moves_every} if settings.method == "pt" else {}
    series = (
        {} if "series" in part.diagnostics else {"series": series_diagnostics({"reduced_energy": part.frames.cold()})}
    )
    return part.frames.ensemble(
        method=settings.method,
        seed=settings.seed,
        wanted=records(settings, dimension=system.dimension) * settings.chains * n_rungs,
        diagnostics=part.diagnostics | series | extra,
        ledger=part.ledger,
        seconds=seconds,
        methods=part.methods,
    )


def _finished(path: str | Path, system: SystemFolder, settings: SimulationConfig) -> Ensemble | None:
    """The ensemble in a file, if its simulation was finished."""
    ensemble = Ensemble.load(path) if Path(path).exists() else None
    if ensemble is None or ensemble.provenance.interrupted:
        return None
    mine = settings.model_dump(mode="json")
    theirs = ensemble.provenance.extra.get("simulation", {}).get("settings", {})
    changed = [k for k in mine if mine[k] != theirs.get(k) and not (k == "seed" and mine[k] is None)]
    changed += ["system"] if ensemble.target != system.target.name else []
    if changed:
        raise CheckpointMismatchError(
            f"{path}: holds a finished simulation with other settings ({', '.join(changed)}). Name another output."
        )
    logger.info("%s: finished already", path)
    return ensemble


def _dynamics(
    system: SystemFolder,
    settings: SimulationConfig,
    seed: int,
    unfinished: Unfinished,
    saved: dict | None,
    *,
    show: bool,
    save: Callable[[_Part], None] | None,
) -> _Part:
    # here, because it needs OpenMM
    from boltzflow.simulation.molecular_dynamics import molecular_dynamics

    if system.n_constraints:
        system = system.with_measure("mass-metric")  # whatever is wanted of the system, this is what dynamics samples
    n_frames = records(settings, dimension=system.dimension)
    steps = settings.chains * n_sweeps(settings, dimension=system.dimension)
    logger.info("simulating %s: molecular dynamics, %d frames of %d replicas", system.name, n_frames, settings.chains)

    def keep(state: Callable[[], dict]) -> None:
        if unfinished.is_due:
            unfinished.write(state)

    with tqdm(total=steps, desc="simulate", unit="step", unit_scale=True, disable=not show) as bar:
        result = molecular_dynamics(
            system.openmm_system,
            system.positions,
            temperature=system.temperature,
            n_frames=n_frames,
            stride=settings.stride,
            n_replicas=settings.chains,
            n_equilibration=settings.burn_in,
            seed=seed,
            on_steps=bar.update,
            on_frame=keep,
            saved=saved,
        )
    frames = SystemFrames(system)
    frames.add(result)
    part = _Part(frames, result.diagnostics, result.ledger, result.methods)
    if save is None and len(frames) < n_frames * settings.chains:
        raise KeyboardInterrupt  # a shard that is not whole cannot be joined to others
    return part


def _tempering(
    system: SystemFolder,
    settings: SimulationConfig,
    seed: int,
    unfinished: Unfinished,
    saved: dict | None,
    *,
    show: bool,
    save: Callable[[_Part], None] | None,
) -> _Part:
    simulation = chains_of(system, settings, device=settings.device, seed=seed)
    n_records = records(settings, dimension=system.dimension)
    frames = SystemFrames(system)
    if saved is not None:
        simulation.load_state_dict(saved["simulation"])
        frames.load_state_dict(saved["frames"])

    def part() -> _Part:
        return _Part(frames, simulation.diagnostics(), simulation.ledger, simulation.methods)

    def write() -> None:
        if unfinished.is_due:
            if len(frames) and save is not None:
                save(part())
            unfinished.write(lambda: {"simulation": simulation.state_dict(), "frames": frames.state_dict()})

    def keep(found: ChainResult) -> None:
        frames.add(found)
        write()

    def burnt() -> None:
        bar.update()
        write()

    logger.info(
        "simulating %s: %s, %d ladders of %d temperatures up to %g times its own, on %s",
        system.name,
        "parallel tempering" if settings.method == "pt" else "HMC in latent coordinates",
        settings.chains,
        simulation.n_rungs,
        simulation.temperatures[-1] / simulation.temperatures[0],
        settings.device,
    )
    # Cartesian variances of a molecule are those of its tumbling
    masses = settings.method == "neutra" or system.temperature is None
    sweeps, n_left = n_sweeps(settings, dimension=system.dimension), n_records - frames.n_records
    with tqdm(total=sweeps, initial=simulation.n_sweeps, desc="simulate", unit="sweep", disable=not show) as bar:
        if simulation.needs_burn_in:
            simulation.burn_in(settings.burn_in, masses=masses, on_sweep=burnt)
        try:
            if n_left:
                simulation.run(
                    n_left,
                    sweeps_per_record=settings.stride,
                    keep=settings.keep,
                    chunk=1,
                    on_chunk=keep,
                    on_sweep=bar.update,
                )
        except KeyboardInterrupt:
            # a shard that is not whole cannot be joined to others
            if not len(frames) or save is None:
                raise
    return part()
