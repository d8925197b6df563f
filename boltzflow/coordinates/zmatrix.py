"""A Z-matrix from the bond graph of one or several molecules, sorted into levels placed in one batched step each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from boltzflow._typing import Float, Tensor
from boltzflow.coordinates.graph import connected_components, neighbour_lists
from boltzflow.coordinates.placement import ON_A_LINE, Row, choose_seed, place_atoms, sine_of_angle

__all__ = ["ZMatrix"]


@dataclass(frozen=True, eq=False)
class ZMatrix:
    """Which bond, angle and torsion places each atom of a system of molecules.

    The first three atoms of ``order``, the *seed* i-j-k, fix the frame. They are two bonds in the middle of the
    molecule; j is a graph centre. The bonds that lead away from j form a spanning tree, so that a bond that closes a
    ring is simply no coordinate. Every further atom a hangs on its tree parent b by the bond a-b, the angle a-b-c and
    the torsion a-b-c-d. Of all atoms placed about one axis (b, c) exactly one carries the *proper* torsion, measured
    from an atom d of the chain beyond c; the others are *siblings*, whose torsion is measured from that first atom
    (d = first sibling). Proper torsions are the soft coordinates; sibling torsions are stiff and unimodal. About the
    axis (j, i) of the seed, k takes the part of the first sibling, so that all further neighbours of j are siblings.

    *Several molecules.* A link p-q is a pseudo-bond from an atom p that is placed already to the first atom q of
    another fragment. Its length, the angles q-p-c and r-q-p and the torsions q-p-c-d, r-q-p-c and s-q-r-p (with two
    further atoms r and s of the fragment) place and orient the fragment; these torsions are proper. Every other
    coordinate of the fragment is one of its own, as if it were alone.

    *Linear groups.* With a ``reference``, an atom a in line with b and c (a nitrile N, the second half of an alkyne) is
    placed by an angle and a torsion about an axis from b to the next atom of the chain that is not on the line. Such a
    torsion is stiff and not proper. An axis b-c whose d would be on the line takes its d from further along the chain.
    A system of which all atoms lie on one line has no such coordinates.

    Attributes:
        n_atoms: number of atoms.
        elements: atomic numbers; all 0 if they were not given.
        bonds: the bond list, sorted, without repetitions.
        links: the pseudo-bonds between fragments, sorted; no bonds in any chemical sense.
        order: (n_atoms,) atoms in the order of placement; ``order[:3]`` is the seed (i, j, k).
        torsion_atoms: (n_atoms - 3, 4) atoms (a, b, c, d) of each torsion; a = ``order[3:]``.
        proper: (n_atoms - 3,) True for the proper (soft) torsions, False for the siblings.
        first_sibling: (n_atoms - 3,) row of the first sibling's torsion; -1 where there is none: for proper torsions,
            for atoms in line with an axis, and for the neighbours of j, whose reference is k.
        level_sizes: atoms per dependency level after the seed; level by level they fill ``order[3:]``.
        parent_position: (n_atoms - 3,) place of b within the level before (level 0: the seed) where the axis is the one
            along which b itself was placed; -1 for other axes, which come last in their level.
        axis_atoms: (n_atoms - 3, 3) atoms b, c and that from which torsions about this axis are counted: d, or for a
            sibling the d of the first sibling.
    """

    n_atoms: int
    elements: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...]
    links: tuple[tuple[int, int], ...]
    order: np.ndarray
    torsion_atoms: np.ndarray
    proper: np.ndarray
    first_sibling: np.ndarray
    level_sizes: tuple[int, ...]
    parent_position: np.ndarray
    axis_atoms: np.ndarray

    @classmethod
    def from_bonds(
        cls,
        n_atoms: int,
        bonds: Sequence[tuple[int, int]],
        *,
        elements: Sequence[int] | None = None,
        links: Sequence[tuple[int, int]] = (),
        reference: Float[Tensor, "n_atoms 3"] | None = None,
        seed: tuple[int, int, int] | None = None,
        backbone: Sequence[int] = (),
        names: Sequence[str] | None = None,
    ) -> "ZMatrix":
        """Build the Z-matrix of a molecule, or of several that links connect.

        Args:
            n_atoms: number of atoms, at least 3.
            bonds: pairs of atom indices.
            elements: atomic numbers. Heavy atoms are preferred for the seed and for the proper torsions; without
                elements all atoms count as heavy.
            links: pairs of atom indices that join the fragments into one tree, as ``fragment_links`` finds them.
            reference: (n_atoms, 3) nm, a relaxed structure in which linear groups are recognised; without one no
                arrangement is taken to be linear.
            seed: the atoms (i, j, k), with bonds i-j and j-k; by default a graph centre and its two heaviest branches.
            backbone: atoms that are preferred for the seed and for proper torsions (for a protein N, CA and C, which
                makes the proper torsions phi, psi and omega whatever the side chains).
            names: atom names for errors; by default the atom indices.

        Returns:
            The Z-matrix; the result is the same for the same arguments.

        Raises:
            ValueError: if there are fewer than three atoms, if bonds and links do not connect them (the error lists the
                components), if a bond, a link or the seed is impossible, if ``elements`` or ``reference`` have the
                wrong length, or if atoms lie on a line that no other atom helps to leave (they are listed).
        """
        if n_atoms < 3:
            raise ValueError(f"n_atoms: a Z-matrix needs at least 3 atoms, got {n_atoms}; use Cartesian coordinates")
        numbers = tuple(int(z) for z in elements) if elements is not None else (0,) * n_atoms
        if len(numbers) != n_atoms:
            raise ValueError(f"elements: expected {n_atoms} atomic numbers, got {len(numbers)}")
        if reference is not None and tuple(reference.shape) != (n_atoms, 3):
            raise ValueError(f"reference: expected shape {(n_atoms, 3)}, got {tuple(reference.shape)}")
        label = [str(a) for a in range(n_atoms)] if names is None else [str(name) for name in names]
        neighbours = neighbour_lists(n_atoms, bonds)
        links = tuple(sorted({(min(p, q), max(p, q)) for p, q in links}))
        _require_tree(neighbours, links, label)
        joined = neighbour_lists(n_atoms, [*bonds, *links])
        known_links = {pair for p, q in links for pair in ((p, q), (q, p))}

        def is_link(a: int, b: int) -> bool:
            return (a, b) in known_links

        backbone = set(backbone)
        preference = [(a not in backbone, numbers[a] == 1) for a in range(n_atoms)]
        sine = sine_of_angle(reference)
        if seed is not None and not (len(set(seed)) == 3 and {seed[0], seed[2]} <= set(joined[seed[1]])):
            raise ValueError(f"seed {seed}: expected atoms (i, j, k) with bonds i-j and j-k; name three such atoms")
        if seed is None:
            seed = choose_seed(joined, is_link, preference, numbers, sine)
        if seed is None or sine(*seed) < ON_A_LINE:
            raise _on_a_line(label, range(n_atoms) if seed is None else seed)
        levels, unplaced = place_atoms(joined, seed, is_link, preference, numbers, sine)
        if unplaced:
            raise _on_a_line(label, sorted(set(range(n_atoms)) - {*seed, *(row.a for rows in levels for row in rows)}))
        return cls._of_levels(neighbours, links, numbers, seed, levels)

    @classmethod
    def _of_levels(
        cls,
        neighbours: list[list[int]],
        links: tuple[tuple[int, int], ...],
        numbers: tuple[int, ...],
        seed: tuple[int, int, int],
        levels: list[list[Row]],
    ) -> "ZMatrix":
        i, j, k = seed
        # The axis and the place, within the level before, of every atom that the next level may inherit.
        axis, previous = {i: (j, k), j: (i, k), k: (j, i)}, {i: 0, j: 1, k: 2}
        rows: list[Row] = []
        parent_position: list[int] = []
        for level in levels:
            place = [previous[row.b] if axis[row.b] == (row.c, row.d) and row.b in previous else -1 for row in level]
            inherited_first = sorted(range(len(level)), key=lambda n: place[n] < 0)
            previous = {level[n].a: m for m, n in enumerate(inherited_first)}
            axis.update({row.a: (row.b, row.c) for row in level})
            rows += [level[n] for n in inherited_first]
            parent_position += [place[n] for n in inherited_first]
        row_of = {row.a: n for n, row in enumerate(rows)}
        torsion_atoms = [(row.a, row.b, row.c, row.d if row.first < 0 else row.first) for row in rows]
        return cls(
            n_atoms=len(neighbours),
            elements=numbers,
            bonds=tuple((a, b) for a in range(len(neighbours)) for b in neighbours[a] if a < b),
            links=links,
            order=np.array([*seed, *row_of]),
            torsion_atoms=np.array(torsion_atoms, dtype=np.int64).reshape(-1, 4),
            proper=np.array([row.proper for row in rows], dtype=bool),
            first_sibling=np.array([row_of.get(row.first, -1) for row in rows], dtype=np.int64),
            level_sizes=tuple(len(level) for level in levels),
            parent_position=np.array(parent_position, dtype=np.int64),
            axis_atoms=np.array([row[1:4] for row in rows], dtype=np.int64).reshape(-1, 3),
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

    @property
    def fragments(self) -> np.ndarray:
        """(n_atoms,) number of the fragment of every atom, in the order of the fragments' first atoms."""
        number = np.empty(self.n_atoms, dtype=np.int64)
        for n, atoms in enumerate(connected_components(neighbour_lists(self.n_atoms, self.bonds))):
            number[atoms] = n
        return number

    @property
    def linked_bonds(self) -> np.ndarray:
        """(n_atoms - 1,) True where the bond coordinate is the length of a link."""
        fragment = self.fragments[self.bond_atoms]
        return fragment[:, 0] != fragment[:, 1]

    @property
    def linked_angles(self) -> np.ndarray:
        """(n_atoms - 2,) True where the angle coordinate is one between fragments."""
        fragment = self.fragments[self.angle_atoms]
        return (fragment != fragment[:, :1]).any(1)

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


