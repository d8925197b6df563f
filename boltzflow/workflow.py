"""Runs from a configuration: what the command line does, callable from Python."""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from boltzflow._typing import Float64, Tensor
from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError, FormatError, NonFiniteEnergyError
from boltzflow.generators.families import build_generator
from boltzflow.generators.generator import Generator
from boltzflow.generators.top_up import rows_to_keep
from boltzflow.io.atomic import atomic_path
from boltzflow.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from boltzflow.io.config import RunConfig, SimulationConfig
from boltzflow.io.provenance import method_names
from boltzflow.objectives import build_objective
from boltzflow.pilot import pilot
from boltzflow.run import Ledger, make_rng, new_seed
from boltzflow.simulation import ChainResult, series_diagnostics
from boltzflow.simulation.frames import Frames, chains_to_ensemble
from boltzflow.simulation.settings import complete, molecule_tempering, n_sweeps, records
from boltzflow.simulation.unfinished import Unfinished
from boltzflow.state import State
from boltzflow.systems import AnalyticSystem, SystemFolder, load_system
from boltzflow.targets.target import Target
from boltzflow.training import Trainer, TrainingState, local_device, processes, started_processes

__all__ = ["path_log_weights", "sample_to_file", "simulate", "train", "training_data"]

logger = logging.getLogger(__name__)

MAX_FAILED_FRACTION = 0.01
SAVE_EVERY = 30.0
"""Seconds between writes of an ensemble that is being sampled."""
SAVE_SIMULATION_EVERY = 300.0
"""The same of a simulation, whose weights by MBAR take seconds."""


