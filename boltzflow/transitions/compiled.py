"""Kernels compiled by torch.compile, with their eager twins where there is no working compiler."""

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import no_type_check

import torch

from boltzflow._typing import Tensor

__all__ = ["attempt", "compiler", "run_elementwise", "uncompiled"]

_logger = logging.getLogger(__name__)


def run_elementwise(kernel: Callable, constants: tuple, rows: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Run an elementwise kernel over one flat axis, compiled if possible.

    Args:
        kernel: Function of (rows, *tensors, *constants) with two results, of the shapes (dims, batch) and (dims, batch)
            or (n, dims, batch); nothing in it may depend on the values of the tensors or draw noise.
        constants: Plain numbers; every set of them is compiled for itself.
        rows: Shape (n, dims, batch).
        *tensors: Broadcast to (dims, batch).

    Returns:
        The two results, without autograd history when compiled.
    """
    if compiler.off:
        return kernel(rows, *tensors, *constants)
    # With masks broadcast over the batch inductor makes several loops with temporaries between them, six times slower.
    # `.data`: a detached tensor is still a view of its origin, whose history dynamo would look at and guard on.
    shape = rows.shape[1:]
    flat = [rows.data.flatten(1), *[tensor.data.expand(shape).reshape(-1) for tensor in tensors]]
    results = attempt(kernel, constants, flat)
    if results is None:
        return kernel(rows, *tensors, *constants)
    return results[0].view(shape), results[1].view(*results[1].shape[:-1], *shape)


def attempt(kernel: Callable, constants: tuple, tensors: list[Tensor]) -> Tensor | tuple[Tensor, Tensor] | None:
    """Results of the compiled kernel, for any shapes; None without a working compiler and for a single point.

    Args:
        kernel: Function of (*tensors, *constants).
        constants: Plain numbers; every set of them is compiled for itself.
        tensors: Without autograd history; the first one has at least two axes.

    Returns:
        What the kernel returns, or None: then the caller runs it uncompiled, with the same numbers.
    """
    like = tensors[0]
    if compiler.off or like[0].numel() < 2:  # a length of one would be specialised on
        return None
    try:
        return compiler.get(kernel, constants, like.dtype, like.device.type, torch.is_inference_mode_enabled())(
            *tensors
        )
    except Exception as error:  # whatever a tool chain raises: no compiler, no headers, no disk
        compiler.off = True
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        _logger.warning("Kernels run uncompiled (same numbers, slower): %s", reason)
        return None


class Compiler:
    """Compiled kernels of this process, one per variant; the environment's BOLTZFLOW_COMPILE=0 turns them off."""

    def __init__(self) -> None:
        self.off = os.environ.get("BOLTZFLOW_COMPILE") == "0"
        self.get = functools.cache(_Variant)


class _Variant:
    """One kernel, compiled at its first call for one set of constants, dtype and device, and for any length."""

    def __init__(self, kernel: Callable, constants: tuple, *variant: object) -> None:
        @no_type_check
        def specialised(*tensors):
            return kernel(*tensors, *constants)

        # dynamo counts recompilations per code object and gives up after a few: every variant gets its own
        specialised.__code__ = specialised.__code__.replace(
            co_name=kernel.__name__ + "".join(f"_{v}" for v in variant).replace(".", "_")
        )
        self.compiled = torch.compile(specialised, dynamic=True, fullgraph=True, options={"max_fusion_size": 100_000})
        self.ready = False

    def __call__(self, *tensors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.ready:
            return self.compiled(*tensors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, which must not become errors under -W error
            result = self.compiled(*tensors)
        self.ready = True
        return result


compiler = Compiler()


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run kernels eagerly inside, for work that is shorter than a compilation; the numbers are the same."""
    before, compiler.off = compiler.off, True
    try:
        yield
    finally:
        compiler.off = before
