"""The second oxygen at the end of a protein chain, which many crystal structures leave out."""

from typing import Any

import numpy as np

from boltzflow.preparation.readers import Source

__all__ = ["add_terminal_oxygens"]

_BACKBONE = ("N", "CA", "C", "O")


def add_terminal_oxygens(source: Source) -> None:
    """Add OXT to amino acids whose carbonyl carbon has nothing but CA and O, in place, and note where.

    It is the mirror image of O through the axis CA-C, in the plane of the three.

    Args:
        source: What was read, without a System.
    """
    from openmm import app

    ends = {residue.index: atoms for residue in source.topology.residues() if (atoms := _open_end(residue))}
    if not ends:
        return
    topology, atom_of, positions = app.Topology(), {}, []
    topology.setPeriodicBoxVectors(source.topology.getPeriodicBoxVectors())
    for chain in source.topology.chains():
        new_chain = topology.addChain(chain.id)
        for residue in chain.residues():
            new = topology.addResidue(residue.name, new_chain, residue.id, residue.insertionCode)
            for atom in residue.atoms():
                atom_of[atom.index] = topology.addAtom(atom.name, atom.element, new, atom.id)
                positions.append(source.positions[atom.index])
            if residue.index in ends:
                _, alpha, carbon, oxygen = (source.positions[atom.index] for atom in ends[residue.index])
                axis = (carbon - alpha) / np.linalg.norm(carbon - alpha)
                bond = oxygen - carbon
                positions.append(carbon + 2 * (bond @ axis) * axis - bond)
                oxt = topology.addAtom("OXT", app.element.oxygen, new)
                topology.addBond(atom_of[ends[residue.index][2].index], oxt)
    for a, b in source.topology.bonds():
        topology.addBond(atom_of[a.index], atom_of[b.index])
    names = [f"{r.name}{r.id}" for r in source.topology.residues() if r.index in ends]
    source.note(f"added the terminal oxygen OXT to {', '.join(names)}")
    source.topology, source.positions = topology, np.array(positions)


def _open_end(residue: Any) -> tuple[Any, ...] | None:
    """N, CA, C and O of an amino acid whose C lacks its third neighbour."""
    atoms = {atom.name: atom for atom in residue.atoms()}
    if not all(name in atoms for name in _BACKBONE):
        return None
    around = {b.name if a is atoms["C"] else a.name for a, b in residue.bonds() if atoms["C"] in (a, b)}
    return tuple(atoms[name] for name in _BACKBONE) if around == {"CA", "O"} else None