def simulate(
    system: SystemFolder,
    settings: SimulationConfig,
    *,
    path: str | Path | None = None,
    progress: bool | None = None,
    resume: bool = False,
    save_every: float = SAVE_SIMULATION_EVERY,
) -> Ensemble:
    """Make a reference ensemble by parallel tempering or molecular dynamics.

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
    simulation = molecule_tempering(system, settings, device=settings.device, seed=settings.seed)
    n_records = records(settings, dimension=system.dimension)
    n_rungs = simulation.n_rungs if settings.keep == "all" else 1
    frames = Frames(system)
    if saved is not None:
        simulation.load_state_dict(saved["simulation"])
        frames.load_state_dict(saved["frames"])
    extra = {"settings": settings.model_dump(mode="json")}
    extra |= {} if settings.moves is None else {"moves": {"source": settings.moves, "every": settings.moves_every}}

    def assembled() -> Ensemble:
        energies = {"reduced_energy": frames.cold()}
        return frames.ensemble(
            method="pt",
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
        "simulating %s: parallel tempering, %d ladders of %d temperatures up to %.0f K, on %s",
        system.name,
        settings.chains,
        simulation.n_rungs,
        simulation.temperatures[-1],
        settings.device,
    )
    sweeps, n_left = n_sweeps(settings, dimension=system.dimension), n_records - frames.n_records
    with tqdm(total=sweeps, initial=simulation.n_sweeps, desc="simulate", unit="sweep", disable=not show) as bar:
        if simulation.needs_burn_in:
            simulation.burn_in(settings.burn_in, on_sweep=burnt)
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


def training_data(
    ensemble: Ensemble, system: SystemFolder, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> State:
    """Rows of an ensemble as training data: relabelled into the system's sector, the rest left out.

    Args:
        ensemble: Frames of the system, e.g. from `boltzflow simulate`; resampled to equal weights if it has others.
        system: Its `sector` says which labelling the model covers; analytic systems have none.
        dtype: Of the returned State.
        device: Of the returned State.

    Raises:
        CheckpointMismatchError: If the frames are not of this system's size.
        ValueError: If no frame lies in the sector and on the constraints.
    """
    if np.ptp(ensemble.log_weights) > 0:
        logger.info("training data: resampled to equal weights, %.0f effective of %d", ensemble.ess(), len(ensemble))
        ensemble = ensemble.resample(len(ensemble), seed=0)
    if isinstance(system, AnalyticSystem):
        return _analytic_data(ensemble, system, dtype=dtype, device=device)
    # the sector may have moved to a device together with the Target
    where = next(system.sector.buffers()).device
    positions = ensemble.to_state(device=where, dtype=dtype)["positions"]
    if positions.shape[1] != system.n_atoms:
        raise CheckpointMismatchError(
            f"training data: expected {system.n_atoms} atoms of {system.name}, got {positions.shape[1]}; "
            "these frames are of another system."
        )
    positions, n_relabelled = system.sector.relabel(positions)
    inside = system.target.in_support(positions)
    if not bool(inside.any()):
        fixed = f", on {system.n_constraints} constraints" if system.n_constraints else ""
        raise ValueError(
            f"training data: none of {len(inside)} frames lies in the sector of {system.name} "
            f"({system.target.sector_description}{fixed})."
        )
    logger.info(
        "training data: %d frames, %d relabelled, %d outside the sector or off the constraints left out",
        len(inside),
        int(n_relabelled),
        int((~inside).sum()),
    )
    return State({"positions": positions[inside].to(device)}, system.target.fields)


def _analytic_data(
    ensemble: Ensemble, system: AnalyticSystem, *, dtype: torch.dtype, device: torch.device | str
) -> State:
    state, fields = ensemble.to_state(device=device, dtype=dtype), system.target.fields
    shapes = {name: space.shape for name, space in state.spaces.items()}
    expected = {name: space.shape for name, space in fields.items()}
    if shapes != expected:
        raise CheckpointMismatchError(
            f"training data: expected the fields and shapes {expected} of {system.name}, got {shapes}; these samples "
            "are of another system."
        )
    return State({name: state[name] for name in fields}, fields)


def train(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    initial: str | Path | None = None,
    progress: bool | None = None,
) -> Generator:
    """Train a Generator in a run folder: `run.json`, `checkpoint.pt`, `metrics.jsonl`.

    Of the annealed families nothing is trained: a pilot finds the schedule, see `boltzflow.pilot`. Under torchrun all
    processes train, see `Trainer`, and the first one writes the files.

    Args:
        config: The run.
        folder: Made if it does not exist. It can be killed at any moment and resumed.
        resume: Continue from the folder's checkpoint; without one, start.
        initial: Checkpoint whose parameters the run starts from (another stage of the same system).
        progress: Whether to show a bar; by default only on a terminal.

    Returns:
        The Generator with averaged parameters.

    Raises:
        FileExistsError: If the folder holds a run and `resume` is False.
        CheckpointMismatchError: If the checkpoint belongs to another configuration or system, or to a number of
            shards that these processes cannot share.
    """
    folder, world = Path(folder), processes()
    if config.generator.is_piloted:
        if initial is not None:
            raise FormatError(
                f"--initial {initial}: {config.generator.family} learns nothing that could go on from it."
            )
        generator = pilot(config, folder, resume=resume) if world.is_first else None
        world.wait()
        return generator or pilot(config, folder, resume=True)
    checkpoint_file = folder / "checkpoint.pt"
    if checkpoint_file.exists() and not resume:
        raise FileExistsError(f"{folder} holds a run already; continue it with --resume, or name another folder.")
    settings = config.training
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    dtype, device = getattr(torch, settings.dtype), local_device(settings.device)
    system = load_system(config.system, dtype=dtype)
    generator = build_generator(system, config.generator, dtype=dtype, device=device)
    target = system.target.to(device)
    objective = build_objective(generator, target, config.objective, batch_size=settings.batch_size)
    data, digest = None, None
    if objective.needs_data:
        ensemble = Ensemble.load(config.objective.data) if config.objective.data else system.reference()
        if ensemble is not None:
            data = training_data(ensemble, system, dtype=dtype, device=device)
            fields = (ensemble.samples[name] for name in sorted(system.target.fields))
            digest = hashlib.sha256(b"".join(values.tobytes() for values in fields)).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "metrics.jsonl"
    continues = resume and checkpoint_file.exists()
    earlier = None if continues or initial is None else _earlier_stage(initial, system, config)
    if earlier is not None:
        earlier.load_into(generator)
    trainer = Trainer(objective, settings, data=data, metrics=metrics, world=world)
    # what trained the model, as its cost, includes earlier stages and the making of the data
    methods = method_names(
        *config.methods,
        "AdamW",
        *(earlier.methods if earlier else ()),
        *(ensemble.provenance.methods if digest is not None else ()),
    )
    if continues:
        methods = list(load_checkpoint(checkpoint_file).methods)
        _restore(trainer, checkpoint_file, system, config, digest)
    else:
        # what a model cost counts from the first evaluation: earlier stages, and data that they have not counted yet
        if earlier is not None:
            trainer.ledger.merge(Ledger.from_dict(earlier.cost.get("ledger", {})))
            trainer.data_digests.extend(earlier.cost.get("data", ()))
        if digest is not None and digest not in trainer.data_digests:
            trainer.ledger.merge(Ledger.from_dict(ensemble.provenance.ledger))
            trainer.data_digests.append(digest)
        if world.is_first:
            with atomic_path(folder / "run.json") as temporary:
                Path(temporary).write_text(config.model_dump_json(indent=2), encoding="utf-8")
    parameters = b"".join(p.detach().cpu().numpy().tobytes() for p in trainer.parameters)
    start = {"step": trainer.step, "data": digest, "parameters": hashlib.sha256(parameters).hexdigest()}
    world.require_same("system, data and parameters", {"system": system.fingerprint, **start})
    if world.is_first:
        _drop_lines_after(metrics, trainer.step)

    def write(trainer: Trainer) -> None:
        save_checkpoint(
            checkpoint_file,
            generator=generator,
            system=system,
            config=config,
            averaged=trainer.ema.shadow,
            training=asdict(trainer.state()),
            methods=methods,
        )

    shared = f", {trainer.n_shards} shards in {world.size} processes" if trainer.n_shards > 1 else ""
    logger.info("training %s on %s (%s), seed %d%s", system.name, device, settings.dtype, trainer.seed, shared)
    trainer.run(on_checkpoint=write, progress=progress)
    world.wait()
    load_checkpoint(checkpoint_file, system).load_into(generator)
    generator.trained_by = tuple(methods)
    return generator.eval()


def _earlier_stage(path: str | Path, system: SystemFolder, config: RunConfig) -> Checkpoint:
    earlier = load_checkpoint(path, system)
    mine, theirs = config.generator.model_dump(), earlier.config.generator.model_dump()
    if mine != theirs:
        changed = ", ".join(f"{k}: {theirs[k]} there, {mine[k]} here" for k in mine if mine[k] != theirs[k])
        raise CheckpointMismatchError(f"{path}: is of another generator ({changed}); give both runs the same one.")
    return earlier


def _restore(trainer: Trainer, path: Path, system: SystemFolder, config: RunConfig, digest: str | None) -> None:
    checkpoint = load_checkpoint(path, system)
    # More steps may be asked for than the run had; everything else must be the same to give the unbroken run's result.
    mine, theirs = (
        c.model_dump(exclude={"training": {"steps", "threads"}, "simulation": True, "sampling": True, "analysis": True})
        for c in (config, checkpoint.config)
    )
    if mine != theirs:
        changed = sorted(k for k in mine if mine[k] != theirs[k])
        raise CheckpointMismatchError(
            f"{path}: was trained with another configuration (section {', '.join(changed)} differs). Resume "
            "with the same one, or start a new folder from it with --initial."
        )
    if checkpoint.training is None:
        raise CheckpointMismatchError(
            f"{path}: holds no training state (it was stripped); start a new folder from it with --initial."
        )
    checkpoint.load_into(trainer.objective.generator, averaged=False)
    trainer.load_state(TrainingState(**checkpoint.training))
    if digest is not None and trainer.data_digests and digest not in trainer.data_digests:
        raise CheckpointMismatchError(
            f"{path}: was trained on other data. Resume with the same, or start a new folder from it with --initial."
        )


def _drop_lines_after(metrics: Path, step: int) -> None:
    # A killed run may have logged steps after its last checkpoint; they are done again.
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            break
    with atomic_path(metrics) as temporary:
        Path(temporary).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def sample_to_file(
    generator: Generator,
    target: Target,
    path: str | Path,
    *,
    n: int,
    seed: int | None = None,
    batch_size: int = 1000,
    extra: dict | None = None,
    resume: bool = False,
    save_every: float = SAVE_EVERY,
) -> Ensemble | None:
    """Sample shard by shard into a file; an interrupt or an error keeps the shards that are finished.

    Under torchrun every process draws a shard in turn. Shards are keyed by (seed, index) and stand in the file in their
    order, so that it is the same for any number of processes, however often it was interrupted.

    Args:
        generator: Draws the samples.
        target: What the weights are for.
        path: HDF5 file; written now and then and at the end, each time complete.
        n: Number of samples.
        seed: Random by default, or that of the file that is topped up; recorded.
        batch_size: Rows per shard.
        extra: Goes into the provenance.
        resume: Top up a file that was written before; without one, start.
        save_every: Seconds between writes.

    Returns:
        The ensemble; `provenance.interrupted` says whether it has all n rows. None on all processes but the first.

    Raises:
        KeyboardInterrupt: If it came before the first shard was finished.
        NonFiniteEnergyError: If the model failed in too many rows; the file is written nevertheless.
        CheckpointMismatchError: If the file to be topped up was sampled in another way.
    """
    world = processes()
    recorded = {**(extra or {}), "sampling": {"n": n, "batch_size": batch_size}}
    shards: list[Ensemble] = []
    if resume and world.is_first and Path(path).exists():
        shards = [rows_to_keep(path, generator, seed=seed, recorded=recorded)]
        seed = shards[0].provenance.seed
    n_kept = world.agree(sum(map(len, shards)))
    seed = world.agree(new_seed() if seed is None else seed)
    first, saved, interrupted = -(-n_kept // batch_size), time.monotonic(), False
    own = generator.sample_shards(n, target, seed, batch_size=batch_size, first=first + world.rank, every=world.size)
    show = sys.stderr.isatty() and world.is_first
    with tqdm(total=n, initial=n_kept, desc="sample", unit="", disable=not show) as bar:
        try:
            # one round more than there are shards, in which every process sees the end of its own
            for _ in range(first, -(-n // batch_size) + world.size, world.size):
                found = [shard for shard in world.collect(next(own, None)) if shard is not None]
                shards += found
                bar.update(sum(map(len, found)))
                if found and time.monotonic() - saved >= save_every:
                    _save(shards, path, recorded, interrupted=True)
                    saved = time.monotonic()
        except BaseException as error:
            if shards:
                _save(shards, path, recorded, interrupted=True)
            if not shards or not isinstance(error, KeyboardInterrupt):
                raise
            interrupted = True
    if not world.is_first:
        return None
    ensemble = _save(shards, path, recorded, interrupted=interrupted)
    failed = ensemble.provenance.n_failed / len(ensemble)
    if failed > MAX_FAILED_FRACTION:
        raise NonFiniteEnergyError(
            f"{path} is written, but the model gave NaN or inf in {failed:.2%} of its rows, more than "
            f"{MAX_FAILED_FRACTION:.0%}: every estimate is biased. Train further, or sample in float64."
        )
    return ensemble


def _save(shards: list[Ensemble], path: str | Path, extra: dict, *, interrupted: bool) -> Ensemble:
    ensemble = Ensemble.merge(shards)
    ensemble.provenance = replace(
        ensemble.provenance, interrupted=interrupted, extra={**ensemble.provenance.extra, **extra}
    )
    ensemble.save(path)
    return ensemble


@torch.no_grad()
def path_log_weights(
    generator: Generator, samples: Ensemble, target: Target, *, batch_size: int = 1000, seed: int | None = None
) -> Float64[Tensor, " n"]:
    """Trace samples of the target back through a Generator, batch by batch.

    Args:
        generator: Whose paths are wanted.
        samples: Of the target, e.g. a reference by parallel tempering.
        target: Whose energies enter the weights.
        batch_size: Rows per batch.
        seed: For stochastic Transitions; random by default.

    Returns:
        log w of every row, (n,), for `boltzflow.analysis.compare` and `summary`.
    """
    seed = new_seed() if seed is None else seed
    rows = samples.to_state(device=generator.device, dtype=generator.dtype)
    found = []
    for batch, first in enumerate(range(0, len(samples), batch_size)):
        rng = make_rng(seed, batch, device=generator.device)
        trajectory = generator.trace_back(rows.index(slice(first, first + batch_size)), target, rng)
        found.append(trajectory.log_weights.cpu())
    return torch.cat(found)
