"""What a structure fixes for all that follows: hands of amino acids, cis peptide bonds, double bonds."""

from typing import Any

import numpy as np
import torch

from boltzflow.preparation.checks import atom_name, listed
from boltzflow.preparation.geometry import wrong_hands
from boltzflow.transitions.molecule import double_bonds

__all__ = ["cis_peptide_bonds", "stereo_notes"]


def cis_peptide_bonds(topology: Any, positions: np.ndarray) -> list[str]:
    """Peptide bonds with a torsion omega between -90 and 90 degrees.

    Args:
        topology: An `openmm.app.Topology` with the names of the Protein Data Bank.
        positions: (n_atoms, 3), any unit.

    Returns:
        Names such as "GLY3-PRO4".
    """
    found = []
    for one, two in topology.bonds():
        first, second = (one, two) if one.name == "C" else (two, one)
        if first.residue is second.residue or (first.name, second.name) != ("C", "N"):
            continue
        before = _named(first.residue, "CA", "CH3")
        after = _named(second.residue, "CA", "C", "CH3")
        if before is None or after is None:
            continue
        a, b, c, d = (positions[atom.index] for atom in (before, first, second, after))
        # the cosine of omega has this sign
        if np.cross(b - a, c - b) @ np.cross(c - b, d - c) > 0:
            found.append(f"{first.residue.name}{first.residue.id}-{second.residue.name}{second.residue.id}")
    return found


def _named(residue: Any, *names: str) -> Any:
    atoms = {atom.name: atom for atom in residue.atoms()}
    return next((atoms[name] for name in names if name in atoms), None)


def stereo_notes(topology: Any, positions: np.ndarray) -> list[str]:
    """Say in words what is unusual about the stereo-chemistry, and what it means.

    Args:
        topology: An `openmm.app.Topology`.
        positions: (n_atoms, 3) nm, minimised.

    Returns:
        One sentence for each kind that occurs: D-amino acids, cis peptide bonds, double bonds of E or Z.
    """
    notes = []
    right_handed = [name.removesuffix("-CA") for name in wrong_hands(topology, positions) if name.endswith("-CA")]
    if right_handed:
        notes.append(f"{len(right_handed)} D-amino acids ({listed(right_handed)}); every sample keeps their hand")
    cis = cis_peptide_bonds(topology, positions)
    if cis:
        notes.append(
            f"{len(cis)} cis peptide bonds ({listed(cis)}), the others are trans; simulations change cis and trans "
            "too rarely to trust their populations"
        )
    atoms = list(topology.atoms())
    bonds = [(a.index, b.index) for a, b in topology.bonds()]
    elements = [atom.element.atomic_number for atom in atoms]
    double = double_bonds(bonds, elements, torch.from_numpy(np.asarray(positions)))
    if double:
        names = [f"{atom_name(atoms[i])}={atoms[j].name}" for i, j in double]
        notes.append(f"{len(double)} double bonds ({listed(names)}); simulations keep their E or Z")
    return notes
