"""Molecules on which the coordinate maps are tested."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import openmm
import torch
from openmm import app

from boltzflow.coordinates import ZMatrix, fragment_links

SYSTEMS = Path(__file__).parents[2] / "systems"


@dataclass(frozen=True)
class Molecule:
    """A bond graph with reference positions (n_atoms, 3) in nm."""

    elements: list[int]
    names: list[str]
    bonds: list[tuple[int, int]]
    positions: torch.Tensor

    def zmatrix(self) -> ZMatrix:
        n, common = len(self.elements), {"elements": self.elements}
        links = fragment_links(n, self.bonds, positions=self.positions, **common)
        return ZMatrix.from_bonds(n, self.bonds, links=links, reference=self.positions, **common)


def from_topology(topology: app.Topology, positions: list[openmm.Vec3]) -> Molecule:
    return Molecule(
        elements=[atom.element.atomic_number for atom in topology.atoms()],
        names=[atom.name for atom in topology.atoms()],
        bonds=[(one.index, two.index) for one, two in topology.bonds()],
        positions=torch.tensor([[r.x, r.y, r.z] for r in positions], dtype=torch.float64),
    )


def alanine_dipeptide() -> Molecule:
    pdb = app.PDBFile(str(SYSTEMS / "alanine_dipeptide" / "topology.pdb"))
    return from_topology(pdb.topology, pdb.positions)


def five_ring() -> Molecule:
    """Pyrrolidine-like: a puckered ring N0 C1 C2 C3 C4 with a hydrogen on N, and a methyl C5 and hydrogen on C1."""
    angle = torch.arange(5) * 2 * torch.pi / 5
    ring = torch.stack([0.13 * angle.cos(), 0.13 * angle.sin(), 0.02 * (-1.0) ** torch.arange(5)], dim=1)
    outward = ring / ring.norm(dim=1, keepdim=True)
    up = torch.tensor([0.0, 0.0, 1.0])
    hydrogens = [ring[0] + 0.1 * outward[0]]
    bonds = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 5)]
    methyl = ring[1] + 0.15 * (0.6 * outward[1] + 0.8 * up)
    atoms = [*ring, *hydrogens, methyl, ring[1] + 0.11 * (0.6 * outward[1] - 0.8 * up)]
    bonds += [(1, 6), (1, 7)]
    elements = [7, 6, 6, 6, 6, 1, 6, 1]
    for carbon in (2, 3, 4):
        for side in (1, -1):
            bonds.append((carbon, len(atoms)))
            atoms.append(ring[carbon] + 0.11 * (0.6 * outward[carbon] + 0.8 * side * up))
            elements.append(1)
    out = (methyl - ring[1]) / (methyl - ring[1]).norm()
    x = torch.linalg.cross(out, torch.tensor([0.3, -0.9, 0.2]))
    x = x / x.norm()
    y = torch.linalg.cross(out, x)
    for turn in range(3):
        phase = torch.tensor(turn * 2 * torch.pi / 3 + 0.3)
        bonds.append((6, len(atoms)))
        atoms.append(methyl + 0.11 * (0.33 * out + 0.94 * (phase.cos() * x + phase.sin() * y)))
        elements.append(1)
    names = [f"{'HC N'[0 if z == 1 else (1 if z == 6 else 3)]}{n}" for n, z in enumerate(elements)]
    return Molecule(elements, names, bonds, torch.stack(atoms).double())


def water() -> Molecule:
    positions = torch.tensor([[0.0, 0.0, 0.0], [0.096, 0.0, 0.0], [-0.024, 0.093, 0.0]], dtype=torch.float64)
    return Molecule([8, 1, 1], ["O", "H1", "H2"], [(0, 1), (0, 2)], positions)


def butyne() -> Molecule:
    """CH3-C#C-CH3: atoms 0, 4, 5, 6 are on one line, the methyl hydrogens eclipsed."""
    methyl = torch.tensor([[0.0, 0, 0], [-0.036, 0.103, 0], [-0.036, -0.05, 0.089], [-0.036, -0.05, -0.089]])
    other = methyl * torch.tensor([-1.0, 1, 1]) + torch.tensor([0.412, 0, 0])
    line = torch.tensor([[0.146, 0, 0], [0.266, 0, 0]])
    bonds = [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5), (5, 6), (6, 7), (6, 8), (6, 9)]
    names = ["C1", "H11", "H12", "H13", "C2", "C3", "C4", "H41", "H42", "H43"]
    return Molecule([6, 1, 1, 1, 6, 6, 6, 1, 1, 1], names, bonds, torch.cat([methyl, line, other]).double())


