"""What several subcommands share: devices, output files, and finding the checkpoint behind a name."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer

from boltzflow.errors import FormatError, UnknownNameError
from boltzflow.io.checkpoint import Checkpoint, load_checkpoint
from boltzflow.io.config import load_config
from boltzflow.io.provenance import file_sha256
from boltzflow.pilot import finished_pilot
from boltzflow.systems import SystemFolder, list_systems, load_system
from boltzflow.transitions.compiled import uncompiled
from boltzflow.transitions.transition import BatchStep
from boltzflow.workflow import path_log_weights, train

if TYPE_CHECKING:
    from boltzflow._typing import Tensor
    from boltzflow.ensemble import Ensemble

__all__ = [
    "ReferenceRows",
    "Trained",
    "as_device",
    "as_seed",
    "checkpoint_of",
    "describe_device",
    "find_trained",
    "is_shipped",
    "output_file",
    "paths_of",
    "positive",
    "reference_of",
    "run_folder",
    "system_of",
]

logger = logging.getLogger(__name__)

ReferenceRows = Annotated[
    int | None, typer.Option(min=1, help="Rows of the reference to compare with, each of them traced back. (all)")
]

FEW_ROWS = 50_000
"""Fewer than these are traced back before a kernel is compiled."""


@dataclass(frozen=True)
class Trained:
    """A system with a trained checkpoint of it."""

    system: SystemFolder
    checkpoint: Checkpoint
    path: Path


def as_device(name: str) -> torch.device:
    """A torch device that can be used here.

    Raises:
        ValueError: If there is none of that name; the message names those that there are.
    """
    available = ["cpu"] + [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        available.append("mps")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    wanted = None if device is None else f"cuda:{device.index or 0}" if device.type == "cuda" else device.type
    if device is None or wanted not in available:
        raise ValueError(f"--device {name}: not available here; available: {', '.join(available)}.")
    return device


def describe_device(device: torch.device) -> str:
    """The device in words, as runs print it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})"


def positive(option: str, value: int) -> int:
    """The value of an option that must be at least 1."""
    if value < 1:
        raise FormatError(f"{option}: expected a number >= 1, got {value}.")
    return value


def as_seed(value: int | None) -> int | None:
    """The value of --seed, which must not be negative."""
    if value is not None and value < 0:
        raise FormatError(f"--seed: expected a number >= 0, got {value}.")
    return value


