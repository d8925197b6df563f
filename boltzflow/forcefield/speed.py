"""Conformations per second of every way to evaluate a System on this machine."""

import copy
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.kernel import Kernel
from boltzflow.forcefield.openmm_bridge import OpenMMPotential
from boltzflow.forcefield.registry import from_openmm

__all__ = ["Speed", "speeds"]

BATCHES = (1, 32, 256, 1024, 16384)
BUDGET = 0.3
"""Seconds for one batch size of one back-end."""

_DIFFERENT = 64
"""Conformations that differ, repeated in larger batches."""

_MOST_PAIRS = {
    "eager": 1_000_000,
    "compiled + eager": 1_000_000,
    "eager cuda": 10_000_000,
    "triton + eager": 10_000_000,
}
"""Distances at once, for each of which eager torch keeps some tens of numbers: more is slower on a CPU."""


@dataclass(frozen=True)
class Speed:
    """Throughput of energies with forces.

    Args:
        backend: "compiled", "compiled + eager" where the kernel lacks a force, "eager", on a GPU "triton",
            "triton + eager" and "eager cuda", or "OpenMM" and the platform.
        dtype: of the arithmetic; that of OpenMM's CPU platform is mixed.
        batch: conformations in one call.
        seconds: per conformation, the median of the calls.
    """

    backend: str
    dtype: str
    batch: int
    seconds: float

    @property
    def conformations_per_second(self) -> float:
        """The inverse of ``seconds``."""
        return 1 / self.seconds


def speeds(
    system: Any, positions: Float[Tensor, "n_atoms 3"], *, batches: tuple[int, ...] = BATCHES
) -> tuple[Speed, ...]:
    """Measure energies with forces by each back-end, on one thread of the CPU, and by torch on a GPU.

    Args:
        system: the ``openmm.System``.
        positions: about which the conformations are, nm.
        batches: conformations in one call, ascending; larger ones are left out once a call takes half a second, and
            for eager torch where they would need much memory. OpenMM evaluates one at a time in any case.

    Returns:
        Back-end by back-end; those of torch are missing where there is a force that it does not know.
    """
    import openmm

    noise = torch.randn(_DIFFERENT, *positions.shape, generator=torch.Generator().manual_seed(1))
    x = positions.detach().cpu().double() + 0.002 * noise
    platforms = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
    found: list[Speed] = []
    with _one_thread():
        for name, dtype, potential in _torch_backends(system):
            most = max(1.0, _MOST_PAIRS.get(name, math.inf) / (len(positions) ** 2 / 2))
            fitting = [batch for batch in batches if batch <= most]
            found += _measure(name, potential, x.to(dtype), fitting)
        for platform in platforms:
            with OpenMMPotential(system, platform=platform) as potential:
                found += _measure(f"OpenMM {platform}", potential, x, [b for b in batches if b <= 32])
    return tuple(found)


def _torch_backends(system: Any) -> Iterator[tuple[str, torch.dtype, torch.nn.Module]]:
    try:
        converted = from_openmm(system)
    except UnsupportedForceError:
        return
    mixed = " + eager" if Kernel(converted).rest is not None else ""
    for dtype in (torch.float64, torch.float32):
        forcefield = copy.deepcopy(converted).to(dtype)
        if (compiled := forcefield.compiled()).backend == "compiled":
            yield f"compiled{mixed}", dtype, compiled
        yield "eager", dtype, forcefield
        if torch.cuda.is_available():
            on_gpu = copy.deepcopy(forcefield).to("cuda")
            if (compiled := on_gpu.compiled()).backend == "triton":
                yield f"triton{mixed}", dtype, compiled
            yield "eager cuda", dtype, on_gpu


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(name: str, potential: torch.nn.Module, x: Tensor, batches: list[int]) -> list[Speed]:
    found = []
    device = torch.device("cpu") if isinstance(potential, OpenMMPotential) else potential.device
    for batch in batches:
        part = x[torch.arange(batch) % _DIFFERENT].to(device)
        potential.energy_and_force(part[:1])  # packs parameters, makes Contexts
        seconds: list[float] = []
        while len(seconds) < 3 or sum(seconds) < BUDGET:
            began = time.perf_counter()
            potential.energy_and_force(part)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
            if sum(seconds) > 5 * BUDGET:
                break
        median = statistics.median(seconds)
        found.append(Speed(name, str(x.dtype).removeprefix("torch."), batch, median / batch))
        if median > 0.5:
            break
    return found
