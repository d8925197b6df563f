"""Checkpoints: the parameters of a Generator with all that rebuilds it, as tensors and plain values only."""

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from boltzflow._typing import Tensor
from boltzflow.errors import CheckpointMismatchError, FormatError, UnknownNameError
from boltzflow.io.atomic import atomic_path
from boltzflow.io.config import RunConfig, parse_config
from boltzflow.io.provenance import package_versions

__all__ = ["Checkpoint", "Identity", "load_checkpoint", "save_checkpoint", "strip_checkpoint"]

FORMAT = "boltzflow-checkpoint"
VERSION = 1
_COST = ("step", "seed", "seconds", "ledger", "data")


@runtime_checkable
class Identity(Protocol):
    """What a checkpoint records of a system."""

    name: str
    temperature: float | None

    @property
    def fingerprint(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        config: The run that trained it; `config.generator` rebuilds the Generator.
        system: Name of the system.
        fingerprint: `System.fingerprint` of the system.
        temperature: In K, of the target it was trained for; None of an analytic one.
        parameters: State dict of the Generator.
        averaged: Moving average of the parameters by name; empty if none was kept.
        training: Plain state from which a run continues; None if it was stripped.
        cost: step, seed, seconds and ledger of the training and the digests of its data, which also a stripped
            checkpoint has.
        versions: Of Python and the packages that matter, at the time of writing.
        methods: What trained it, earlier stages and the making of its data included, by the names that
            `boltzflow.cite` knows; of files that do not record it, what the configuration says.
    """

    config: RunConfig
    system: str
    fingerprint: str
    temperature: float | None
    parameters: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    methods: tuple[str, ...] = ()

    def load_into(self, generator: torch.nn.Module, *, averaged: bool = True, partly: bool = False) -> None:
        """Copy the parameters into a Generator that was built from `config.generator`.

        Args:
            generator: Receives the parameters; its dtype and device stay.
            averaged: Whether to use the moving average where there is one.
            partly: Whether the Generator may have further parameters, which stay.

        Raises:
            CheckpointMismatchError: If names or shapes differ.
        """
        values = {**self.parameters, **(self.averaged if averaged else {})}
        if partly:
            values = {**generator.state_dict(), **values}
        try:
            generator.load_state_dict(values)
        except RuntimeError as error:
            raise CheckpointMismatchError(
                f"checkpoint of {self.system}: its parameters do not fit the Generator that its configuration builds "
                f"({_first_lines(error)}). It was written by boltzflow {self.versions.get('boltzflow')}; train it "
                "again or install that version."
            ) from None


def save_checkpoint(
    path: str | os.PathLike,
    *,
    generator: torch.nn.Module,
    system: Identity,
    config: RunConfig,
    averaged: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
    methods: Sequence[str] = (),
) -> None:
    """Write a checkpoint atomically: a kill or a full disk leaves the previous file.

    Args:
        path: The file.
        generator: Whose state dict is stored.
        system: What it samples.
        config: The run; it must rebuild the Generator.
        averaged: Moving average of the parameters by name.
        training: Tensors and plain values from which the run continues.
        methods: What trained it, by the names that `boltzflow.cite` knows.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "system": {"name": system.name, "fingerprint": system.fingerprint, "temperature": system.temperature},
        "config": config.model_dump(mode="json"),
        "parameters": {name: value.detach().cpu() for name, value in generator.state_dict().items()},
        "averaged": {name: value.detach().cpu() for name, value in (averaged or {}).items()},
        "training": training,
        "cost": {key: training[key] for key in _COST if key in training} if training else {},
        "versions": package_versions(),
        "methods": list(methods),
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: str | os.PathLike, system: Identity | None = None) -> Checkpoint:
    """Read and check a checkpoint; nothing in the file is executed.

    Args:
        path: The file.
        system: If given, the checkpoint must have been trained for it; the temperature may differ.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointMismatchError: If it is damaged, from a newer version, for another system, or holds NaN or inf.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file.")
    content = _read(path)
    if content["version"] > VERSION:
        raise CheckpointMismatchError(
            f"checkpoint {path}: format version {content['version']}, this boltzflow reads up to {VERSION}. "
            f"It was written by boltzflow {content.get('versions', {}).get('boltzflow')}; upgrade to that version."
        )
    try:
        made_for = content["system"]
        config = parse_config(content["config"], origin=f"configuration inside checkpoint {path}")
        checkpoint = Checkpoint(
            config=config,
            system=made_for["name"],
            fingerprint=made_for["fingerprint"],
            temperature=made_for["temperature"],
            parameters=content["parameters"],
            averaged=content["averaged"],
            training=content["training"],
            cost=content.get("cost", {}),
            versions=content["versions"],
            methods=tuple(content.get("methods", config.methods)),
        )
    except KeyError as error:
        # UnknownNameError is a KeyError, too
        what = str(error) if isinstance(error, UnknownNameError) else f"entry {error} is missing; the file is damaged"
        raise CheckpointMismatchError(f"checkpoint {path}: {what}.") from None
    except FormatError as error:
        raise CheckpointMismatchError(str(error)) from None
    _require_finite(checkpoint, path)
    if system is not None and checkpoint.fingerprint != system.fingerprint:
        raise CheckpointMismatchError(
            f"checkpoint {path}: trained for system {checkpoint.system!r} with fingerprint "
            f"{checkpoint.fingerprint[:16]}, but system {system.name!r} has fingerprint {system.fingerprint[:16]}. "
            "Load the system it belongs to, or train a new one."
        )
    return checkpoint


def strip_checkpoint(source: str | os.PathLike, destination: str | os.PathLike) -> None:
    """Write a checkpoint for use: the averaged parameters, without the state that only a continued training needs.

    Args:
        source: Checkpoint of a run; it is checked as by `load_checkpoint`.
        destination: File to write, atomically.
    """
    checkpoint = load_checkpoint(source)
    content = _read(Path(source))
    content["parameters"] = {**checkpoint.parameters, **checkpoint.averaged}
    with atomic_path(destination) as temporary:
        torch.save({**content, "averaged": {}, "training": None}, temporary)


def _read(path: Path) -> dict[str, Any]:
    damaged = CheckpointMismatchError(
        f"checkpoint {path}: damaged, or not a checkpoint of boltzflow. Use an earlier copy, or train again."
    )
    try:
        # torch does not verify the checksums that it writes
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        content = None if broken else torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise damaged from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("version"), int):
        raise damaged
    return content


def _require_finite(checkpoint: Checkpoint, path: Path) -> None:
    for group, tensors in (("parameters", checkpoint.parameters), ("averaged parameters", checkpoint.averaged)):
        bad = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
        if bad:
            raise CheckpointMismatchError(
                f"checkpoint {path}: NaN or inf in the {group} {', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''} "
                f"({len(bad)} of {len(tensors)} tensors). Use an earlier copy, or train with a lower learning rate."
            )


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[1:3] or lines)[:300]