def output_file(path: Path) -> Path:
    """The path, if a file can be written there: found out before the work, not after."""
    if path.is_dir():
        raise FormatError(f"output {path}: is a folder; name a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def find_trained(name: str, *, recipe: str | None = None) -> Trained:
    """Find the system and the checkpoint that a name on the command line means.

    The pilot of an annealed family is run here if it was not yet: it trains nothing and takes seconds.

    Args:
        name: A system, with "@T" for another temperature; a run folder; or the YAML file of a run.
        recipe: For a system, the recipe whose shipped checkpoint is meant.

    Raises:
        UnknownNameError: If it is none of these.
        FileNotFoundError: If the run has no checkpoint yet.
    """
    folder = _piloted(name, recipe)
    if folder is not None:
        recipe = None
    folder = run_folder(Path(name)) if folder is None else folder
    if folder == Path(name) and not any((folder / file).is_file() for file in ("run.json", "checkpoint.pt")):
        system = load_system(name)
        if recipe is None and system.checkpoint_path is None:
            piloted = [other for other in system.recipes if system.recipe(other).generator.is_piloted]
            if piloted:
                raise FileNotFoundError(
                    f"system {system.name}: has no trained checkpoint, and needs none: name a recipe, as in `boltzflow "
                    f"sample {name} --recipe {piloted[-1]}`. Its recipes are {', '.join(system.recipes)}."
                )
        path = system.find_checkpoint(recipe)
        return Trained(system, load_checkpoint(path, system), path)
    if recipe is not None:
        raise UnknownNameError(f"--recipe {recipe}: {name} is a run, which has no other recipes; leave --recipe out.")
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise FileNotFoundError(f"run {folder}: no checkpoint.pt yet; `boltzflow train` writes it.")
    checkpoint = load_checkpoint(path)
    system = load_system(checkpoint.config.system)
    return Trained(system, load_checkpoint(path, system), path)


def _piloted(name: str, recipe: str | None) -> Path | None:
    """The run folder of an annealed family, whose pilot is run if it was not yet; None for anything else."""
    run = Path(name)
    if run.suffix in {".yaml", ".yml"}:
        config, folder = load_config(run), run_folder(run)
    elif recipe is not None and not run.is_file() and not (run / "run.json").is_file():
        system = load_system(name)
        if (system.data_folder / f"checkpoint-{recipe}.pt").is_file():
            return None
        config, folder = system.recipe(recipe), Path("runs", f"{system.name}-{recipe}")
    else:
        return None
    if not config.generator.is_piloted:
        return None
    if not finished_pilot(config, folder):
        logger.info("%s: no pilot yet, it is run now", folder)
        train(config, folder)
    return folder


def run_folder(run: Path) -> Path:
    """The folder in which a run works: the folder itself, or runs/RUN for RUN.yaml.

    For a recipe in the folder of a user's system it is runs/SYSTEM-RUN: the recipes of all systems have the same names.
    """
    if run.suffix not in {".yaml", ".yml"}:
        return run
    folder = run.resolve().parent
    if folder.name == "recipes" and (folder.parent / "system.yaml").is_file():
        system = load_system(folder.parent)
        if not is_shipped(system):
            return Path("runs", f"{folder.parent.name}-{run.stem}")
    return Path("runs", run.stem)


def is_shipped(system: SystemFolder) -> bool:
    """Whether a system comes with the package, rather than from a folder of the user."""
    return system.folder.name in list_systems() and load_system(system.folder.name).folder == system.folder


def checkpoint_of(ensemble: "Ensemble", system: SystemFolder) -> Path | None:
    """The checkpoint that made an ensemble, if it is still where it was or is the one that ships; else None."""
    recorded = ensemble.provenance.extra
    for path in (recorded.get("checkpoint"), system.checkpoint_path):
        if path is not None and Path(path).is_file() and file_sha256(path) == recorded.get("checkpoint_sha256"):
            return Path(path)
    return None


def system_of(ensemble: "Ensemble") -> SystemFolder | None:
    """The system that an ensemble was made of, if it is known here."""
    try:
        return load_system(ensemble.provenance.extra.get("source", ensemble.target))
    except (UnknownNameError, FormatError):
        return None


def reference_of(
    ensemble: "Ensemble", system: SystemFolder | None, file: Path | None, rows: int | None
) -> "Ensemble | None":
    """The reference ensemble of a file, else the one that comes with the system if it is of the same target.

    Args:
        ensemble: What is to be compared.
        system: Of the ensemble.
        file: The reference; None for what ships.
        rows: Only so many of its rows, drawn at random without replacement, always the same ones; None for all.
    """
    from boltzflow.ensemble import Ensemble

    if file is not None:
        found = Ensemble.load(file)
    else:
        found = None if system is None else system.reference()
        if found is None or found.target != ensemble.target:
            logger.info("no reference ensemble ships for %s", ensemble.target)
            return None
    if rows is None or rows >= len(found):
        return found
    logger.info("compared with %d of the %d rows of the reference", rows, len(found))
    return found.select(np.sort(np.random.default_rng(0).choice(len(found), rows, replace=False)))


def paths_of(ensemble: "Ensemble", reference: "Ensemble", system: SystemFolder | None) -> "Tensor":
    """Log-weights of a reference traced back through the generator that made the ensemble.

    Raises:
        FormatError: If the system or the checkpoint is not here any more.
    """
    path = None if system is None else checkpoint_of(ensemble, system)
    if path is None:
        if system is None:
            missing = f"the system {ensemble.target!r} of the ensemble is not known here"
        else:
            missing = "the checkpoint that made the ensemble is not there any more"
        raise FormatError(f"the reference cannot be traced back through the generator: {missing}.")
    generator = system.load_generator(checkpoint=path)
    if any(isinstance(step, BatchStep) for step in generator.transitions):
        raise FormatError("the reference cannot be traced back through the generator: it resamples its populations.")
    logger.info("tracing %d rows of the reference back through the generator", len(reference))
    with uncompiled() if len(reference) < FEW_ROWS else nullcontext():
        return path_log_weights(generator, reference, system.target)
