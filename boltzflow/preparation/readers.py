"""Files that describe a molecule, as an OpenMM topology with positions; each is refused with its reason if damaged."""

import io
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np

from boltzflow.errors import FormatError, UnknownNameError, nearest

__all__ = [
    "IMPLICIT_SOLVENTS",
    "Source",
    "read_amber",
    "read_charmm",
    "read_forcefield",
    "read_structure",
    "read_system",
]

logger = logging.getLogger(__name__)

IMPLICIT_SOLVENTS = ("HCT", "OBC1", "OBC2", "GBn", "GBn2", "none")
"""Implicit solvents of Amber and CHARMM files."""


@dataclass
class Source:
    """What was read.

    Args:
        topology: The `openmm.app.Topology`.
        positions: (n_atoms, 3) nm.
        files: What was read, for the provenance.
        notes: What was chosen, added or removed on the way, one sentence each.
        system: The `openmm.System`, where the input defines it; None if a force field has to.
        definition: What defines the energy, in words.
    """

    topology: Any
    positions: np.ndarray
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    system: Any = None
    definition: str = ""

    def note(self, text: str) -> None:
        """Log a sentence, and keep it for the README."""
        logger.info("%s", text)
        self.notes.append(text)


def _text(path: Path) -> str:
    """A text file; what is obviously something else is refused."""
    if path.is_dir():
        raise FormatError(f"{path}: is a folder; give the file in it.")
    if not path.is_file():
        near = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise FileNotFoundError(f"{path}: no such file; {nearest(path.name, near)}")
    data = path.read_bytes()
    if not data.strip():
        raise FormatError(f"{path}: is empty; get the file again.")
    if data.startswith(b"\x1f\x8b"):
        raise FormatError(f"{path}: is compressed; unpack it with gunzip.")
    if b"\0" in data:
        raise FormatError(f"{path}: is a binary file; give a text file.")
    text = data.decode("utf-8", errors="replace")
    if text.lstrip()[:15].lower().startswith(("<!doctype html", "<html")):
        raise FormatError(f"{path}: is a web page, not a structure; download the file itself, not the page about it.")
    return text


