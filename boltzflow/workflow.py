"""Runs from a configuration: what the command line does, callable from Python."""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Sequence
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
from boltzflow.io.config import RunConfig, differences
from boltzflow.io.provenance import method_names
from boltzflow.io.topology import other_order, topology_to_json
from boltzflow.objectives import build_objective
from boltzflow.pilot import pilot
from boltzflow.reference import simulate
from boltzflow.run import Ledger, make_rng, new_seed
from boltzflow.state import State
from boltzflow.systems import AnalyticSystem, SystemFolder, load_system
from boltzflow.targets.target import Target
from boltzflow.training import Trainer, TrainingState, local_device, processes

__all__ = ["cross_log_weights", "path_log_weights", "sample_to_file", "simulate", "train", "training_data"]

logger = logging.getLogger(__name__)

MAX_FAILED_FRACTION = 0.01
OF_STEPS = ("n_steps", "solver", "tolerance", "weights", "perturbation")
"""Keys of `continuous` that say how steps are made along a field."""
SAVE_EVERY = 30.0
"""Seconds between writes of an ensemble that is being sampled."""


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
        CheckpointMismatchError: If the frames have another number or another order of atoms.
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
    differ = other_order(ensemble.topology_json, topology_to_json(system.topology)) if ensemble.topology_json else None
    if differ is not None:
        raise CheckpointMismatchError(
            f"training data: expected atoms in the order of {system.name}, but {differ}; reorder the frames before you "
            "save them (mdtraj: trajectory.atom_slice)."
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
        initial: Checkpoint whose parameters the run starts from: another stage of the same system, or the spline flow
            from which a `continuous_flow` of a molecule starts.
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
        earlier.load_into(generator, partly=earlier.config.generator.family != config.generator.family)
    trainer = Trainer(objective, settings, data=data, metrics=metrics, world=world)
    # what trained the model, as its cost, includes earlier stages and the making of the data
    methods = method_names(
        *config.methods,
        config.training.optimizer,
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

    shared = f", {trainer.n_shards} shards, {world.size} at a time" if trainer.n_shards > 1 else ""
    logger.info("training %s on %s (%s), seed %d%s", system.name, device, settings.dtype, trainer.seed, shared)
    trainer.run(on_checkpoint=write, progress=progress)
    world.wait()
    load_checkpoint(checkpoint_file, system).load_into(generator)
    generator.trained_by = tuple(methods)
    return generator.eval()


def _earlier_stage(path: str | Path, system: SystemFolder, config: RunConfig) -> Checkpoint:
    # a flow for another energy of the same coordinates is a start like any other
    earlier = load_checkpoint(path, None if isinstance(system, AnalyticSystem) else system)
    if earlier.fingerprint != system.fingerprint:
        logger.info("%s was trained for %s", path, earlier.system)
    mine, theirs = config.generator.model_dump(), earlier.config.generator.model_dump()
    if (config.generator.family, earlier.config.generator.family) == ("continuous_flow", "internal_spline_flow"):
        # the one stands before the other
        mine, theirs = ({k: v for k, v in d.items() if k not in ("family", "continuous")} for d in (mine, theirs))
    else:
        # one field serves with any steps
        for one in (mine, theirs):
            one["continuous"] = {k: v for k, v in one["continuous"].items() if k not in OF_STEPS}
    if "continuous" in mine:
        # velocities are the same whatever the number of steps along them
        mine, theirs = (d | {"continuous": d["continuous"] | {"n_steps": None}} for d in (mine, theirs))
    if mine != theirs:
        changed = "; ".join(differences(mine, theirs))
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
        raise CheckpointMismatchError(
            f"{path}: was trained with another configuration ({'; '.join(differences(mine, theirs))}). Resume with the "
            "same one, or start a new folder from it with --initial."
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
    generator: Generator,
    samples: Ensemble,
    target: Target,
    *,
    batch_size: int = 1000,
    seed: int | None = None,
    stream: tuple[int, ...] = (),
) -> Float64[Tensor, " n"]:
    """Trace samples of the target back through a Generator, batch by batch.

    Args:
        generator: Whose paths are wanted.
        samples: Of the target, e.g. a reference by parallel tempering.
        target: Whose energies enter the weights.
        batch_size: Rows per batch.
        seed: For stochastic Transitions; random by default.
        stream: Names the streams of this call among those of the seed.

    Returns:
        log w of every row, (n,), for `boltzflow.analysis.compare` and `summary`.
    """
    seed = new_seed() if seed is None else seed
    rows = samples.to_state(device=generator.device, dtype=generator.dtype)
    found = []
    for batch, first in enumerate(range(0, len(samples), batch_size)):
        rng = make_rng(seed, *stream, batch, device=generator.device)
        trajectory = generator.trace_back(rows.index(slice(first, first + batch_size)), target, rng)
        found.append(trajectory.log_weights.cpu())
    return torch.cat(found)


def cross_log_weights(
    generators: Sequence[Generator],
    ensembles: Sequence[Ensemble],
    target: Target,
    reference: Ensemble | None = None,
    *,
    batch_size: int = 1000,
    seed: int | None = None,
) -> Float64[Tensor, "n_generators n"]:
    """Weigh the samples of several generators, and of a reference, under every one of them.

    Args:
        generators: Of one target.
        ensembles: One of every generator.
        target: Whose energies enter the weights.
        reference: Samples of the target.
        batch_size: Rows per batch.
        seed: For stochastic Transitions; random by default.

    Returns:
        log w of the samples of the ensembles in their order, then of the reference, under every generator, for
        `boltzflow.analysis.combine_protocols`: the recorded one for its own samples, that of a path back for others.
    """
    seed = new_seed() if seed is None else seed
    parts = [*ensembles, *([] if reference is None else [reference])]

    def weighed(k: int, p: int) -> Tensor:
        if k == p:
            return torch.from_numpy(ensembles[k].log_weights)
        return path_log_weights(generators[k], parts[p], target, batch_size=batch_size, seed=seed, stream=(k, p))

    return torch.stack([torch.cat([weighed(k, p) for p in range(len(parts))]) for k in range(len(generators))])
