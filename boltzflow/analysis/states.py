"""The two states of a free-energy difference: intervals of a variable, or what lies near given structures."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from boltzflow.analysis.observables import CollectiveVariable, rmsd
from boltzflow.ensemble import Ensemble
from boltzflow.errors import FormatError

__all__ = [
    "RmsdAtoms",
    "States",
    "inside",
    "interval_states",
    "parse_state",
    "read_structure",
    "rmsd_atoms",
    "structure_states",
]

Interval = tuple[float, float]
RmsdAtoms = Literal["heavy", "backbone", "CA", "all"]
SELECTIONS = {
    "heavy": "element != H",
    "backbone": "backbone",
    "CA": "name CA and element C",
    "all": "all",
}
# names of one residue in different protonation states or conventions
SAME_RESIDUE = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **dict.fromkeys(("CYX", "CYM"), "CYS"),
    "ASH": "ASP",
    "GLH": "GLU",
    "LYN": "LYS",
    "NMA": "NME",
}


@dataclass(frozen=True, eq=False)
class States:
    """Two disjoint sets of rows of an ensemble.

    Args:
        names: In words.
        members: Masks, each (n,).
        variable: What tells them apart.
        unit: Of the variable.
    """

    names: tuple[str, str]
    members: tuple[np.ndarray, np.ndarray]
    variable: str
    unit: str


def parse_state(text: str, *, degrees: bool) -> Interval:
    """An interval "lo:hi" from the command line; a missing end is infinite.

    Args:
        text: E.g. "0:130", ":0.5" or "170:-170" (across the cut of a circle).
        degrees: Whether the numbers are degrees, to be turned into rad.
    """
    low, colon, high = text.partition(":")
    try:
        ends = float(low) if low.strip() else -math.inf, float(high) if high.strip() else math.inf
    except ValueError:
        colon = ""
    if not colon or math.isnan(ends[0]) or math.isnan(ends[1]):
        raise ValueError(f"state {text!r}: expected 'lo:hi' with numbers, e.g. '0:130'.")
    return (math.radians(ends[0]), math.radians(ends[1])) if degrees else ends


def interval_states(variable: CollectiveVariable, states: Sequence[Interval]) -> States:
    """Rows in one interval and in the rest, or in two.

    Args:
        variable: A number per row.
        states: One or two intervals [lo, hi); on a circle in rad, across ±π where lo > hi. A circle needs two cuts.

    Raises:
        ValueError: If the intervals overlap, are empty, or leave one end of a circle open.
    """
    if not 1 <= len(states) <= 2:
        raise ValueError(f"delta_f: expected one state (against the rest) or two, got {len(states)}.")
    rows = [inside(variable, low, high) for low, high in states]
    names = [f"{low:.6g}:{high:.6g}" for low, high in states]
    if len(rows) == 1:
        rows.append(~rows[0] & np.isfinite(variable.values))
        names.append("rest")
    elif np.any(rows[0] & rows[1]):
        raise ValueError(f"delta_f: the states {' and '.join(names)} overlap; give disjoint intervals.")
    return States((names[0], names[1]), (rows[0], rows[1]), variable.name, variable.unit)


def inside(variable: CollectiveVariable, low: float, high: float) -> np.ndarray:
    """Rows in an interval [low, high), as a mask (n,); on a circle (rad) across ±π where low > high.

    Args:
        variable: A number per row.
        low: Lower end.
        high: Upper end, which does not belong to it.

    Raises:
        ValueError: If the interval is empty, or leaves one end of a circle open.
    """
    if not variable.periodic:
        if not low < high:
            raise ValueError(f"state {low:.4g}:{high:.4g} of {variable.name}: expected lo < hi.")
        return (variable.values >= low) & (variable.values < high)
    width = high - low
    if not math.isfinite(width):
        raise ValueError(f"state of the angle {variable.name}: a circle needs two cuts, give both ends.")
    if width == 0 or abs(width) >= 2 * math.pi:
        raise ValueError(
            f"state {low:.4g}:{high:.4g} of the angle {variable.name}: expected two different cuts less than 2π "
            "apart (rad)."
        )
    return (variable.values - low) % (2 * math.pi) < width % (2 * math.pi)


def structure_states(
    ensemble: Ensemble,
    files: Sequence[str | os.PathLike],
    *,
    radius: float | None = None,
    atoms: RmsdAtoms = "heavy",
    nearest: bool = False,
) -> States:
    """Rows near one structure and the rest, or near two, by RMSD after superposition.

    Args:
        ensemble: With a topology and positions.
        files: One or two files of one structure each, of the same molecule; atoms are matched by residue and name.
        radius: Largest RMSD in nm that still belongs to a state; None = any, which needs `nearest` and two structures.
        atoms: What is superposed and compared: "heavy", "backbone" (N, CA, C, O), "CA" or "all".
        nearest: Whether a row within the radius of both belongs to the nearer one; otherwise that is an error.

    Raises:
        FormatError: If a file is not one structure of this molecule; says where it differs.
        ValueError: If rows lie within the radius of both structures, or an argument is wrong.
    """
    names = [Path(file).name for file in files]
    if not 1 <= len(files) <= 2:
        raise ValueError(f"structure states: expected one structure (against the rest) or two, got {len(files)}.")
    if radius is None and not (nearest and len(files) == 2):
        raise ValueError("structure states: give the radius in nm up to which a sample belongs to a structure.")
    if radius is not None and not radius > 0:
        raise ValueError(f"structure states: expected a radius > 0 nm, got {radius}.")
    if names[0] == names[-1] and len(names) == 2:
        names = [str(file) for file in files]
    topology = ensemble.to_mdtraj().topology
    chosen = rmsd_atoms(topology, atoms)
    references = [read_structure(file, topology, atoms=chosen) for file in files]
    distances = [rmsd(ensemble, reference, atoms=chosen.tolist()) for reference in references]
    rows = [d < (math.inf if radius is None else radius) for d in distances]
    if len(rows) == 2:
        both = rows[0] & rows[1] & (ensemble.weights > 0)
        if nearest:
            closer = distances[0] <= distances[1]
            rows = [rows[0] & closer, rows[1] & ~closer]
        elif both.any():
            raise ValueError(
                f"structure states: {int(both.sum())} of {len(ensemble)} samples lie within {radius:g} nm of both "
                f"{names[0]} and {names[1]}: take a smaller RMSD, or assign them to the nearest "
                "(nearest=True, --nearest)."
            )
    else:
        rows.append(~rows[0])
        names.append("rest")
    return States((names[0], names[1]), (rows[0], rows[1]), f"RMSD of {atoms} atoms", "nm")


def rmsd_atoms(topology: Any, atoms: RmsdAtoms) -> np.ndarray:
    """Indices of the atoms that an RMSD compares.

    Args:
        topology: An mdtraj.Topology.
        atoms: "heavy", "backbone" (N, CA, C, O of amino acids), "CA" or "all".

    Raises:
        ValueError: If the name is unknown or fewer than three atoms are meant, which can always be superposed.
    """
    if atoms not in SELECTIONS:
        raise ValueError(f"RMSD atoms {atoms!r}: expected one of {', '.join(SELECTIONS)}.")
    chosen = topology.select(SELECTIONS[atoms])
    if len(chosen) < 3:
        raise ValueError(
            f"RMSD atoms {atoms!r}: this molecule has {len(chosen)} of them, and at least 3 are needed; take 'heavy' "
            "or 'all'."
        )
    return chosen


def read_structure(file: str | os.PathLike, topology: Any, *, atoms: np.ndarray) -> np.ndarray:
    """Positions of one structure in the order of a topology, atoms matched by residue and name.

    Residues are matched in their order, whatever their numbers; water, and atoms that are not asked for, may be missing
    or in excess.

    Args:
        file: Anything with a topology of its own that mdtraj reads: PDB, mmCIF, GRO, MDTraj HDF5.
        topology: The mdtraj.Topology of the ensemble.
        atoms: Indices of the atoms that are needed.

    Returns:
        Positions in nm, shape (n_atoms, 3), float64; NaN where an atom was not asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        FormatError: If it cannot be read, holds several structures, or is of another molecule: the first difference
            is named.
    """
    import mdtraj

    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"structure {path}: no such file.")
    if path.suffix.lower() in {".pdb", ".ent"}:
        with path.open(encoding="utf-8", errors="replace") as lines:
            if not any(line.startswith(("ATOM", "HETATM")) for line in lines):
                raise FormatError(f"structure {path}: holds no atoms; expected a PDB file with ATOM records.")
    try:
        loaded = mdtraj.load(str(path))
    except Exception as error:  # mdtraj raises many kinds for a file that it cannot read
        raise FormatError(f"structure {path}: cannot be read ({' '.join(str(error).split()) or error!r}).") from error
    if loaded.n_frames != 1:
        raise FormatError(f"structure {path}: holds {loaded.n_frames} structures; expected one, so keep one model.")
    mine, theirs = ([r for r in t.residues if not r.is_water] for t in (topology, loaded.topology))
    for k, (x, y) in enumerate(zip(mine, theirs, strict=False)):
        if SAME_RESIDUE.get(x.name, x.name) != SAME_RESIDUE.get(y.name, y.name):
            raise FormatError(
                f"structure {path}: residue {k + 1} is {y}, but that of the ensemble is {x}; expected the "
                "same molecule."
            )
    if len(mine) != len(theirs):
        sequences = [" ".join(r.name for r in residues[:20]) for residues in (theirs, mine)]
        raise FormatError(
            f"structure {path}: has {len(theirs)} residues ({sequences[0]}), the ensemble has {len(mine)} "
            f"({sequences[1]}); expected the same molecule."
        )
    order = {residue.index: k for k, residue in enumerate(mine)}
    found = [{atom.name: atom.index for atom in residue.atoms} for residue in theirs]
    positions = np.full((topology.n_atoms, 3), np.nan)
    missing = []
    for index in atoms:
        atom = topology.atom(int(index))
        known = found[order[atom.residue.index]] if atom.residue.index in order else {}
        if atom.name in known:
            positions[index] = loaded.xyz[0, known[atom.name]]
        else:
            missing.append(atom)
    if missing:
        residue = theirs[order[missing[0].residue.index]] if missing[0].residue.index in order else None
        there = "" if residue is None else f"; {residue} has {', '.join(a.name for a in residue.atoms)}"
        raise FormatError(
            f"structure {path}: {len(missing)} of the {len(atoms)} atoms to compare are missing, first {missing[0]}"
            f"{there}. Name atoms as in the ensemble, or compare fewer: heavy, backbone or CA atoms."
        )
    if not np.isfinite(positions[atoms]).all():
        raise FormatError(f"structure {path}: some positions are NaN or inf.")
    return positions
