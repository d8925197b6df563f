"""Compiles matching.cpp on the user's machine and calls it; without a C++ compiler the matching runs eagerly."""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from boltzflow._typing import Float, Int, Tensor
from boltzflow.native import build, share

__all__ = ["MatchingKernel", "library"]


class _Plan(ctypes.Structure):
    """Mirrors Plan in matching.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "dim", "n_groups", "rotate", "reflect", "rounds")),
        *((name, ctypes.c_void_p) for name in ("members", "ends")),
    )


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernel, compiled if this machine has not done so yet; None without a C++ compiler."""
    loaded = build([Path(__file__).with_name("matching.cpp")], "the kernel of matching", "it runs eagerly")
    if loaded is not None:
        loaded.match_rows.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64]
        loaded.match_pairs.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 2
        loaded.match_rows.restype = loaded.match_pairs.restype = None
    return loaded


class MatchingKernel:
    """Orders and distances of matched configurations in 2 or 3 dimensions, on `torch.get_num_threads` threads.

    Args:
        n: Particles.
        dim: 2 or 3.
        permuted: Groups of interchangeable particles.
        rotations: "none", "proper" or "all".
        rounds: Of assignment and rotation.
    """

    def __init__(self, n: int, dim: int, *, permuted: Sequence[Sequence[int]], rotations: str, rounds: int) -> None:
        ends = torch.tensor([len(group) for group in permuted], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        members = torch.tensor([k for group in permuted for k in group], dtype=torch.int32)
        self._tensors = members, ends
        self._scalars = n, dim, len(permuted), rotations != "none", rotations == "all", rounds

    def _plan(self) -> _Plan:
        return _Plan(*self._scalars, *(t.data_ptr() for t in self._tensors))

    def orders(
        self, positions: Float[Tensor, "batch n dim"], reference: Float[Tensor, "batch n dim"]
    ) -> Int[Tensor, "batch n"]:
        """Particle of every row that comes to every place, before the last rotation; in float64."""
        x, y = (t.detach().double().cpu().contiguous() for t in (positions, reference))
        order, plan = torch.empty(x.shape[:2], dtype=torch.int32), ctypes.byref(self._plan())

        def part(start: int, end: int) -> None:
            pointers = (t[start:].data_ptr() for t in (x, y, order))
            library().match_rows(plan, *pointers, end - start)

        share(part, len(x))
        return order.long()

    def distances(
        self, positions: Float[Tensor, "columns n dim"], reference: Float[Tensor, "rows n dim"]
    ) -> Float[Tensor, "rows columns"]:
        """Squared distances that are left of every reference from all positions, by assignments in float32."""
        x, y = (t.detach().float().cpu().contiguous() for t in (positions, reference))
        cost, plan = torch.empty(len(y), len(x)), ctypes.byref(self._plan())

        def part(start: int, end: int) -> None:
            library().match_pairs(
                plan, x.data_ptr(), y[start:].data_ptr(), cost[start:].data_ptr(), len(x), end - start
            )

        share(part, len(y))
        return cost
