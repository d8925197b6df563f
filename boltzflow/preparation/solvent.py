"""Water and free ions: counted, and taken out on request."""

from collections import Counter
from typing import Any

import numpy as np

from boltzflow.errors import UnsupportedForceError
from boltzflow.preparation.readers import Source

__all__ = ["check_solvent", "remove_solvent", "solvent_counts", "solvent_kind"]

MOST_WATERS = 10
"""More water molecules than this are taken for explicit solvent."""

_ION_ELEMENTS = {
    "Li",
    "Na",
    "K",
    "Rb",
    "Cs",
    "F",
    "Cl",
    "Br",
    "I",
    "Mg",
    "Ca",
    "Sr",
    "Ba",
    "Zn",
    "Mn",
    "Fe",
    "Co",
    "Ni",
    "Cu",
    "Cd",
}


def solvent_kind(residue: Any) -> str | None:
    """What a residue is: "water", the symbol of a free ion, or None.

    Args:
        residue: Of an `openmm.app.Topology`.
    """
    symbols = sorted(atom.element.symbol for atom in residue.atoms() if atom.element is not None)
    if symbols in (["H", "H", "O"], ["O"]) and not any(True for _ in residue.external_bonds()):
        return "water"
    if len(symbols) == 1 and symbols[0] in _ION_ELEMENTS and not any(True for _ in residue.external_bonds()):
        return symbols[0]
    return None


def solvent_counts(topology: Any) -> Counter:
    """Number of water molecules and of free ions by element.

    Args:
        topology: An `openmm.app.Topology`.
    """
    return Counter(kind for residue in topology.residues() if (kind := solvent_kind(residue)) is not None)


def remove_solvent(source: Source) -> None:
    """Take waters and free ions out of a source, in place, and note how many.

    Args:
        source: What was read, without a System.
    """
    from openmm import app, unit

    counts = solvent_counts(source.topology)
    if not counts:
        source.note("no water and no free ions to remove")
        return
    model = app.Modeller(source.topology, source.positions * unit.nanometer)
    model.delete([residue for residue in source.topology.residues() if solvent_kind(residue) is not None])
    source.topology = model.topology
    source.positions = np.array([p.value_in_unit(unit.nanometer) for p in model.positions]).reshape(-1, 3)
    source.note("removed " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))


def check_solvent(source: Source) -> None:
    """Refuse explicit solvent.

    Args:
        source: What was read.

    Raises:
        UnsupportedForceError: If there are more than `MOST_WATERS` water molecules.
    """
    n_waters = solvent_counts(source.topology)["water"]
    if n_waters > MOST_WATERS:
        remedy = (
            "remove them with --remove-solvent and name an implicit-solvent XML such as --forcefield implicit/obc2.xml"
            if source.system is None
            else "strip them from these files (cpptraj or ParmEd), and use an implicit solvent"
        )
        raise UnsupportedForceError(
            f"{n_waters} water molecules: explicit solvent is not supported, only molecules in vacuum or implicit "
            f"solvent; {remedy}, or simulate with OpenMM itself."
        )
