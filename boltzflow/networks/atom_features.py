"""AtomFeatures: what a vector field knows of the atoms of one molecule, in categories that all molecules share."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from boltzflow._typing import Bool, Int, Tensor

__all__ = ["AtomFeatures"]

ELEMENTS = "H C N O F P S Cl Br I"
RESIDUES = "ACE NME NH2 ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL"
PROTONATED = {"HID": "HIS", "HIE": "HIS", "HIP": "HIS", "CYX": "CYS", "CYM": "CYS", "ASH": "ASP", "GLH": "GLU"}
PROTONATED |= {"LYN": "LYS"}
PLACES = (
    "N CA C O CB CG CG1 CG2 CD CD1 CD2 CE CE1 CE2 CE3 CZ CZ2 CZ3 CH2 CH3 ND1 ND2 NE NE1 NE2 NZ NH1 NH2 OG OD OE OH SG "
    "SD"
)
ALIKE = {"OD1": "OD", "OD2": "OD", "OE1": "OE", "OE2": "OE", "OXT": "O", "OG1": "OG"}
END = 8
"""Residues further from an end of their chain than this are all alike."""
MOST_BONDS = 4
FAR = 4
"""Pairs of atoms that many bonds apart or more are all alike."""


@dataclass(frozen=True, eq=False)
class AtomFeatures:
    """Categories of every atom and of every pair of atoms; their meaning is the same for all molecules of one field.

    Args:
        categories: (N, kinds); 0 stands for everything that has no category of its own.
        sizes: How many categories each kind has.
        pairs: (N, N), symmetric.
        n_pairs: How many categories of pairs there are.

    Raises:
        ValueError: If a category is out of range, or shapes disagree.
    """

    categories: Int[Tensor, "atoms kinds"]
    sizes: tuple[int, ...]
    pairs: Int[Tensor, "atoms atoms"]
    n_pairs: int

    def __post_init__(self) -> None:
        n = len(self.categories)
        if self.pairs.shape != (n, n) or self.categories.shape[1:] != (len(self.sizes),):
            raise ValueError(
                f"AtomFeatures: expected categories (N, {len(self.sizes)}) and pairs (N, N), got "
                f"{(*self.categories.shape,)} and {(*self.pairs.shape,)}."
            )
        largest = [*self.categories.amax(0).tolist(), int(self.pairs.max())]
        smallest = min(int(self.categories.min()), int(self.pairs.min()))
        if smallest < 0 or any(a >= b for a, b in zip(largest, (*self.sizes, self.n_pairs), strict=True)):
            raise ValueError(
                f"AtomFeatures: expected categories from 0 to below {(*self.sizes, self.n_pairs)}, got up to {largest}."
            )

    @classmethod
    def of_particles(cls, types: Sequence[int]) -> "AtomFeatures":
        """Particles that have a type and nothing else, [0] * N for identical ones.

        Example:
            >>> AtomFeatures.of_particles([0, 0, 1]).types
            (0, 0, 1)
        """
        column = torch.as_tensor(types, dtype=torch.long)[:, None]
        pairs = torch.zeros(len(column), len(column), dtype=torch.long)
        return cls(column, (int(column.max()) + 1,), pairs, 1)

    @classmethod
    def of_topology(cls, topology: Any) -> "AtomFeatures":
        """Atoms of a molecule, above all of a peptide, of an `mdtraj.Topology` or `openmm.app.Topology` with bonds.

        Kinds are the element; the name of the heavy atom that it is or is bonded to, where oxygens of one carboxylate
        have one name; the residue, whatever its protonation; the number of bonds; and how far the residue is from
        either end of its chain. Pairs are 1, 2, 3 or more bonds apart. What is unknown to the lists of peptides falls
        into category 0, where element and bonds still tell it apart.

        Args:
            topology: With elements and bonds.

        Raises:
            ValueError: If it has more than one atom and no bonds.
        """
        atoms = list(_all(topology.atoms))
        apart = _bonds_apart(len(atoms), _all(topology.bonds))
        bonded = apart == 1
        if len(atoms) > 1 and not bonded.any():
            raise ValueError(
                "AtomFeatures: expected a topology with bonds, got none; add them to it (CONECT records, "
                "createStandardBonds)."
            )
        symbols = ["" if atom.element is None else atom.element.symbol for atom in atoms]
        ends = _places_in_chains([atom.residue for atom in atoms])
        columns = []
        for k, atom in enumerate(atoms):
            heavy = [j for j in bonded[k].nonzero()[:, 0].tolist() if symbols[j] != "H"]
            place = atoms[heavy[0]].name if symbols[k] == "H" and heavy else atom.name
            residue = PROTONATED.get(atom.residue.name, atom.residue.name)
            n_bonds = min(int(bonded[k].sum()), MOST_BONDS)
            known = (_index(symbols[k], ELEMENTS), _index(ALIKE.get(place, place), PLACES), _index(residue, RESIDUES))
            columns.append([*known, n_bonds, *ends[k]])
        sizes = (*(len(names.split()) + 1 for names in (ELEMENTS, PLACES, RESIDUES)), MOST_BONDS + 1, END + 1, END + 1)
        return cls(torch.tensor(columns), sizes, apart, FAR + 1)

    @property
    def types(self) -> tuple[int, ...]:
        """A number per atom; any permutation of atoms that share it leaves all features as they are."""
        found: list[int] = []
        for k in range(len(self.categories)):
            twin = next((j for j in range(k) if self._exchangeable(j, k)), None)
            found.append(max(found, default=-1) + 1 if twin is None else found[twin])
        return tuple(found)

    def _exchangeable(self, a: int, b: int) -> bool:
        """Whether the transposition of two atoms changes no feature; all of a class then make any permutation of it."""
        others = torch.ones(len(self.pairs), dtype=torch.bool)
        others[[a, b]] = False
        same = torch.equal(self.categories[a], self.categories[b])
        return same and torch.equal(self.pairs[a][others], self.pairs[b][others])

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.categories)


def _all(what: Any) -> Iterable[Any]:
    """Atoms or bonds: properties of one package, methods of the other."""
    return what() if callable(what) else what


def _index(name: str, names: str) -> int:
    """Place of a name in a list, from 1; 0 = not there."""
    known = names.split()
    return known.index(name) + 1 if name in known else 0


def _bonds_apart(n: int, bonds: Iterable[Any]) -> Int[Tensor, "atoms atoms"]:
    """Number of bonds between any two atoms, at most FAR, which also stands for no path; 0 on the diagonal."""
    bonded = torch.zeros(n, n)
    for bond in bonds:
        a, b = bond[0].index, bond[1].index
        bonded[a, b] = bonded[b, a] = 1.0
    reached: Bool[Tensor, "atoms atoms"] = torch.eye(n, dtype=torch.bool)
    apart = torch.full((n, n), FAR).fill_diagonal_(0)
    for k in range(1, FAR):
        new = (reached.float() @ bonded > 0) & ~reached
        apart[new & (apart == FAR)] = k
        reached = reached | new
    return apart


def _places_in_chains(residues: Sequence[Any]) -> list[tuple[int, int]]:
    """How far the residue of every atom is from the first and from the last one of its chain, from 1; at most END."""
    chains = defaultdict(list)
    for index, chain in dict.fromkeys((residue.index, residue.chain.index) for residue in residues):
        chains[chain].append(index)
    ends = {}
    for members in chains.values():
        for k, index in enumerate(members):
            ends[index] = (min(k + 1, END), min(len(members) - k, END))
    return [ends[residue.index] for residue in residues]
