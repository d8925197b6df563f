"""Runs from a configuration: what the command line does, callable from Python."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch

from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError
from boltzflow.generators.families import build_generator
from boltzflow.generators.generator import Generator
from boltzflow.io.atomic import atomic_path
from boltzflow.io.checkpoint import load_checkpoint, save_checkpoint
from boltzflow.io.config import RunConfig
from boltzflow.objectives import build_objective
from boltzflow.state import State
from boltzflow.systems import System, load_system
from boltzflow.training import Trainer, TrainingState

__all__ = ["train", "training_data"]

logger = logging.getLogger(__name__)


def training_data(ensemble: Ensemble, system: System, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> State:
    """Rows of an unweighted ensemble as training data: relabelled into the system's sector, the rest counted and left out.

    Args:
        ensemble: Frames of the system, e.g. from `boltzflow simulate`.
        system: Its `sector` says which labelling the model covers.
        dtype: Of the returned State.
        device: Of the returned State.

    Raises:
        CheckpointMismatchError: If the frames are not of this system's size.
        ValueError: If no frame lies in the sector.
    """
    state = ensemble.to_state(device=device, dtype=dtype)
    positions = state["positions"]
    if positions.shape[1] != system.n_atoms:
        raise CheckpointMismatchError(
            f"training data: expected {system.n_atoms} atoms of {system.name}, got {positions.shape[1]}; these frames are of another system."
        )
    positions, n_relabelled = system.sector.relabel(positions)
    inside = system.sector.contains(positions)
    if not bool(inside.any()):
        raise ValueError(f"training data: none of {len(inside)} frames lies in the sector of {system.name} ({system.target.sector_description}).")
    logger.info("training data: %d frames, %d relabelled, %d outside the sector left out", len(inside), int(n_relabelled), int((~inside).sum()))
    return State({"positions": positions[inside]}, system.target.fields)


def train(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    initial: str | Path | None = None,
    progress: bool | None = None,
) -> Generator:
    """Train a Generator in a run folder: `run.json`, `checkpoint.pt`, `metrics.jsonl`.

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
        CheckpointMismatchError: If the checkpoint belongs to another configuration or system.
    """
    folder = Path(folder)
    checkpoint_file = folder / "checkpoint.pt"
    if checkpoint_file.exists() and not resume:
        raise FileExistsError(f"{folder} holds a run already; continue it with --resume, or name another folder.")
    settings = config.training
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    dtype = getattr(torch, settings.dtype)
    system = load_system(config.system, dtype=dtype)
    generator = build_generator(system, config.generator, dtype=dtype, device=settings.device)
    target = system.target.to(settings.device)
    objective = build_objective(generator, target, config.objective)
    data = None
    if objective.needs_data:
        ensemble = Ensemble.load(config.objective.data) if config.objective.data else system.reference()
        if ensemble is not None:
            data = training_data(ensemble, system, dtype=dtype, device=settings.device)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "metrics.jsonl"
    if initial is not None and not checkpoint_file.exists():
        load_checkpoint(initial, system).load_into(generator)
    trainer = Trainer(objective, settings, data=data, metrics=metrics)
    if resume and checkpoint_file.exists():
        _restore(trainer, checkpoint_file, system, config)
        _drop_lines_after(metrics, trainer.step)
    else:
        with atomic_path(folder / "run.json") as temporary:
            Path(temporary).write_text(config.model_dump_json(indent=2), encoding="utf-8")

    def write(trainer: Trainer) -> None:
        save_checkpoint(
            checkpoint_file,
            generator=generator,
            system=system,
            config=config,
            averaged=trainer.ema.shadow,
            training=asdict(trainer.state()),
        )

    logger.info("training %s on %s (%s), seed %d", system.name, settings.device, settings.dtype, trainer.seed)
    trainer.run(on_checkpoint=write, progress=progress)
    load_checkpoint(checkpoint_file, system).load_into(generator)
    return generator.eval()


def _restore(trainer: Trainer, path: Path, system: System, config: RunConfig) -> None:
    checkpoint = load_checkpoint(path, system)
    # More steps may be asked for than the run had; everything else must be the same to give the unbroken run's result.
    mine, theirs = (c.model_dump(exclude={"training": {"steps", "threads"}, "sampling": True, "analysis": True}) for c in (config, checkpoint.config))
    if mine != theirs:
        changed = sorted(k for k in mine if mine[k] != theirs[k])
        raise CheckpointMismatchError(
            f"{path}: was trained with another configuration (section {', '.join(changed)} differs). Resume with the same one, or start a "
            "new folder from it with --initial."
        )
    if checkpoint.training is None:
        raise CheckpointMismatchError(f"{path}: holds no training state (it was stripped); start a new folder from it with --initial.")
    checkpoint.load_into(trainer.objective.generator, averaged=False)
    trainer.load_state(TrainingState(**checkpoint.training))


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
