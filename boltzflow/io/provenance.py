"""Provenance: where numbers came from and what they cost."""

import datetime
import functools
import hashlib
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["Provenance", "file_sha256", "method_names", "package_versions"]

PACKAGES = ("boltzflow", "torch", "openmm", "mdtraj", "numpy")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on; those that are not installed are left out."""
    return dict(_installed())


@functools.cache
def _installed() -> dict[str, str]:
    # reading the metadata takes milliseconds, which would count at every shard
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def method_names(*parts: Any) -> list[str]:
    """Names under which `boltzflow.cite` looks up what was used, each once, in the order of first use.

    Args:
        *parts: Names; objects with `methods` (a Generator, a MoleculeTarget, a term), which give those; any other
            object gives the name of its class.
    """
    names: list[str] = []
    for part in parts:
        names += [part] if isinstance(part, str) else getattr(part, "methods", (type(part).__name__,))
    return list(dict.fromkeys(names))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _command() -> str:
    return shlex.join(sys.argv)


@dataclass(frozen=True)
class Provenance:
    """How an ensemble was made.

    Args:
        seed: Seed of the random streams; of merged ensembles the list of theirs.
        device: Where it was computed, e.g. "cpu" or "cuda (NVIDIA H200)".
        dtype: Of the states, e.g. "float32".
        ledger: Evaluations by Target as `Ledger.as_dict()` gives them.
        seconds: Wall-clock time; summed by merge.
        n_nonfinite: Rows with a non-finite energy (weight zero).
        n_failed: Rows in which the model failed (weight zero, which biases).
        interrupted: Whether sampling was stopped before all rows were made.
        methods: What was used, by the names that `boltzflow.cite` knows; see `method_names`.
        command: Command line; this process's by default.
        created: ISO time; now by default.
        versions: Of Python and packages; the present ones by default.
        extra: Anything JSON can hold, e.g. {"system": …, "checkpoint": …, "round_trip_error": …}.
    """

    seed: int | list[int] | None = None
    device: str = "cpu"
    dtype: str = ""
    ledger: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: float = 0.0
    n_nonfinite: int = 0
    n_failed: int = 0
    interrupted: bool = False
    methods: list[str] = field(default_factory=list)
    command: str = field(default_factory=_command)
    created: str = field(default_factory=_now)
    versions: dict[str, str] = field(default_factory=package_versions)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def n_energy(self) -> int:
        """Energy evaluations over all Targets."""
        return sum(self.ledger.get("energy", {}).values())

    @property
    def n_force(self) -> int:
        """Force evaluations over all Targets."""
        return sum(self.ledger.get("force", {}).values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Provenance":
        """From `as_dict`; keys of later versions go to `extra`."""
        known = {f.name for f in fields(cls)}
        extra = {**values.get("extra", {}), **{k: v for k, v in values.items() if k not in known}}
        return cls(**{k: v for k, v in values.items() if k in known and k != "extra"}, extra=extra)

    @classmethod
    def merged(cls, parts: Sequence["Provenance"]) -> "Provenance":
        """Costs and counts added, what is a list joined, devices and methods each once; the rest of the first."""
        first = parts[0]
        names = ("populations", "log_q_errors")
        lists = {name: [one for part in parts for one in part.extra.get(name, ())] for name in names}
        ledger: dict[str, dict[str, int]] = {}
        for part in parts:
            for kind, counts in part.ledger.items():
                for name, count in counts.items():
                    ledger.setdefault(kind, {})[name] = ledger.get(kind, {}).get(name, 0) + count
        seeds = [s for p in parts for s in (p.seed if isinstance(p.seed, list) else [p.seed]) if s is not None]
        distinct = list(dict.fromkeys(seeds))
        return cls(
            seed=distinct[0] if len(distinct) == 1 else distinct or None,
            device=", ".join(dict.fromkeys(p.device for p in parts)),
            dtype=", ".join(dict.fromkeys(p.dtype for p in parts)),
            ledger=ledger,
            seconds=sum(p.seconds for p in parts),
            n_nonfinite=sum(p.n_nonfinite for p in parts),
            n_failed=sum(p.n_failed for p in parts),
            interrupted=any(p.interrupted for p in parts),
            methods=method_names(*parts),
            versions=first.versions,
            extra=first.extra | {name: values for name, values in lists.items() if values},
        )
