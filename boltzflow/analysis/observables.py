"""Collective variables: torsions, distances, RMSD, radius of gyration, or a coordinate of a field, for every row."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mdtraj
import numpy as np

from boltzflow.ensemble import Ensemble
from boltzflow.errors import UnknownNameError, nearest

__all__ = [
    "CollectiveVariable",
    "collective_variable",
    "distance",
    "radius_of_gyration",
    "rmsd",
    "torsion",
    "torsion_atoms",
]

NAMED_TORSIONS = {
    "phi": mdtraj.geometry.indices_phi,
    "psi": mdtraj.geometry.indices_psi,
    "omega": mdtraj.geometry.indices_omega,
    "chi1": mdtraj.geometry.indices_chi1,
    "chi2": mdtraj.geometry.indices_chi2,
    "chi3": mdtraj.geometry.indices_chi3,
    "chi4": mdtraj.geometry.indices_chi4,
}


@dataclass(frozen=True, eq=False)
class CollectiveVariable:
    """One number per row of an ensemble.

    Args:
        name: As it was asked for, for titles and reports.
        values: Shape (n,), float64.
        unit: "rad", "nm" or "".
        periodic: Whether it is an angle, in [−π, π).
    """

    name: str
    values: np.ndarray
    unit: str = ""
    periodic: bool = False


def torsion_atoms(topology: Any, name: str) -> tuple[int, int, int, int]:
    """Atoms of a named torsion.

    Args:
        topology: An mdtraj.Topology.
        name: phi, psi, omega or chi1 … chi4 as mdtraj defines them (an omega joins two Cα, so caps have none),
            followed by ":k" for the k-th of its kind from 1 where there are several.

    Raises:
        UnknownNameError: If the kind is unknown or the molecule has none.
        ValueError: If there are several and none is named, or not that many.
    """
    kind, _, number = name.partition(":")
    if kind not in NAMED_TORSIONS:
        raise UnknownNameError(f"torsion {name!r} is unknown; {nearest(kind, NAMED_TORSIONS)}")
    quartets = NAMED_TORSIONS[kind](topology).reshape(-1, 4)
    if len(quartets) == 0:
        raise UnknownNameError(f"torsion {name!r}: this molecule has no {kind}.")
    if not number and len(quartets) > 1:
        raise ValueError(f"torsion {name!r}: there are {len(quartets)}; pick '{kind}:1' … '{kind}:{len(quartets)}'.")
    k = _integers(name, number)[0] if number else 1
    if not 1 <= k <= len(quartets):
        raise ValueError(f"torsion {name!r}: expected '{kind}:1' … '{kind}:{len(quartets)}'.")
    return tuple(int(i) for i in quartets[k - 1])


def torsion(ensemble: Ensemble, atoms: str | Sequence[int]) -> np.ndarray:
    """A torsion angle in rad, in [−π, π), shape (n,), float64.

    Args:
        ensemble: With a topology and a field "positions" in nm.
        atoms: A name as for `torsion_atoms`, or four atom indices.
    """
    trajectory = ensemble.to_mdtraj()
    if isinstance(atoms, str):
        quartet = torsion_atoms(trajectory.topology, atoms)
    else:
        quartet = _atoms(atoms, 4, trajectory.n_atoms)
    angle = mdtraj.compute_dihedrals(trajectory, np.array([quartet]), periodic=False)[:, 0].astype(np.float64)
    # float32 may round π up to just outside
    return np.where(angle >= math.pi, angle - 2 * math.pi, angle)


def distance(ensemble: Ensemble, atoms: Sequence[int]) -> np.ndarray:
    """Distance of two atoms in nm, shape (n,), float64."""
    trajectory = ensemble.to_mdtraj()
    pair = _atoms(atoms, 2, trajectory.n_atoms)
    return mdtraj.compute_distances(trajectory, np.array([pair]), periodic=False)[:, 0].astype(np.float64)


def rmsd(ensemble: Ensemble, reference: np.ndarray, *, atoms: Sequence[int] | None = None) -> np.ndarray:
    """Root-mean-square deviation in nm from one structure after superposition, shape (n,), float64.

    Args:
        ensemble: With a topology and a field "positions" in nm.
        reference: Positions (n_atoms, 3) in nm.
        atoms: Atoms to superpose and compare; None = all but hydrogens.
    """
    trajectory = ensemble.to_mdtraj()
    if np.shape(reference) != (trajectory.n_atoms, 3):
        raise ValueError(
            f"rmsd: expected a reference of shape ({trajectory.n_atoms}, 3) in nm, got {np.shape(reference)}."
        )
    chosen = trajectory.topology.select("element != H") if atoms is None else np.asarray(atoms, dtype=int)
    frame = mdtraj.Trajectory(np.asarray(reference, dtype=np.float32)[None], trajectory.topology)
    return mdtraj.rmsd(trajectory, frame, atom_indices=chosen).astype(np.float64)


def radius_of_gyration(ensemble: Ensemble) -> np.ndarray:
    """Mass-weighted radius of gyration in nm, shape (n,), float64."""
    trajectory = ensemble.to_mdtraj()
    masses = np.array([atom.element.mass for atom in trajectory.topology.atoms])
    # mdtraj.compute_rg weighs by mass but centres on the unweighted mean
    centred = trajectory.xyz - mdtraj.compute_center_of_mass(trajectory)[:, None]
    return np.sqrt(np.sum(centred**2, axis=2) @ (masses / masses.sum()))


def collective_variable(ensemble: Ensemble, spec: str) -> CollectiveVariable:
    """A collective variable from text, as on the command line.

    Args:
        ensemble: Its rows are measured.
        spec: "phi", "psi:2", "chi1", "torsion:4,6,8,14", "distance:0,5", "rg", "reduced_energy", or a field of the
            samples with the index of the entry, "x:0". Atoms are indices from 0, or names such as "ALA2-CA".

    Raises:
        UnknownNameError: If the name is unknown.
    """
    kind, _, rest = spec.partition(":")
    if kind in NAMED_TORSIONS:
        return CollectiveVariable(spec, torsion(ensemble, spec), "rad", periodic=True)
    if kind == "torsion":
        return CollectiveVariable(spec, torsion(ensemble, _named_atoms(ensemble, spec, rest)), "rad", periodic=True)
    if kind == "distance":
        return CollectiveVariable(spec, distance(ensemble, _named_atoms(ensemble, spec, rest)), "nm")
    if kind == "rg":
        return CollectiveVariable(spec, radius_of_gyration(ensemble), "nm")
    if kind == "reduced_energy":
        return CollectiveVariable(spec, ensemble.reduced_energies, "kT")
    if kind in ensemble.samples:
        return _field(ensemble, spec, kind, rest)
    known = [*NAMED_TORSIONS, "torsion", "distance", "rg", "reduced_energy", *ensemble.samples]
    raise UnknownNameError(f"collective variable {spec!r} is unknown; {nearest(kind, known)}")


def _field(ensemble: Ensemble, spec: str, name: str, rest: str) -> CollectiveVariable:
    flat = ensemble.samples[name].reshape(len(ensemble), -1).astype(np.float64)
    index = _integers(spec, rest) if rest else [0]
    if len(index) != 1 or not 0 <= index[0] < flat.shape[1] or (flat.shape[1] > 1 and not rest):
        raise ValueError(f"collective variable {spec!r}: name one entry, '{name}:0' … '{name}:{flat.shape[1] - 1}'.")
    values, periodic = flat[:, index[0]], ensemble.spaces[name].kind == "circle"
    if periodic:
        values = (values + math.pi) % (2 * math.pi) - math.pi
    return CollectiveVariable(spec, values, "rad" if periodic else "", periodic=periodic)


def _named_atoms(ensemble: Ensemble, spec: str, text: str) -> list[int]:
    """Atom indices from "4,6" or "ALA2-CA,NME3-C", residue and atom named as in the topology."""
    if re.fullmatch(r"\d+(,\d+)*", text):
        return [int(i) for i in text.split(",")]
    if not text or not all(re.fullmatch(r"\d+|[^-,\s]+-[^,\s]+", token) for token in text.split(",")):
        raise ValueError(
            f"collective variable {spec!r}: expected atom indices or names like ALA2-CA separated by commas, got "
            f"{text!r}."
        )
    indices: dict[str, list[int]] = {}
    for atom in ensemble.to_mdtraj().topology.atoms:
        indices.setdefault(str(atom), []).append(atom.index)
    found = []
    for token in text.split(","):
        if token.isdigit():
            found.append(int(token))
            continue
        if token not in indices:
            raise UnknownNameError(
                f"collective variable {spec!r}: this molecule has no atom {token!r}; {nearest(token, indices)}"
            )
        if len(indices[token]) > 1:
            raise ValueError(
                f"collective variable {spec!r}: there are {len(indices[token])} atoms {token!r} (several chains); name "
                f"one by its index, {' or '.join(map(str, indices[token]))}."
            )
        found.append(indices[token][0])
    return found


def _integers(spec: str, text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"collective variable {spec!r}: expected indices separated by commas, got {text!r}.")
    return [int(i) for i in text.split(",")]


def _atoms(atoms: Sequence[int], count: int, n_atoms: int) -> tuple[int, ...]:
    chosen = tuple(int(i) for i in atoms)
    if len(set(chosen)) != count or len(chosen) != count or not all(0 <= i < n_atoms for i in chosen):
        raise ValueError(f"expected {count} different atom indices in 0 … {n_atoms - 1}, got {list(atoms)}.")
    return chosen
