"""OpenMM's tabulated functions: discrete tables, and splines in one to three dimensions."""

from typing import Any

import torch
from torch import nn

from boltzflow._typing import Float, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.registry import tensor
from boltzflow.forcefield.spline import evaluate_spline, spline_coefficients

__all__ = ["TabulatedFunction", "read_tables"]


class TabulatedFunction(nn.Module):
    """A function given by its values on a grid of one to three dimensions.

    A discrete one takes the value at the nearest indices, clamped to the table. A continuous one is a cubic spline:
    natural and zero outside its range, or periodic.
    """

    def __init__(
        self,
        values: Float[Tensor, "n_values"],
        *,
        sizes: tuple[int, ...],
        ranges: tuple[tuple[float, float], ...],
        periodic: bool,
    ) -> None:
        """Keep the table.

        Args:
            values: at the nodes, the first argument's index fastest.
            sizes: nodes along each argument.
            ranges: first and last coordinate along each argument; none for a discrete function.
            periodic: whether the function repeats itself, its last node being the first; continuous functions only.
        """
        super().__init__()
        self.sizes, self.ranges, self.periodic = sizes, ranges, periodic
        table = values
        if ranges:
            # Row-major order needs the last argument fastest.
            grid = values.double().cpu().reshape(sizes[::-1]).permute(*reversed(range(len(sizes))))
            if periodic:
                for axis, size in enumerate(sizes):
                    grid = grid.narrow(axis, 0, size - 1)
            table = spline_coefficients(grid, periodic=periodic).to(values)
        self.register_buffer("table", table, persistent=False)

    def forward(self, *arguments: Tensor | float) -> Tensor:
        """Return the values at the arguments, one for each dimension; a discrete function has derivative zero."""
        arguments = torch.broadcast_tensors(*(torch.as_tensor(a).to(self.table) for a in arguments))
        return self._continuous(arguments) if self.ranges else self._discrete(arguments)

    def _discrete(self, arguments: tuple[Tensor, ...]) -> Tensor:
        index, stride = torch.zeros_like(arguments[0], dtype=torch.int64), 1
        for argument, size in zip(arguments, self.sizes, strict=True):
            # Halves are rounded away from zero; below zero all is clamped.
            nearest = (argument.detach() + 0.5).floor().clamp(0, size - 1)
            index = index + stride * nearest.nan_to_num().long()
            stride *= size
        return self.table[index]

    def _continuous(self, arguments: tuple[Tensor, ...]) -> Tensor:
        cell, fractions, inside = torch.zeros_like(arguments[0], dtype=torch.int64), [], None
        for argument, size, (low, high) in zip(arguments, self.sizes, self.ranges, strict=True):
            position = (argument - low) * ((size - 1) / (high - low))
            lower = position.detach().floor()
            if self.periodic:
                here = lower.nan_to_num().long().remainder(size - 1)
            else:
                within = (argument >= low) & (argument <= high)
                inside = within if inside is None else inside & within
                lower = lower.clamp(0, size - 2)
                here = lower.nan_to_num().long()
            fractions.append(position - lower)
            cell = cell * (size - 1) + here
        if inside is None:
            return evaluate_spline(self.table, cell, fractions)
        fractions = [torch.where(inside, fraction, 0.0) for fraction in fractions]
        return torch.where(inside, evaluate_spline(self.table, cell, fractions), 0.0)

    def extra_repr(self) -> str:
        """Name the size and the range."""
        return f"sizes={self.sizes}, ranges={self.ranges}, periodic={self.periodic}"


def read_tables(force: Any, dtype: torch.dtype) -> tuple[dict[str, dict[str, Any]], Tensor]:
    """Return the tabulated functions of an openmm.Force: name -> arguments of `TabulatedFunction`, and all values."""
    tables, values = {}, []
    for k in range(force.getNumTabulatedFunctions()):
        name, function = force.getTabulatedFunctionName(k), force.getTabulatedFunction(k)
        kind = type(function).__name__
        found = function.getFunctionParameters()
        periodic = False
        if kind == "Continuous1DFunction":
            data, sizes, ranges = found[0], (len(found[0]),), (tuple(found[1:3]),)
            periodic = function.getPeriodic()
        elif kind in ("Continuous2DFunction", "Continuous3DFunction"):
            n = int(kind[10])
            data, sizes = found[n], tuple(found[:n])
            ranges = tuple(zip(found[n + 1 :: 2], found[n + 2 :: 2], strict=True))
            periodic = function.getPeriodic()
        elif kind == "Discrete1DFunction":
            data, sizes, ranges = found, (len(found),), ()
        elif kind in ("Discrete2DFunction", "Discrete3DFunction"):
            data, sizes, ranges = found[-1], tuple(found[:-1]), ()
        else:
            raise UnsupportedForceError(f"the tabulated function {name!r} is a {kind}, which is not known")
        tables[name] = {"sizes": tuple(sizes), "ranges": ranges, "periodic": periodic}
        values.extend(data)
    return tables, tensor(values, dtype)
