"""Alchemical atoms of a system: how `system.yaml` declares them, and what λ of theirs may be."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from boltzflow.errors import FormatError

__all__ = ["AlchemicalDefinition", "check_lambda", "select_atoms"]


class AlchemicalDefinition(BaseModel):
    """The atoms whose interactions with the rest λ switches; see `boltzflow.forcefield.alchemical`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    atoms: str | tuple[int, ...] = Field(description="A selection in MDTraj's language, or indices.")
    softness: float = Field(0.5, gt=0, description="alpha of the soft core.")


def select_atoms(topology: Any, atoms: str | Sequence[int], *, where: str) -> tuple[int, ...]:
    """Some of the atoms of a topology, by a selection in MDTraj's language or by their indices.

    Args:
        topology: An mdtraj.Topology.
        atoms: Selection or indices.
        where: What to name in the error.

    Raises:
        FormatError: If the selection is not understood, an index is no atom, or no atom or all are selected.
    """
    if isinstance(atoms, str):
        try:
            found = topology.select(atoms).tolist()
        except Exception as error:  # its parser raises many kinds
            raise FormatError(
                f"{where}: {atoms!r} is no selection of atoms in MDTraj's language ({error}), such as 'resname ALA' "
                "or 'index 4 to 9'."
            ) from None
    else:
        found = sorted(set(atoms))
    if not found or len(found) == topology.n_atoms or found[0] < 0 or found[-1] >= topology.n_atoms:
        raise FormatError(
            f"{where}: the alchemical atoms {atoms!r} are {len(found)} of {topology.n_atoms}; expected some of the "
            f"atoms 0 to {topology.n_atoms - 1}, not none and not all."
        )
    return tuple(found)


def check_lambda(lam: float, name: str, definition: AlchemicalDefinition | None) -> None:
    """Raise FormatError unless λ is in [0, 1] and the system of that name has alchemical atoms."""
    if not 0 <= lam <= 1:
        raise FormatError(f"system {name}@lambda={lam:g}: expected λ from 0 (no interaction) to 1 (all of it).")
    if definition is None:
        raise FormatError(
            f"system {name}@lambda={lam:g}: its system.yaml has no alchemical atoms; add "
            '`alchemical: {atoms: "SELECTION"}` to it, or make the folder with boltzflow init --alchemical SELECTION.'
        )
