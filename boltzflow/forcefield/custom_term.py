"""The base class of the terms that OpenMM's Custom forces describe by algebraic expressions."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.forcefield.expressions import Expression
from boltzflow.forcefield.operations import Operand
from boltzflow.forcefield.registry import tensor
from boltzflow.forcefield.tabulated_function import TabulatedFunction, read_tables
from boltzflow.forcefield.term import Term

__all__ = ["CustomTerm", "read_custom"]

_log = logging.getLogger(__name__)


class CustomTerm(Term):
    """A term whose energy is an algebraic expression of geometry, parameters, global parameters and tables.

    Where an expression has no value at a finite conformation, such as the difference of two infinities in a clash or
    the root of a negative number, the energy is +inf: the conformation has no weight.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        *,
        parameter_names: tuple[str, ...],
        global_names: tuple[str, ...],
        tables: dict[str, dict[str, Any]],
        **options: Any,
    ) -> None:
        """Keep the parameters and build the tables.

        Args:
            tensors: those of the subclass, and besides: ``parameter_values`` (n, n_parameters), ``global_values``
                (n_globals,) and ``table_values`` (the values of all tables one after the other).
            parameter_names: of the columns of ``parameter_values``.
            global_names: of the rows of ``global_values``.
            tables: name -> the keyword arguments of `TabulatedFunction`.
            **options: those of the subclass.
        """
        super().__init__(tensors, parameter_names=parameter_names, global_names=global_names, tables=tables, **options)
        parts = self.table_values.split([math.prod(table["sizes"]) for table in tables.values()])
        self.functions = nn.ModuleList(
            TabulatedFunction(values, **table) for values, table in zip(parts, tables.values(), strict=True)
        )

    def parse(self, text: str, known: Iterable[str], **options: Mapping[str, int]) -> Expression:
        """Return an expression that uses the known variables, the global parameters and the tables."""
        functions = {name: len(table["sizes"]) for name, table in self.options["tables"].items()}
        functions |= options.pop("functions", {})
        return Expression(text, functions=functions, **options).require({*known, *self.options["global_names"]})

    def evaluate(
        self, expression: Expression, values: Mapping[str, Operand], functions: Mapping[str, Any] | None = None
    ) -> Operand:
        """Return the value of an expression at the given variables."""
        constants = dict(zip(self.options["global_names"], self.global_values, strict=True))
        tables = dict(zip(self.options["tables"], self.functions, strict=True))
        return expression({**constants, **values}, {**tables, **(functions or {})})

    def total(self, energy: Operand, x: Float[Tensor, "3 n_atoms batch"], n: int) -> Float64[Tensor, "batch"]:
        """Sum the energies of ``n`` interactions, which may be a number or (n, 1) where all conformations agree."""
        energy = torch.as_tensor(energy, dtype=x.dtype, device=x.device).expand(n, x.shape[-1])
        return energy.sum(0, dtype=torch.float64)

    def settle(self, energy: Float64[Tensor, "batch"], x: Float[Tensor, "3 n_atoms batch"]) -> Float64[Tensor, "batch"]:
        """Return +inf where a finite conformation has no energy, and NaN where a position is not finite."""
        energy = torch.where(energy.isnan(), math.inf, energy)
        return torch.where(x.isfinite().all(1).all(0), energy, math.nan)


def read_custom(force: Any, kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments that all Custom forces share, but for ``parameter_values``.

    Args:
        force: an openmm Custom force.
        kind: what its parameters belong to, as in ``getPerBondParameterName``: "Bond", "Angle", "Torsion", "Particle".
        dtype: of the values.
    """
    if getattr(force, "getNumEnergyParameterDerivatives", int)():
        _log.info("the parameter derivatives that %s asks for are ignored", force.getName())
    tables, values = read_tables(force, dtype) if hasattr(force, "getNumTabulatedFunctions") else ({}, None)
    count, name = getattr(force, f"getNumPer{kind}Parameters"), getattr(force, f"getPer{kind}ParameterName")
    n_globals = force.getNumGlobalParameters()
    return {
        "parameter_names": tuple(name(k) for k in range(count())),
        "global_names": tuple(force.getGlobalParameterName(k) for k in range(n_globals)),
        "global_values": tensor([force.getGlobalParameterDefaultValue(k) for k in range(n_globals)], dtype),
        "tables": tables,
        "table_values": torch.zeros(0, dtype=dtype) if values is None else values,
    }
