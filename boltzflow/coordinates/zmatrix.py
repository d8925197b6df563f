"""A Z-matrix from the bond graph of one molecule, sorted into levels that are placed in one batched step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boltzflow.coordinates.graph import connected_components, distances_from, neighbour_lists

__all__ = ["ZMatrix"]


@dataclass(frozen=True, eq=False)
class ZMatrix:
    """Which bond, angle and torsion places each atom of one connected molecule.

    The first three atoms of ``order``, the *seed* i-j-k, fix the frame. They are two bonds in the middle of the
    molecule; j is a graph centre. The bonds that lead away from j form a spanning tree, so that a bond that closes a
    ring is simply no coordinate. Every further atom a hangs on its tree parent b by the bond a-b, the angle a-b-c and
    the torsion a-b-c-d. Of all atoms placed about one axis (b, c) exactly one carries the *proper* torsion, measured
    from an atom d of the chain beyond c; the others are *siblings*, whose torsion is measured from that first atom
    (d = first sibling). Proper torsions are the soft coordinates; sibling torsions are stiff and unimodal. About the
    axis (j, i) of the seed, k takes the part of the first sibling, so that all further neighbours of j are siblings.

    In a linear arrangement (a-b-c or b-c-d collinear) the torsion is not defined; such molecules are not supported.

    Attributes:
        n_atoms: number of atoms.
        elements: atomic numbers; all 0 if they were not given.
        bonds: the bond list, sorted, without repetitions.
        order: (n_atoms,) atoms in the order of placement; ``order[:3]`` is the seed (i, j, k).
        torsion_atoms: (n_atoms - 3, 4) atoms (a, b, c, d) of each torsion; a = ``order[3:]``.
        proper: (n_atoms - 3,) True for the proper (soft) torsions, False for the siblings.
        first_sibling: (n_atoms - 3,) row of the first sibling's torsion; -1 for proper torsions and for the
            neighbours of j, whose reference k has none.
        level_sizes: atoms per dependency level after the seed; level by level they fill ``order[3:]``.
        parent_position: (n_atoms - 3,) place of b within the level before (level 0: the seed).
    """

    n_atoms: int
    elements: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...]
    order: np.ndarray
    torsion_atoms: np.ndarray
    proper: np.ndarray
    first_sibling: np.ndarray
    level_sizes: tuple[int, ...]
    parent_position: np.ndarray

    @classmethod
    def from_bonds(
        cls,
        n_atoms: int,
        bonds: Sequence[tuple[int, int]],
        *,
        elements: Sequence[int] | None = None,
        seed: tuple[int, int, int] | None = None,
        backbone: Sequence[int] = (),
    ) -> "ZMatrix":
        """Build the Z-matrix of a connected molecule.

        Args:
            n_atoms: number of atoms, at least 3.
            bonds: pairs of atom indices.
            elements: atomic numbers. Heavy atoms are preferred for the seed and for the proper torsions; without
                elements all atoms count as heavy.
            seed: the atoms (i, j, k), with bonds i-j and j-k; by default a graph centre and its two heaviest branches.
            backbone: atoms that are preferred for the seed and for proper torsions (for a protein N, CA and C, which
                makes the proper torsions phi, psi and omega whatever the side chains).

        Returns:
            The Z-matrix; the result is the same for the same arguments.

        Raises:
            ValueError: if there are fewer than three atoms, if the molecule is not connected (the error lists the
                components), if a bond or the seed is impossible, or if ``elements`` has the wrong length.
        """
        if n_atoms < 3:
            raise ValueError(f"n_atoms: a Z-matrix needs at least 3 atoms, got {n_atoms}; use Cartesian coordinates")
        numbers = tuple(int(z) for z in elements) if elements is not None else (0,) * n_atoms
        if len(numbers) != n_atoms:
            raise ValueError(f"elements: expected {n_atoms} atomic numbers, got {len(numbers)}")
        neighbours = neighbour_lists(n_atoms, bonds)
        _require_connected(neighbours)
        preference = [(a not in backbone, numbers[a] == 1) for a in range(n_atoms)]
        if seed is None:
            seed = _choose_seed(neighbours, preference, numbers)
        elif len(set(seed)) != 3 or seed[0] not in neighbours[seed[1]] or seed[2] not in neighbours[seed[1]]:
            raise ValueError(f"seed {seed}: expected atoms (i, j, k) with bonds i-j and j-k; name three such atoms")
        return cls._assemble(neighbours, numbers, seed, preference)

    @classmethod
    def _assemble(
        cls,
        neighbours: list[list[int]],
        numbers: tuple[int, ...],
        seed: tuple[int, int, int],
        preference: list[tuple[bool, bool]],
    ) -> "ZMatrix":
        i, j, k = seed
        children = _spanning_tree(j, neighbours)
        size = _branch_sizes(j, children)
        # (c, d) for the children of each atom; the seed's are set by hand, all others inherit (parent, parent's c).
        axis = {i: (j, k), j: (i, k), k: (j, i)}
        order, rows, proper, first_sibling, parent_position = [i, j, k], [], [], [], []
        row_of: dict[int, int] = {}
        level_sizes = []
        previous = [i, j, k]
        while True:
            level = []
            for b in previous:
                siblings = sorted(
                    (a for a in children[b] if a not in seed),
                    key=lambda a: (*preference[a], -size[a], -numbers[a], a),
                )
                level += [(a, b, n == 0 and b != j, siblings[0]) for n, a in enumerate(siblings)]
            if not level:
                break
            place = {b: n for n, b in enumerate(previous)}
            for a, *_ in level:
                row_of[a] = len(row_of)
            for a, b, is_proper, first in level:
                c, d = axis[b]
                axis[a] = (b, c)
                sibling_of_first = not is_proper and b != j
                rows.append((a, b, c, first if sibling_of_first else d))
                proper.append(is_proper)
                first_sibling.append(row_of[first] if sibling_of_first else -1)
                parent_position.append(place[b])
            order += [a for a, *_ in level]
            level_sizes.append(len(level))
            previous = [a for a, *_ in level]
        return cls(
            n_atoms=len(neighbours),
            elements=numbers,
            bonds=tuple((a, b) for a in range(len(neighbours)) for b in neighbours[a] if a < b),
            order=np.array(order),
            torsion_atoms=np.array(rows, dtype=np.int64).reshape(-1, 4),
            proper=np.array(proper, dtype=bool),
            first_sibling=np.array(first_sibling, dtype=np.int64),
            level_sizes=tuple(level_sizes),
            parent_position=np.array(parent_position, dtype=np.int64),
        )

    @property
    def seed(self) -> tuple[int, int, int]:
        """The atoms (i, j, k) that fix the frame."""
        i, j, k = self.order[:3].tolist()
        return i, j, k

    @property
    def bond_atoms(self) -> np.ndarray:
        """(n_atoms - 1, 2) atoms of each bond coordinate: i-j, j-k, then a-b of every further atom."""
        i, j, k = self.seed
        return np.concatenate([np.array([[i, j], [j, k]]), self.torsion_atoms[:, :2]])

    @property
    def angle_atoms(self) -> np.ndarray:
        """(n_atoms - 2, 3) atoms of each angle coordinate: i-j-k, then a-b-c of every further atom."""
        return np.concatenate([self.order[None, :3], self.torsion_atoms[:, :3]])

    def describe(self, names: Sequence[str] | None = None) -> str:
        """Return a table of the levels and of every atom's references, for reports.

        Args:
            names: atom names; by default the atom indices.

        Returns:
            Text of one line for the seed and one per further atom.
        """
        label = [str(a) for a in range(self.n_atoms)] if names is None else [str(name) for name in names]
        lines = [
            f"{self.n_atoms} atoms, {len(self.level_sizes)} levels of {list(self.level_sizes)} atoms, "
            f"{int(self.proper.sum())} proper torsions",
            "seed " + "-".join(label[a] for a in self.seed),
        ]
        start = 0
        for number, count in enumerate(self.level_sizes, start=1):
            for row in range(start, start + count):
                kind = "proper" if self.proper[row] else "sibling"
                lines.append(f"level {number}: {'-'.join(label[a] for a in self.torsion_atoms[row])} {kind}")
            start += count
        return "\n".join(lines)


def _require_connected(neighbours: list[list[int]]) -> None:
    components = connected_components(neighbours)
    if len(components) > 1:
        listed = "; ".join(f"{{{', '.join(map(str, c))}}}" for c in components[1:])
        raise ValueError(
            f"bonds: expected one connected molecule, found {len(components)} components; the atoms not connected to "
            f"atom 0 are {listed}. Add the missing bonds, or describe each molecule by its own Z-matrix"
        )


def _choose_seed(
    neighbours: list[list[int]], preference: list[tuple[bool, bool]], numbers: tuple[int, ...]
) -> tuple[int, int, int]:
    """Choose as j a centre of the graph (fewest levels) and as i and k its preferred, then largest branches."""

    def n_heavy(atom: int) -> int:
        return min(2, sum(numbers[b] != 1 for b in neighbours[atom]))

    candidates = []
    for atom in range(len(neighbours)):
        if len(neighbours[atom]) >= 2:
            distance = distances_from(atom, neighbours)
            candidates.append((-n_heavy(atom), preference[atom], max(distance), sum(distance), atom))
    j = min(candidates)[-1]
    size = _branch_sizes(j, _spanning_tree(j, neighbours))
    i, k = sorted(neighbours[j], key=lambda a: (*preference[a], -size[a], -numbers[a], a))[:2]
    return i, j, k


def _spanning_tree(root: int, neighbours: list[list[int]]) -> list[list[int]]:
    """Return the children of every atom in a breadth-first tree (ties: the parent with the lower index)."""
    distance = distances_from(root, neighbours)
    children: list[list[int]] = [[] for _ in neighbours]
    for atom, around in enumerate(neighbours):
        if atom != root:
            children[min(b for b in around if distance[b] == distance[atom] - 1)].append(atom)
    return children


def _branch_sizes(root: int, children: list[list[int]]) -> list[int]:
    """Return the number of atoms in the branch that starts at every atom."""
    size = [1] * len(children)
    order = [root]
    for atom in order:
        order += children[atom]
    for atom in reversed(order):
        size[atom] += sum(size[child] for child in children[atom])
    return size
