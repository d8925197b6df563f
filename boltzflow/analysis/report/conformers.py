"""Structures drawn by weight, superposed, for the rotatable view and the still picture of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from boltzflow.ensemble import Ensemble

__all__ = ["Conformers", "draw_conformers", "pick_conformers"]

CARTOON_RESIDUES = 8
"""Amino acids from which on a ribbon shows more than sticks."""
COLOURS = {"C": "#8a8f98", "H": "#c3c7cd", "N": "#3b6fd4", "O": "#d8432f", "S": "#c8a415", "P": "#e08a1e"}
OTHER = "#2e9e6b"


@dataclass(frozen=True, eq=False)
class Conformers:
    """A few structures of an ensemble.

    Args:
        positions: Superposed and turned to their widest view, shape (n, n_atoms, 3), nm.
        atoms: Per atom element, name, residue, number and chain, as the viewer takes them.
        bonds: Pairs of atom indices.
        rows: Of the ensemble, shape (n,).
        counts: How often each was drawn, shape (n,).
        superposed_on: In words.
        cartoon: Whether a ribbon shows them better than sticks.
        structure: Secondary structure of every residue of every structure as "h", "s" or "c"; empty without ribbon.
    """

    positions: np.ndarray
    atoms: list[dict[str, Any]]
    bonds: list[tuple[int, int]]
    rows: np.ndarray
    counts: np.ndarray
    superposed_on: str
    cartoon: bool
    structure: list[str]

    def as_dict(self, labels: list[str]) -> dict[str, Any]:
        """Plain values for the viewer, lengths in Å.

        Args:
            labels: One line for every structure.
        """
        return {
            "atoms": self.atoms,
            "bonds": self.bonds,
            "frames": [np.round(10 * x, 2).ravel().tolist() for x in self.positions],
            "labels": labels,
            "cartoon": self.cartoon,
            "structure": self.structure,
        }


def pick_conformers(ensemble: Ensemble, *, n: int = 20, seed: int = 0) -> Conformers | None:
    """Draw structures by weight and superpose them; None if the samples are no molecule with a topology.

    Args:
        ensemble: Weighted samples.
        n: Draws; a structure that is drawn several times is shown once, with its count.
        seed: Of the draws.
    """
    if ensemble.topology_json is None or "positions" not in ensemble.samples:
        return None
    import mdtraj

    numbered = ensemble._like(groups=np.arange(len(ensemble)), group_sizes=None, groups_shared=False)
    rows, counts = np.unique(numbered.resample(n, seed=seed).groups, return_counts=True)
    trajectory = ensemble.select(rows).to_mdtraj()
    topology = trajectory.topology
    atoms, superposed_on = _superposition_atoms(topology)
    trajectory.superpose(trajectory, frame=0, atom_indices=atoms)
    positions = _turned(trajectory.xyz.astype(np.float64))
    residues = sum(1 for r in topology.residues if r.is_protein and any(a.name == "CA" for a in r.atoms))
    cartoon = residues >= CARTOON_RESIDUES
    structure = []
    if cartoon:
        codes = mdtraj.compute_dssp(trajectory, simplified=True)
        structure = ["".join({"H": "h", "E": "s"}.get(code, "c") for code in frame) for frame in codes]
    listed = [
        {
            "elem": atom.element.symbol if atom.element is not None else "X",
            "atom": atom.name,
            "resn": atom.residue.name,
            "resi": atom.residue.resSeq,
            "residue": atom.residue.index,
            "chain": chr(ord("A") + atom.residue.chain.index % 26),
        }
        for atom in topology.atoms
    ]
    bonds = [(a.index, b.index) for a, b in topology.bonds]
    return Conformers(positions, listed, bonds, rows, counts, superposed_on, cartoon, structure)


def _superposition_atoms(topology: Any) -> tuple[np.ndarray, str]:
    backbone = topology.select("backbone and name N CA C")
    if backbone.size >= 3:
        return backbone, "backbone atoms N, CA and C"
    heavy = [atom.index for atom in topology.atoms if atom.element is not None and atom.element.atomic_number > 1]
    return (np.array(heavy), "all heavy atoms") if len(heavy) >= 3 else (np.arange(topology.n_atoms), "all atoms")


def _turned(positions: np.ndarray) -> np.ndarray:
    """Centred, with the longest extent along x and the shortest along the line of sight z; hands are kept."""
    centred = positions - positions.mean(axis=(0, 1))
    _, _, axes = np.linalg.svd(centred.reshape(-1, 3), full_matrices=False)
    axes[2] *= np.sign(np.linalg.det(axes)) or 1.0
    return centred @ axes.T


def draw_conformers(conformers: Conformers, *, ax: Axes) -> Axes:
    """The structures seen along z: the first in full, the others faint.

    Args:
        conformers: To be drawn.
        ax: Without frame afterwards.
    """
    bonds = np.array(conformers.bonds, dtype=int).reshape(-1, 2)
    colours = np.array([COLOURS.get(atom["elem"], OTHER) for atom in conformers.atoms])
    for k in reversed(range(len(conformers.positions))):
        x = conformers.positions[k][:, :2]
        first, second = x[bonds[:, 0]], x[bonds[:, 1]]
        middle = 0.5 * (first + second)
        halves = np.concatenate([np.stack([first, middle], axis=1), np.stack([middle, second], axis=1)])
        width, alpha = (2.2, 1.0) if k == 0 else (0.8, 0.35)
        ax.add_collection(
            LineCollection(halves, colors=colours[bonds.T.ravel()], linewidths=width, alpha=alpha, capstyle="round")
        )
        if k == 0:
            single = np.setdiff1d(np.arange(len(x)), bonds)
            ax.scatter(*x[single].T, s=14, c=colours[single])
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.set_axis_off()
    return ax
