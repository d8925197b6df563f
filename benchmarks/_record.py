"""Writes a benchmark's results as JSON, with the machine, threads, versions and date that they were measured on."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["best_seconds", "record"]

PACKAGES = ("torch", "openmm", "numpy", "mdtraj", "zuko", "normflows", "nflows")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit, with a plus sign when tracked files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + ("+" if changed.returncode else "")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def record(name: str, results: dict, path: str | Path | None = None) -> Path:
    """Write ``results`` with a header to ``benchmarks/results/<name>.json``.

    Args:
        name: of the benchmark, and of the file.
        results: plain numbers, strings, lists and dicts.
        path: another file to write.

    Returns:
        The file.
    """
    path = Path(path) if path else Path(__file__).parent / "results" / f"{name}.json"
    header = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.platform(),
        },
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "commit": _commit(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(json.dumps({**header, "results": results}, indent=2) + "\n")
    os.replace(temporary, path)
    return path


def best_seconds(function: Callable[[], object], *, repeats: int = 7, synchronise: bool = False) -> float:
    """Return the shortest wall time of ``function()`` after a warm-up call: the time least disturbed by other work."""
    times = []
    for _ in range(repeats + 1):
        if synchronise:
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if synchronise:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
