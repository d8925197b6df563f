"""Run folders: run.yaml, checkpoint.pt and metrics.jsonl of one training run, which can be killed and resumed."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import yaml

from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError, FormatError
from boltzflow.generators.families import build_generator
from boltzflow.generators.generator import Generator
from boltzflow.io.atomic import atomic_path, write_text
from boltzflow.io.checkpoint import Identity, load_checkpoint, save_checkpoint
from boltzflow.io.config import RunConfig, load_config
from boltzflow.objectives.build import build_objective
from boltzflow.run import Ledger, new_seed
from boltzflow.state import State
from boltzflow.training.trainer import Trainer, TrainingState

__all__ = ["train", "training_data"]

logger = logging.getLogger(__name__)

# What may change between a run and its continuation: none of it enters the result.
_FREE = {"training": {"device", "threads", "checkpoint_every", "log_every"}, "sampling": None, "analysis": None}


@runtime_checkable
class Trainable(Identity, Protocol):
    """What training needs of a system."""

    target: Any
    sector: Any

    def reference(self) -> Ensemble | None: ...  # noqa: D102


def train(
    system: Trainable, config: RunConfig, folder: Path, *, resume: bool = False, progress: bool | None = None
) -> Generator:
    """Train a Generator in a run folder.

    Args:
        system: What is sampled.
        config: The run.
        folder: Made if need be. It holds run.yaml (with the seed that was used), checkpoint.pt and metrics.jsonl.
        resume: Continue from checkpoint.pt, or begin where there is none yet.
        progress: Whether to show a bar; by default only on a terminal.

    Returns:
        The Generator with the averaged parameters, in evaluation mode.

    Raises:
        FileExistsError: If the folder holds a run and `resume` is False.
        CheckpointMismatchError: If the folder holds another run; the keys that differ are named.
        ValueError: If the objective needs training data and there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = _settle(config, folder, resume=resume)
    training = config.training
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    device, dtype = torch.device(training.device), getattr(torch, training.dtype)
    with torch.random.fork_rng(devices=[]):
        # parameters start from the seed of the run, so that a run killed before its first checkpoint is no exception
        torch.manual_seed(training.seed)
        generator = build_generator(system, config.generator, dtype=dtype, device=device)
    objective = build_objective(generator, system.target.to(device), config.objective)
    data, spent = training_data(system, config) if objective.needs_data else (None, Ledger())
    trainer = Trainer(
        objective,
        training,
        data=None if data is None else data.to(device=device, dtype=dtype),
        metrics=folder / "metrics.jsonl",
    )
    trainer.ledger.merge(spent)
    checkpoint = folder / "checkpoint.pt"
    if resume and checkpoint.is_file():
        _restore(trainer, checkpoint, system, folder / "metrics.jsonl")

    def save(trainer: Trainer) -> None:
        save_checkpoint(
            checkpoint,
            generator=generator,
            system=system,
            config=config,
            averaged=trainer.ema.shadow,
            training=asdict(trainer.state()),
        )

    trainer.run(on_checkpoint=save, progress=progress)
    load_checkpoint(checkpoint, system).load_into(generator)
    return generator.eval()


def training_data(system: Trainable, config: RunConfig) -> tuple[State | None, Ledger]:
    """Frames to train on, brought into the target's sector, and the evaluations that they cost.

    Args:
        system: Whose sector and reference ensemble are used.
        config: Names the ensemble file; by default it is the reference that ships with the system.

    Returns:
        The frames with equal weights (a weighted ensemble is resampled), or None if there is no ensemble.

    Raises:
        FormatError: If no frame lies in the sector.
    """
    path = config.objective.data
    ensemble = system.reference() if path is None else Ensemble.load(path)
    if ensemble is None:
        return None, Ledger()
    if np.ptp(ensemble.log_weights) > 0:
        ensemble = ensemble.resample(len(ensemble), seed=config.training.seed)
    positions, n_relabelled = system.sector.relabel(torch.from_numpy(ensemble.samples["positions"]).double())
    inside = system.sector.contains(positions)
    if not bool(inside.any()):
        raise FormatError(
            f"training data {path or 'reference'}: none of {len(inside)} frames is in the sector of {system.name} "
            "(handedness of stereo-centres); the frames belong to another molecule or to its mirror image."
        )
    logger.info(
        "training data: %d frames, %d relabelled, %d outside the sector dropped",
        int(inside.sum()),
        n_relabelled,
        int((~inside).sum()),
    )
    spent = Ledger()
    ledger = ensemble.provenance.ledger
    spent.energies.update(ledger.get("energy", {}))
    spent.forces.update(ledger.get("force", {}))
    return system.target.state(positions[inside]), spent


def _settle(config: RunConfig, folder: Path, *, resume: bool) -> RunConfig:
    """Fix the seed and write run.yaml; or, when resuming, compare with the run.yaml that is there."""
    path = folder / "run.yaml"
    if path.is_file():
        if not resume:
            raise FileExistsError(
                f"run folder {folder}: holds a run already. Continue it with --resume, or name another folder."
            )
        previous = load_config(path)
        if config.training.seed is None:
            config = config.model_copy(
                update={"training": config.training.model_copy(update={"seed": previous.training.seed})}
            )
        differing = _differences(previous, config)
        if differing:
            raise CheckpointMismatchError(
                f"run folder {folder}: was started with other settings ({'; '.join(differing)}). "
                "Resume with the same settings, or start in another folder."
            )
        return config
    if (folder / "checkpoint.pt").is_file():
        raise CheckpointMismatchError(f"run folder {folder}: has a checkpoint.pt but no run.yaml; restore it.")
    seed = new_seed() if config.training.seed is None else config.training.seed
    config = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return config


def _differences(previous: RunConfig, config: RunConfig) -> list[str]:
    before, now = previous.model_dump(mode="json"), config.model_dump(mode="json")
    found = [f"system: {before['system']!r} before, {now['system']!r} now"] if before["system"] != now["system"] else []
    for section, values in now.items():
        if not isinstance(values, dict) or _FREE.get(section, set()) is None:
            continue
        for key, value in values.items():
            if key not in _FREE.get(section, set()) and value != before[section][key]:
                found.append(f"{section}.{key}: {before[section][key]!r} before, {value!r} now")
    return found


def _restore(trainer: Trainer, path: Path, system: Identity, metrics: Path) -> None:
    checkpoint = load_checkpoint(path, system)
    if checkpoint.training is None:
        raise CheckpointMismatchError(
            f"checkpoint {path}: holds no training state, so there is nothing to resume from."
        )
    checkpoint.load_into(trainer.objective.generator, averaged=False)
    trainer.load_state(TrainingState(**checkpoint.training))
    logger.info("resuming at step %d of %d", trainer.step, trainer.config.steps)
    if metrics.is_file():
        # lines after the checkpoint will be written again
        lines = metrics.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step(line) <= trainer.step]
        with atomic_path(metrics) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        # the line that was being written when the run was killed
        return float("inf")
