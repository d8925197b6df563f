"""Reference ensembles by simulation, which can be killed and resumed at any moment."""

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError
from boltzflow.io.config import SimulationConfig
from boltzflow.simulation import ChainResult, series_diagnostics
from boltzflow.simulation.frames import SystemFrames, chains_to_ensemble
from boltzflow.simulation.settings import chains_of, complete, n_sweeps, records
from boltzflow.simulation.unfinished import Unfinished
from boltzflow.systems import SystemFolder
from boltzflow.training import started_processes

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
) -> Ensemble:
    """Make a reference ensemble by parallel tempering, HMC in latent coordinates, or molecular dynamics.

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

    Raises:
        KeyboardInterrupt: If it came before the first frame was finished.
        FileExistsError: If there is an unfinished simulation and `resume` is False.
        CheckpointMismatchError: If it, or the finished one, was made with other settings.
        ValueError: In one of several processes.
    """
    n_processes = started_processes().size
    if n_processes > 1:
        raise ValueError(
            f"simulate: runs in one process, got {n_processes}. Start it without torchrun; several simulations with "
            "seeds of their own can be joined by Ensemble.merge."
        )
    settings = complete(settings, dimension=system.dimension)
    unfinished = Unfinished(path, system, settings, every=save_every)
    if resume:
        saved = unfinished.read()
        finished = None if saved is not None or path is None else _finished(path, system, settings)
        if finished is not None:
            return finished
    elif unfinished.exists:
        raise FileExistsError(f"{unfinished.path} is of a simulation that can go on: give --resume, or remove it.")
    else:
        saved = None
    settings = settings.model_copy(update={"seed": unfinished.seed})
    show = sys.stderr.isatty() if progress is None else progress
    run = _dynamics if settings.method == "md" else _tempering
    ensemble = run(system, settings, path, unfinished, saved, show=show)
    if path is not None:
        ensemble.save(path)
    if not ensemble.provenance.interrupted:
        unfinished.remove()
    return ensemble


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
    path: str | Path | None,
    unfinished: Unfinished,
    saved: dict | None,
    *,
    show: bool,
) -> Ensemble:
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
            seed=settings.seed,
            on_steps=bar.update,
            on_frame=keep,
            saved=saved,
        )
    diagnostics = result.diagnostics | {"settings": settings.model_dump(mode="json")}
    result = replace(result, diagnostics=diagnostics, seconds=unfinished.seconds)
    return chains_to_ensemble(system, result, method="md", seed=settings.seed, wanted=n_frames * settings.chains)


def _tempering(
    system: SystemFolder,
    settings: SimulationConfig,
    path: str | Path | None,
    unfinished: Unfinished,
    saved: dict | None,
    *,
    show: bool,
) -> Ensemble:
    simulation = chains_of(system, settings, device=settings.device, seed=settings.seed)
    n_records = records(settings, dimension=system.dimension)
    n_rungs = simulation.n_rungs if settings.keep == "all" else 1
    frames = SystemFrames(system)
    if saved is not None:
        simulation.load_state_dict(saved["simulation"])
        frames.load_state_dict(saved["frames"])
    extra = {"settings": settings.model_dump(mode="json")}
    if settings.moves is not None:
        extra["moves"] = {"source": settings.moves}
        extra["moves"] |= {"every": settings.moves_every} if settings.method == "pt" else {}

    def assembled() -> Ensemble:
        energies = {"reduced_energy": frames.cold()}
        return frames.ensemble(
            method=settings.method,
            seed=settings.seed,
            wanted=n_records * settings.chains * n_rungs,
            diagnostics=simulation.diagnostics() | {"series": series_diagnostics(energies)} | extra,
            ledger=simulation.ledger,
            seconds=unfinished.seconds,
            methods=simulation.methods,
        )

    def write() -> None:
        if unfinished.is_due:
            if len(frames):
                assembled().save(path)
            unfinished.write(lambda: {"simulation": simulation.state_dict(), "frames": frames.state_dict()})

    def keep(part: ChainResult) -> None:
        frames.add(part)
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
            if not len(frames):
                raise
    return assembled()
