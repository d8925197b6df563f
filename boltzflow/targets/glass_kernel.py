"""Compiles glass.cpp on the user's machine and calls it; without a C++ compiler the liquid is evaluated eagerly."""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.native import build, share

__all__ = ["LiquidKernel", "library"]


class _Model(ctypes.Structure):
    """Mirrors Model in glass.cpp, field by field."""

    _fields_ = (
        ("n", ctypes.c_int64),
        ("inverse_square", ctypes.c_void_p),
        ("depth", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in ("length", "cut", "c0", "c2", "c4")),
    )


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernel, compiled if this machine has not done so yet; None without a C++ compiler."""
    sources = [Path(__file__).with_name(name) for name in ("glass.cpp", "tile.h")]
    loaded = build(sources, "the kernel of liquids", "they run eagerly")
    if loaded is not None:
        loaded.liquid_energies.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64]
        loaded.liquid_trials.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int64] * 3
        loaded.liquid_energies.restype = loaded.liquid_trials.restype = None
    return loaded


class LiquidKernel:
    """Energies, forces and Metropolis trials of one liquid, in units of ε, for float64 positions on the CPU.

    Args:
        inverse_square: σ⁻² of every pair of slots, (n, n), float64.
        depth: 4ε, likewise.
        length: Of the box.
        constants: (r/σ)² at the cutoff, C0, C2 and C4.
    """

    def __init__(self, inverse_square: Tensor, depth: Tensor, *, length: float, constants: Sequence[float]) -> None:
        self._tensors = inverse_square.contiguous(), depth.contiguous()
        self._scalars = (length, *constants)

    def _model(self) -> _Model:
        return _Model(len(self._tensors[0]), *(t.data_ptr() for t in self._tensors), *self._scalars)

    def energies(
        self, positions: Float64[Tensor, "batch n 2"], *, with_force: bool
    ) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, "batch n 2"] | None]:
        """Energy and, if wanted, force of every row, on `torch.get_num_threads` threads."""
        x, model = positions.detach().contiguous(), ctypes.byref(self._model())
        energy = torch.empty(len(x), dtype=torch.float64)
        force = torch.empty_like(x) if with_force else None

        def part(start: int, end: int) -> None:
            pull = None if force is None else force[start:].data_ptr()
            library().liquid_energies(model, x[start:].data_ptr(), energy[start:].data_ptr(), pull, end - start)

        share(part, len(x))
        return energy, force

    def trials(
        self,
        positions: Float64[Tensor, "batch n 2"],
        slots: Sequence[tuple[int, ...]],
        shifts: Float64[Tensor, "trials batch 2"] | None,
        log_uniforms: Float64[Tensor, "trials batch"],
        beta: Float64[Tensor, " batch"],
    ) -> tuple[Float64[Tensor, "batch n 2"], Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
        """Trials one after the other; see `TernaryLiquid.particle_trials`."""
        x, model = positions.detach().clone(memory_format=torch.contiguous_format), ctypes.byref(self._model())
        pairs = torch.tensor([(pair[0], pair[-1]) for pair in slots], dtype=torch.int32)
        log_uniforms, beta = log_uniforms.contiguous(), beta.contiguous()
        shifts = None if shifts is None else shifts.contiguous()
        accepted, total = torch.zeros(2, len(x), dtype=torch.float64)

        def part(start: int, end: int) -> None:
            moved = None if shifts is None else shifts[:, start:].data_ptr()
            library().liquid_trials(
                model,
                x[start:].data_ptr(),
                pairs.data_ptr(),
                moved,
                log_uniforms[:, start:].data_ptr(),
                beta[start:].data_ptr(),
                accepted[start:].data_ptr(),
                total[start:].data_ptr(),
                len(pairs),
                end - start,
                len(x),
            )

        share(part, len(x))
        return x, accepted, total