def _parsed(
    path: Path, kind: str, read: Callable[[], Any], *, remedy: str = "the file is damaged or of another kind"
) -> Any:
    """What a reader of OpenMM returns; whatever it raises names the file."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = read()
    except Exception as error:  # these readers raise anything: KeyError, IndexError, AssertionError, ...
        detail = f"{type(error).__name__}: {error}"
        raise FormatError(f"{path}: cannot be read as {kind} ({detail}); {remedy}.") from None
    for text in dict.fromkeys(str(warning.message) for warning in said):
        logger.warning("%s: %s", path.name, text)
    return result


def _nanometers(positions: Any) -> np.ndarray:
    from openmm import unit

    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64).reshape(-1, 3)


def read_structure(path: Path) -> Source:
    """Read a PDB or mmCIF file: its first model, and the first of alternate locations, which is said.

    Args:
        path: Ends in .cif or .mmcif for mmCIF; anything else is PDB.

    Raises:
        FileNotFoundError: If there is no such file.
        FormatError: If it is empty, truncated, binary, or something else.
    """
    from openmm.app import PDBFile, PDBxFile

    text = _text(path)
    n_small = 0
    if path.suffix.lower() in {".cif", ".mmcif"}:
        kind, read = "mmCIF", lambda: PDBxFile(str(path))
        n_alternate = _count_alternates(path)
    else:
        n_alternate = _check_pdb(path, text)
        text, n_small = _standard_names_in_capitals(text)
        kind, read = "PDB", lambda: PDBFile(io.StringIO(text))
    found = _parsed(path, kind, read)
    atoms = list(found.topology.atoms())
    if not atoms:
        raise FormatError(f"{path}: holds no atoms; the file is damaged or not of the format {kind}.")
    deuterium = [atom for atom in atoms if atom.element is not None and atom.element.symbol == "D"]
    if deuterium:
        raise FormatError(
            f"{path}: {len(deuterium)} atoms are deuterium, which force fields do not know; make them hydrogens (H for "
            "D in names and elements), which changes no distribution of structures."
        )
    source = Source(found.topology, _nanometers(found.positions), [path])
    if n_small:
        source.note(f"{path.name}: the names of {n_small} atoms of standard residues are read in capital letters")
    if (n_models := found.getNumFrames()) > 1:
        source.note(f"{path.name}: {n_models} models, the first is taken")
    if n_alternate:
        source.note(f"{path.name}: {n_alternate} atoms in alternate locations, of each the first is taken")
    if found.topology.getPeriodicBoxVectors() is not None:
        source.note(f"{path.name}: its unit cell is left out")
    return source


def _check_pdb(path: Path, text: str) -> int:
    """Refuse a damaged PDB file with the line; return the number of atoms that have alternate locations."""
    places: dict[str, set[str]] = {}
    n_atoms = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("ENDMDL"):
            break
        if not line.startswith(("ATOM  ", "HETATM")):
            continue
        n_atoms += 1
        try:
            [float(line[start : start + 8]) for start in (30, 38, 46)]
        except ValueError:
            if "\t" in line:
                raise FormatError(
                    f"{path}, line {number}: has tabs; the columns of PDB files are counted in characters: replace "
                    "the tabs by spaces, as in the original."
                ) from None
            raise FormatError(
                f"{path}, line {number}: no coordinates in columns 31-54 of {line.strip()[:60]!r}; the file is "
                "truncated or damaged, get it again."
            ) from None
        places.setdefault(line[12:16] + line[21:27], set()).add(line[16])
    if not n_atoms:
        raise FormatError(f"{path}: no ATOM or HETATM record; it is not a PDB file{_remedy(path, text)}.")
    return sum(len(found) > 1 for found in places.values())


def _remedy(path: Path, text: str) -> str:
    """What to do with a file of another format."""
    if text.lstrip().startswith(">"):
        return ", but FASTA: give its letters as --sequence"
    if path.suffix.lower() in {".gro", ".mol", ".mol2", ".sdf", ".xyz", ".pdbqt"}:
        return (
            f" but {path.suffix}: convert it, keeping hydrogens and bonds (obabel {path.name} -O {path.stem}.pdb), and "
            "give the XML of a force field that defines the molecule with --forcefield"
        )
    return " (mmCIF must end in .cif)"


def _standard_names_in_capitals(text: str) -> tuple[str, int]:
    """A PDB file with the atoms of standard residues in capital letters, and the number of atoms that were not."""
    from openmm.app import PDBFile

    PDBFile._loadNameReplacementTables()
    lines = text.splitlines()
    changed = 0
    for k, line in enumerate(lines):
        if line.startswith(("ATOM  ", "HETATM")) and line[17:20].strip().upper() in PDBFile._residueNameReplacements:
            lines[k] = line[:12] + line[12:20].upper() + line[20:]
            changed += lines[k] != line
    return "\n".join(lines) + "\n", changed


def _count_alternates(path: Path) -> int:
    """Number of atoms of an mmCIF file that have alternate locations, in its first model."""
    from openmm.app.internal.pdbx.reader.PdbxReader import PdbxReader

    columns = ("label_asym_id", "auth_seq_id", "label_comp_id", "label_atom_id", "pdbx_PDB_model_num", "label_alt_id")
    blocks: list[Any] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        _parsed(path, "mmCIF", lambda: PdbxReader(file).read(blocks))
    table = blocks[0].getObj("atom_site") if blocks else None
    if table is None:
        raise FormatError(f"{path}: no atom_site table; the file is damaged or not mmCIF.")
    indices = [table.getAttributeIndex(name) for name in columns]
    if -1 in indices:
        return 0
    places: dict[tuple[str, ...], set[str]] = {}
    for row in table.getRowList():
        *atom, alternate = (row[k] for k in indices)
        places.setdefault(tuple(atom), set()).add(alternate)
    n_models = len({atom[-1] for atom in places})
    return sum(len(found) > 1 for found in places.values()) // n_models if n_models else 0


def read_forcefield(files: Sequence[str]) -> Any:
    """Load OpenMM force-field files.

    Args:
        files: Names that OpenMM ships, or paths.

    Returns:
        The `openmm.app.ForceField`.

    Raises:
        UnknownNameError: If a file does not exist (the nearest names are given).
        FormatError: If it is not a force field.
    """
    from openmm import app

    try:
        return app.ForceField(*files)
    except ParseError as error:
        raise FormatError(f"force field {' + '.join(files)}: not XML: {error}.") from None
    except Exception as error:  # OpenMM raises anything here
        shipped = Path(app.__file__).parent / "data"
        for file in files:
            if f'Could not locate file "{file}"' in str(error):
                hint = nearest(file, [p.relative_to(shipped).as_posix() for p in shipped.rglob("*.xml")])
                raise UnknownNameError(
                    f"force field {file!r}: neither a file nor shipped with OpenMM; {hint}"
                ) from None
        detail = f"{type(error).__name__}: {error}"
        raise FormatError(f"force field {' + '.join(files)}: OpenMM cannot load it ({detail}).") from None


def read_system(path: Path, structure: Path) -> Source:
    """Read a serialised openmm.System with the PDB file of its topology and positions.

    Args:
        path: XML of `openmm.XmlSerializer`.
        structure: PDB or mmCIF.

    Raises:
        FormatError: If a file is damaged.
    """
    import openmm

    text = _text(path)
    found = _parsed(path, "a serialised openmm.System", lambda: openmm.XmlSerializer.deserialize(text))
    if not isinstance(found, openmm.System):
        raise FormatError(f"{path}: holds a serialised {type(found).__name__}, expected a System.")
    source = read_structure(structure)
    source.system, source.definition = found, f"the serialised System {path.name}"
    source.files.insert(0, path)
    return source


def _implicit(name: str) -> Any:
    from openmm import app

    if name not in IMPLICIT_SOLVENTS:
        raise UnknownNameError(f"implicit solvent {name!r}: unknown; {nearest(name, IMPLICIT_SOLVENTS)}")
    return None if name == "none" else getattr(app, name)


def _flexible() -> dict[str, Any]:
    from openmm import app

    return {"nonbondedMethod": app.NoCutoff, "constraints": None, "rigidWater": False, "removeCMMotion": False}


def read_amber(prmtop: Path, inpcrd: Path, *, implicit_solvent: str) -> Source:
    """Read Amber topology and coordinates.

    Args:
        prmtop: Amber parameters and topology.
        inpcrd: Amber coordinates or restart file.
        implicit_solvent: One of `IMPLICIT_SOLVENTS`.

    Raises:
        FormatError: If a file is damaged, or they are of different molecules.
    """
    from openmm import app

    solvent = _implicit(implicit_solvent)
    _text(prmtop)
    _text(inpcrd)
    parameters = _parsed(prmtop, "an Amber prmtop", lambda: app.AmberPrmtopFile(str(prmtop)))
    coordinates = _parsed(inpcrd, "Amber coordinates", lambda: app.AmberInpcrdFile(str(inpcrd)))
    make = lambda: parameters.createSystem(implicitSolvent=solvent, **_flexible())  # noqa: E731
    return Source(
        parameters.topology,
        _nanometers(coordinates.positions),
        [prmtop, inpcrd],
        system=_parsed(prmtop, "an Amber prmtop", make),
        definition=f"{prmtop.name} with implicit solvent {implicit_solvent}",
    )


def read_charmm(psf: Path, parameters: Sequence[Path], coordinates: Path, *, implicit_solvent: str) -> Source:
    """Read a CHARMM or X-PLOR psf, its parameters and coordinates.

    Args:
        psf: The structure file.
        parameters: CHARMM top/rtf, par/prm and str files.
        coordinates: PDB or CHARMM crd.
        implicit_solvent: One of `IMPLICIT_SOLVENTS`.

    Raises:
        FormatError: If a file is damaged, or parameters are missing.
    """
    from openmm import app

    solvent = _implicit(implicit_solvent)
    for path in (psf, *parameters, coordinates):
        _text(path)
    structure = _parsed(psf, "a CHARMM psf", lambda: app.CharmmPsfFile(str(psf)))
    values = _parsed(parameters[0], "CHARMM parameters", lambda: app.CharmmParameterSet(*map(str, parameters)))
    if coordinates.suffix.lower() == ".crd":
        positions = _nanometers(
            _parsed(coordinates, "a CHARMM crd", lambda: app.CharmmCrdFile(str(coordinates))).positions
        )
    else:
        positions = read_structure(coordinates).positions
    make = lambda: structure.createSystem(values, implicitSolvent=solvent, **_flexible())  # noqa: E731
    remedy = "give every parameter file that it needs"
    system = _parsed(psf, "a CHARMM psf with these parameters", make, remedy=remedy)
    # OpenMM adds torsion maps and impropers even where there are none
    for k in reversed(range(system.getNumForces())):
        force = system.getForce(k)
        if "Torsion" in type(force).__name__ and not force.getNumTorsions():
            system.removeForce(k)
    return Source(
        structure.topology,
        positions,
        [psf, *parameters, coordinates],
        system=system,
        definition=f"{psf.name} with {', '.join(p.name for p in parameters)} and implicit solvent {implicit_solvent}",
    )
