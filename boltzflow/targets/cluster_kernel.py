"""Compiles cluster.cpp on the user's machine and calls it; without a C++ compiler clusters are evaluated eagerly."""

import ctypes
import functools
from pathlib import Path

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.native import build, share

__all__ = ["cluster_energies", "library"]


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernel, compiled if this machine has not done so yet; None without a C++ compiler."""
    sources = [Path(__file__).with_name(name) for name in ("cluster.cpp", "tile.h")]
    loaded = build(sources, "the kernel of clusters", "they run eagerly")
    if loaded is not None:
        loaded.cluster_energies.argtypes = (
            [ctypes.c_int64] * 2 + [ctypes.c_double] * 3 + [ctypes.c_void_p] * 3 + [ctypes.c_int64]
        )
        loaded.cluster_energies.restype = None
    return loaded


def cluster_energies(
    positions: Float[Tensor, "batch n dim"], *, depth: float, r_min: float, spring: float, with_force: bool
) -> tuple[Float64[Tensor, " batch"], Float[Tensor, "batch n dim"] | None]:
    """Energy and, if wanted, force of every row, in float64, on `torch.get_num_threads` threads.

    Args:
        positions: Float32 or float64 on the CPU, of one to three dimensions; forces have their dtype.
        depth: Of the well of a pair.
        r_min: Distance of its minimum.
        spring: Between all pairs.
        with_force: Whether forces are wanted.
    """
    x = positions.detach().double().contiguous()
    batch, n, dim = x.shape
    energy = torch.empty(batch, dtype=torch.float64)
    force = torch.empty_like(x) if with_force else None

    def part(start: int, end: int) -> None:
        pull = None if force is None else force[start:].data_ptr()
        library().cluster_energies(
            n, dim, depth, r_min**2, spring, x[start:].data_ptr(), energy[start:].data_ptr(), pull, end - start
        )

    share(part, batch)
    return energy, None if force is None else force.to(positions.dtype)
