"""How many conformations may be evaluated at once without passing a bound on memory."""

import os
from collections.abc import Callable

import torch

from boltzflow._typing import Tensor

__all__ = ["bytes_per_conformation", "default_bound"]


def default_bound() -> int:
    """Return the bound in bytes: ``$BOLTZFLOW_CHUNK_BYTES``, or 2^30.

    Raises:
        ValueError: the variable is not a positive whole number.
    """
    text = os.environ.get("BOLTZFLOW_CHUNK_BYTES", str(2**30))
    try:
        bound = int(text)
    except ValueError:
        bound = 0
    if bound < 1:
        raise ValueError(f"BOLTZFLOW_CHUNK_BYTES must be a positive number of bytes; found {text!r}")
    return bound


def bytes_per_conformation(energy: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Return what an evaluation of energy and force needs for each further conformation, in bytes.

    The tensors that the graph keeps for the backward pass are counted with one conformation and with two; the backward
    pass and intermediate results take up to twice as much again, by the peaks of whole processes of up to 304 atoms,
    and the rest is a margin.

    Args:
        energy: (3, n_atoms, batch) -> (batch,).
        x: positions (3, n_atoms, 1) of one conformation.
    """

    def kept(n: int) -> int:
        storages: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            result = energy(x.detach().repeat(1, 1, n).requires_grad_())  # kept alive, so that no address is used twice
        del result
        return sum(storages.values())

    return 4 * max(kept(2) - kept(1), x.nbytes)