def _require_tree(neighbours: list[list[int]], links: tuple[tuple[int, int], ...], label: list[str]) -> None:
    """Raise unless the links join the fragments into one tree."""
    fragments = connected_components(neighbours)
    fragment_of = {a: number for number, atoms in enumerate(fragments) for a in atoms}
    outside = [pair for pair in links if not set(pair) <= set(fragment_of)]
    if outside:
        raise ValueError(f"links {outside}: expected pairs of atoms among 0..{len(neighbours) - 1}")
    pairs = [(fragment_of[p], fragment_of[q]) for p, q in links]
    groups = connected_components(neighbour_lists(len(fragments), [pair for pair in pairs if pair[0] != pair[1]]))
    if len(groups) > 1:
        listed = "; ".join(f"{{{', '.join(label[a] for f in group for a in fragments[f])}}}" for group in groups[1:])
        raise ValueError(
            f"bonds: expected one connected molecule, found {len(groups)} components; the atoms not connected to atom "
            f"{label[0]} are {listed}. Add the missing bonds, or pass links=fragment_links(...) for several molecules"
        )
    if len(links) != len(fragments) - 1:
        raise ValueError(
            f"links: {len(fragments)} fragments need {len(fragments) - 1} links that join them into a tree, got "
            f"{len(links)} ({links}); use those of fragment_links"
        )


def _on_a_line(label: list[str], atoms: Iterable[int]) -> ValueError:
    return ValueError(
        f"atoms on one line cannot be placed by bonds, angles and torsions: {', '.join(label[a] for a in atoms)}. A "
        "linear molecule has no internal coordinates of this kind; use Cartesian coordinates for it, or add the "
        "molecule that it belongs to"
    )
