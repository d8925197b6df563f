"""A system folder: what is in it, written completely or not at all."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from boltzflow.errors import FormatError
from boltzflow.systems import list_systems

__all__ = ["check_folder", "new_folder", "topology_text", "verify_topology", "write_definition"]

MOST_LETTERS = 100
"""Of the name of a system, to which others are appended."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot become a system.

    Args:
        folder: To be made.

    Raises:
        FileExistsError: If something is there already.
        FormatError: If its name cannot be that of a system, or it cannot be written there.
    """
    name = folder.name
    if len(name) > MOST_LETTERS:
        raise FormatError(f"name {name[:20]}...: has {len(name)} letters, at most {MOST_LETTERS}; choose another name.")
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise FormatError(f"name {name!r}: expected letters, digits, '_', '-', '+' or '.'; choose another name.")
    if str(folder) in list_systems():
        raise FormatError(f"name {name!r}: is a system that ships, which would be found instead; choose another name.")
    if (folder.exists() and not folder.is_dir()) or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists already; choose another name, or remove it first.")
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    if not place.is_dir():
        raise FormatError(f"{folder}: {place} is a file, expected a folder to put it in; choose another place.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise FormatError(f"{folder}: no permission to write in {place}; choose another place.")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder of the same name that takes the place of `folder` when the block ends without an exception.

    Args:
        folder: Must not exist, or be empty.

    Raises:
        FormatError: If the operating system refuses.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        around = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent)
    except OSError as error:
        raise FormatError(f"{folder}: cannot be made ({error.strerror}); choose another place.") from None
    with around as outer:
        temporary = Path(outer) / folder.name
        temporary.mkdir()
        yield temporary
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)


def topology_text(topology: Any, positions: np.ndarray) -> str:
    """A PDB file in which every bond has a CONECT record, so that mdtraj reads back the same topology.

    Residues keep their numbers where PDB can hold them. A chain is split where two residues that follow each other are
    not bonded, because readers join the backbone atoms of a chain. Atom names that occur twice in a residue are
    changed. A periodic box stands in a CRYST1 record.

    Args:
        topology: An `openmm.app.Topology`.
        positions: (n_atoms, 3) nm.
    """
    from openmm import unit
    from openmm.app import PDBFile, Topology

    bonded = {frozenset((a.residue.index, b.residue.index)) for a, b in topology.bonds()}
    residues = list(topology.residues())
    keep = all(r.id.strip().lstrip("-").isdigit() and len(r.id.strip()) < 5 for r in residues)
    plain = Topology()
    plain.setPeriodicBoxVectors(topology.getPeriodicBoxVectors())
    previous = None
    for residue in residues:
        apart = previous is None or previous.chain is not residue.chain
        if apart or _joined_by_readers(previous, residue, bonded):
            chain = plain.addChain(residue.chain.id)
        number = residue.id.strip() if keep else str(residue.index % 9999 + 1)
        added = plain.addResidue(residue.name, chain, number, residue.insertionCode if keep else "")
        for name, atom in zip(_distinct_names(residue), residue.atoms(), strict=True):
            plain.addAtom(name, atom.element, added)
        previous = residue
    with tempfile.TemporaryFile("w+", encoding="ascii", errors="replace") as file:
        PDBFile.writeModel(plain, positions * unit.nanometer, file, keepIds=True)
        PDBFile.writeHeader(plain, file)
        file.seek(0)
        written = file.read().splitlines()
    # the header's remarks hold a date, which would make two equal systems differ
    lines = [line for line in written if line.startswith("CRYST1")]
    lines += [line for line in written if not line.startswith(("CRYST1", "REMARK"))]
    serials = [int(line[6:11]) for line in lines if line.startswith(("ATOM  ", "HETATM"))]
    partners: dict[int, list[int]] = {}
    for a, b in topology.bonds():
        partners.setdefault(serials[a.index], []).append(serials[b.index])
        partners.setdefault(serials[b.index], []).append(serials[a.index])
    for serial, others in sorted(partners.items()):
        others = sorted(set(others))
        for start in range(0, len(others), 4):
            lines.append("CONECT" + "".join(f"{number:5d}" for number in (serial, *others[start : start + 4])))
    return "\n".join([*lines, "END", ""])


def _joined_by_readers(previous: Any, residue: Any, bonded: set[frozenset[int]]) -> bool:
    """Whether a reader would bond two residues of one chain that are not bonded, or cannot tell them apart."""
    if (previous.id, previous.name, previous.insertionCode) == (residue.id, residue.name, residue.insertionCode):
        return True
    if frozenset((previous.index, residue.index)) in bonded:
        return False
    ends, starts = {a.name for a in previous.atoms()}, {a.name for a in residue.atoms()}
    return ("C" in ends and "N" in starts) or ("O3'" in ends and "P" in starts)


def _distinct_names(residue: Any) -> list[str]:
    """The atom names of a residue in at most four characters, all different."""
    names = [atom.name[:4] for atom in residue.atoms()]
    if len(set(names)) == len(names):
        return names
    taken: set[str] = set()
    for k, atom in enumerate(residue.atoms()):
        if names[k] in taken:
            symbol = atom.element.symbol if atom.element is not None else "X"
            names[k] = next(n for i in range(1, 1000) if (n := f"{symbol.upper()}{i}"[:4]) not in {*names, *taken})
        taken.add(names[k])
    return names


def verify_topology(topology: Any, found: Any) -> None:
    """Refuse a topology file from which other atoms or bonds are read than were written.

    Args:
        topology: The `openmm.app.Topology` that was written.
        found: The `mdtraj.Topology` that was read.

    Raises:
        FormatError: If they differ.
    """
    written, read = (
        [(0 if a.element is None else a.element.atomic_number, a.residue.index) for a in atoms]
        for atoms in (topology.atoms(), found.atoms)
    )
    bonds = {frozenset((a.index, b.index)) for a, b in topology.bonds()}
    bonds_read = {frozenset((a.index, b.index)) for a, b in found.bonds}
    if written != read or bonds != bonds_read:
        names = [str(a) for a in found.atoms]
        off = [" to ".join(names[k] for k in sorted(pair)) for pair in bonds ^ bonds_read if max(pair) < len(names)]
        raise FormatError(
            f"topology.pdb: {len(written)} atoms and {len(bonds)} bonds were written, {len(read)} and "
            f"{len(bonds_read)} are read back; they differ in {', '.join(sorted(off)[:3]) or 'elements or residues'}. "
            "Give residues names of at most three and atoms of at most four characters that PDB readers do not take "
            "for standard residues."
        )


def write_definition(path: Path, definition: dict[str, Any], *, energies: Sequence[float], comment: str) -> None:
    """Write `system.yaml`.

    Args:
        path: The file.
        definition: Its keys without the energies.
        energies: Of `boltzflow.systems.probe_positions`, kJ/mol.
        comment: A line above the energies.
    """
    text = yaml.safe_dump(definition, sort_keys=False, allow_unicode=True, width=1000)
    path.write_text(f"{text}# {comment}\nenergies: [{', '.join(map(repr, energies))}]\n", encoding="utf-8")
