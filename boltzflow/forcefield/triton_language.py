"""The Triton language, where it is installed; elsewhere the kernels can still be imported, but not run."""

from collections.abc import Callable

__all__ = ["jit", "tl"]

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None


_VARYING = ["n", "group", "n_rows", "n_bonds", "n_angles", "n_torsions", "n_harmonics", "n_maps"]


def jit(kernel: Callable) -> Callable:
    """Mark a function to be compiled for a GPU when it is first called.

    Its code does not depend on the numbers of atoms and terms, so that it is compiled once for all molecules.
    """
    return kernel if triton is None else triton.jit(kernel, do_not_specialize=_VARYING)