def benzonitrile() -> Molecule:
    """A planar ring of carbons 0 to 5 with hydrogens 8 to 12, and a linear nitrile 6-7 on atom 0."""
    angle = torch.arange(6, dtype=torch.float64) * torch.pi / 3
    out = torch.stack([angle.cos(), angle.sin(), torch.zeros(6, dtype=torch.float64)], dim=1)
    nitrile = out[:1] * torch.tensor([[0.283], [0.399]], dtype=torch.float64)
    bonds = [*((k, (k + 1) % 6) for k in range(6)), (0, 6), (6, 7), *((k, k + 7) for k in range(1, 6))]
    names = [*(f"C{k}" for k in range(7)), "N", *(f"H{k}" for k in range(1, 6))]
    return Molecule([6] * 7 + [7] + [1] * 5, names, bonds, torch.cat([0.139 * out, nitrile, 0.247 * out[1:]]))


def joined(*parts: Molecule, apart: float) -> Molecule:
    """Several molecules as one, each moved along (1, 2, 3) by the given distance in nm from the one before."""
    elements, names, bonds, positions = [], [], [], []
    step = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) * apart / 14**0.5
    for number, part in enumerate(parts):
        bonds += [(i + len(elements), j + len(elements)) for i, j in part.bonds]
        positions.append(part.positions + number * step)
        elements += part.elements
        names += part.names
    return Molecule(elements, names, bonds, torch.cat(positions))


def salty_water() -> Molecule:
    """Water, an ion, carbon dioxide (linear) and a second water."""
    ion = Molecule([11], ["NA"], [], torch.zeros(1, 3, dtype=torch.float64))
    line = torch.tensor([[0.0, 0, 0], [0.116, 0, 0], [-0.116, 0, 0]], dtype=torch.float64)
    return joined(water(), ion, Molecule([6, 8, 8], ["C", "O1", "O2"], [(0, 1), (0, 2)], line), water(), apart=0.4)


def tetrahedral(elements: list[int]) -> Molecule:
    """A carbon (atom 0) with four neighbours of the given elements at the corners of a tetrahedron."""
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    positions = torch.cat([torch.zeros(1, 3, dtype=torch.float64), 0.06 * corners])
    return Molecule([6, *elements], ["C", *"WXYZ"], [(0, a) for a in range(1, 5)], positions)


@cache
def protein(n_residues: int = 12) -> Molecule:
    """The first residues of OpenMM's own example file: 35 of a peptide with rings, two ions, then waters."""
    pdb = app.PDBFile(str(Path(app.__file__).parent / "data" / "test.pdb"))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    keep = set(list(next(iter(pdb.topology.chains())).residues())[:n_residues])
    modeller.delete([residue for residue in pdb.topology.residues() if residue not in keep])
    return from_topology(modeller.topology, modeller.positions.value_in_unit(openmm.unit.nanometer))


MOLECULES: dict[str, Callable[[], Molecule]] = {
    "alanine_dipeptide": alanine_dipeptide,
    "five_ring": five_ring,
    "water": water,
    "butyne": butyne,
    "benzonitrile": benzonitrile,
    "salty_water": salty_water,
    "protein": protein,
}
