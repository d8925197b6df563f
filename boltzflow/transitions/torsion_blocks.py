"""Blocks of torsions of any molecule, found on its bond graph, and what of their surroundings a move leaves alone."""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from boltzflow._typing import Bool, Float, Int, Tensor
from boltzflow.coordinates.dihedral import dihedral_angles
from boltzflow.coordinates.graph import connected_components, neighbour_lists
from boltzflow.transitions.torsion_move import TorsionAxes

__all__ = ["FAMILIES", "TorsionBlocks", "torsion_blocks"]

FAMILIES = ("side", "hinge", "pivot", "crankshaft")
"""Kinds of blocks, see `torsion_blocks`."""


@dataclass(frozen=True, eq=False)
class TorsionBlocks:
    """Groups of torsions that one move changes together, each with torsions that it is conditioned on.

    A block has up to n_coordinates coordinates. A coordinate is the torsion of its first axis; when it grows by δ,
    every axis of the coordinate is turned by its sense times δ. Rows are padded with −1.

    Args:
        atoms: Atoms a-i-j-d whose dihedral angle is the torsion of each axis i-j, shape (n_axes, 4), int64.
        moving: Atoms that turn about each axis, shape (n_axes, n_atoms), bool.
        sign: Change of the torsion when they turn right-handed about i→j, ±1, shape (n_axes,).
        axes: Axes of each block, shape (n_blocks, n_turns), int64.
        coordinate: Coordinate that each of them belongs to, the same shape.
        sense: ±1, the same shape.
        given: Pairs of axes whose torsions, added, condition a block; the second may be missing. Shape
            (n_blocks, n_given, 2), int64.
        kind: Index into `labels`: blocks of a kind share one density. Shape (n_blocks,), int64.
        labels: Names of the kinds, with their family first.

    Example:
        >>> from boltzflow.transitions import rotatable_axes
        >>> bonds = [(0, 1), (1, 2), (2, 3), (3, 4)]
        >>> chain = torsion_blocks(rotatable_axes(bonds, n_atoms=5), bonds, [6] * 5, families=("pivot",))
        >>> chain.axes.tolist(), chain.atoms.tolist()
        ([[0, 1]], [[0, 1, 2, 3], [1, 2, 3, 4]])
    """

    atoms: Int[Tensor, "n_axes 4"]
    moving: Bool[Tensor, "n_axes n_atoms"]
    sign: Float[Tensor, " n_axes"]
    axes: Int[Tensor, "n_blocks n_turns"]
    coordinate: Int[Tensor, "n_blocks n_turns"]
    sense: Int[Tensor, "n_blocks n_turns"]
    given: Int[Tensor, "n_blocks n_given 2"]
    kind: Int[Tensor, " n_blocks"]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.axes)

    @property
    def n_coordinates(self) -> int:
        """Coordinates of the largest block."""
        return int(self.coordinate.max()) + 1

    @property
    def leading(self) -> Int[Tensor, "n_blocks n_coordinates"]:
        """First axis of every coordinate, −1 where a block has fewer."""
        first = torch.full((len(self), self.n_coordinates), -1, dtype=torch.int64)
        for turn in reversed(range(self.axes.shape[1])):
            rows = torch.nonzero(self.axes[:, turn] >= 0)[:, 0]
            first[rows, self.coordinate[rows, turn]] = self.axes[rows, turn]
        return first

    def select(self, families: Iterable[str]) -> "TorsionBlocks":
        """Only the blocks of some families; the kinds keep their numbers.

        Raises:
            ValueError: If none is left.
        """
        wanted = set(families)
        keep = torch.tensor([self.labels[k].split(":")[0] in wanted for k in self.kind.tolist()], dtype=torch.bool)
        if not bool(keep.any()):
            raise ValueError(f"TorsionBlocks.select: no blocks of {sorted(wanted)}; expected some of {FAMILIES}.")
        rows = {name: getattr(self, name)[keep] for name in ("axes", "coordinate", "sense", "given", "kind")}
        return replace(self, **rows)

    def torsions(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Float[Tensor, "batch n_axes"]:
        """Torsions of all axes, rad."""
        return dihedral_angles(positions, self.atoms.to(positions.device))


def torsion_blocks(
    axes: TorsionAxes,
    bonds: Iterable[tuple[int, int]],
    elements: Sequence[int],
    *,
    families: Sequence[str] = ("side",),
    size: int = 2,
    n_given: int = 4,
) -> TorsionBlocks:
    """Blocks of torsions of a molecule, from its bond graph alone.

    Without the axes' bonds a molecule falls into rigid groups, and the axes are the edges of a tree of groups. Its
    longest path is the trunk (of a peptide, the backbone); what hangs on it are branches. The families are

    - "side": up to `size` consecutive axes of a branch, outwards (χ1 and χ2, then χ3 and χ4), or of an end of the
      trunk: little of the molecule moves;
    - "hinge": one axis of the trunk;
    - "pivot": two of the trunk with an atom in common (φ and ψ of a residue), each with a coordinate of its own;
    - "crankshaft": two of the trunk joined by one bond (ψ and the next φ), turned by opposite angles, so that beyond
      them little moves: one coordinate, and their sum stays.

    A block is conditioned on the torsions nearest to it in the tree. Blocks whose axes have the same surroundings, up
    to three bonds away, are of the same kind, wherever in the molecule they are.

    Args:
        axes: The rotatable bonds; for a peptide those of `boltzflow.simulation.soft_axes`.
        bonds: Pairs of atom indices.
        elements: Atomic number of every atom.
        families: Which blocks to make.
        size: Axes of a "side" block.
        n_given: Torsions that a block is conditioned on.

    Raises:
        ValueError: If a family is not known, `size` or `n_given` is below 1, or there is no such block.
    """
    unknown = sorted(set(families) - set(FAMILIES))
    if unknown:
        raise ValueError(f"torsion_blocks families: expected some of {FAMILIES}, got {unknown}.")
    if size < 1 or n_given < 1:
        raise ValueError(f"torsion_blocks: expected size >= 1 and n_given >= 1, got {size} and {n_given}.")
    bonds = [(int(i), int(j)) for i, j in bonds]
    neighbours = neighbour_lists(len(elements), bonds)
    tree = _Tree(axes.pairs.tolist(), bonds, len(elements))
    found = [(family, members) for family in FAMILIES if family in families for members in tree.blocks(family, size)]
    if not found:
        raise ValueError(
            f"torsion_blocks: the molecule has no block of {tuple(families)} among its {len(axes)} axes; take other "
            "families, or leave the move out."
        )
    seen = _surroundings(neighbours, elements)
    looks = ["-".join(str(s) for s in sorted((seen[i], seen[j]))) for i, j in axes.pairs.tolist()]
    names = [f"{family}:{'|'.join(looks[m] for m in members)}" for family, members in found]
    labels = sorted(set(names))
    width = max(len(members) for _, members in found)
    shape = (len(found), width)
    table, coordinate, sense = (torch.full(shape, fill, dtype=torch.int64) for fill in (-1, -1, 1))
    given = torch.full((len(found), n_given, 2), -1, dtype=torch.int64)
    for row, (family, members) in enumerate(found):
        n = len(members)
        table[row, :n] = torch.tensor(members)
        coordinate[row, :n] = 0 if family == "crankshaft" else torch.arange(n)
        nearest = [(m, -1) for m in tree.nearest(members)]
        if family == "crankshaft":
            sense[row, 1] = -1
            nearest = [tuple(members), *nearest]
        near = nearest[:n_given]
        given[row, : len(near)] = torch.tensor(near, dtype=torch.int64).reshape(-1, 2)
    atoms, sign = _torsion_atoms(axes, neighbours, elements)
    kind = torch.tensor([labels.index(name) for name in names])
    return TorsionBlocks(atoms, axes.moving.clone(), sign, table, coordinate, sense, given, kind, tuple(labels))


class _Tree:
    """Rigid groups of atoms as nodes, axes as edges."""

    def __init__(self, pairs: list[list[int]], bonds: list[tuple[int, int]], n_atoms: int) -> None:
        cut = {frozenset(pair) for pair in pairs}
        groups = connected_components(neighbour_lists(n_atoms, [b for b in bonds if frozenset(b) not in cut]))
        group_of = {atom: g for g, group in enumerate(groups) for atom in group}
        self.pairs = pairs
        self.ends = [(group_of[i], group_of[j]) for i, j in pairs]
        self.bonded = {frozenset(b) for b in bonds}
        self.edges: list[list[tuple[int, int]]] = [[] for _ in groups]  # of every group: (axis, the group beyond)
        for axis, (a, b) in enumerate(self.ends):
            self.edges[a].append((axis, b))
            self.edges[b].append((axis, a))
        self.trunks = self._trunks()

    def _walk(self, start: int) -> dict[int, list[int]]:
        """Axes on the way from a group to every group of its molecule, nearest first."""
        found, queue = {start: []}, deque([start])
        while queue:
            group = queue.popleft()
            for axis, other in self.edges[group]:
                if other not in found:
                    found[other] = [*found[group], axis]
                    queue.append(other)
        return found

    def _trunks(self) -> list[list[int]]:
        """Longest path of every molecule, from its smaller atom indices on."""
        trunks, seen = [], set()
        for group in range(len(self.edges)):
            if group in seen:
                continue
            reached = self._walk(group)
            seen |= set(reached)
            far = max(reached, key=lambda g: len(reached[g]))
            path = max(self._walk(far).values(), key=len)
            if path and min(self.pairs[path[0]]) > min(self.pairs[path[-1]]):
                path = path[::-1]
            trunks.append(path)
        return trunks

    def blocks(self, family: str, size: int) -> list[list[int]]:
        """Axes of every block of a family."""
        pairs = [pair for trunk in self.trunks for pair in itertools.pairwise(trunk)]
        if family == "hinge":
            return [[axis] for trunk in self.trunks for axis in trunk]
        if family == "pivot":
            return [[a, b] for a, b in pairs if set(self.pairs[a]) & set(self.pairs[b])]
        if family == "crankshaft":
            return [[a, b] for a, b in pairs if self._one_bond_apart(a, b)]
        ends = [trunk[:size] for trunk in self.trunks if trunk]
        ends += [trunk[: -size - 1 : -1] for trunk in self.trunks if len(trunk) > size]
        return [run[k : k + size] for run in self._branches() for k in range(0, len(run), size)] + ends

    def _one_bond_apart(self, a: int, b: int) -> bool:
        near = [{i, j} for i, j in (self.pairs[a], self.pairs[b])]
        return not near[0] & near[1] and any(frozenset((i, j)) in self.bonded for i in near[0] for j in near[1])

    def _branches(self) -> list[list[int]]:
        """Axes off the trunks in unbranched runs, outwards."""
        runs, trunk = [], {axis for path in self.trunks for axis in path}
        on_trunk = {group for axis in trunk for group in self.ends[axis]}
        stack = [(group, axis) for group in sorted(on_trunk) for axis, _ in self.edges[group] if axis not in trunk]
        while stack:
            group, axis = stack.pop()
            run = []
            while True:
                run.append(axis)
                a, b = self.ends[axis]
                group = b if group == a else a
                further = [(group, other) for other, _ in self.edges[group] if other != axis]
                if len(further) != 1:
                    break
                axis = further[0][1]
            runs.append(run)
            stack += further
        return sorted(runs)

    def nearest(self, members: Sequence[int]) -> list[int]:
        """Other axes by their distance from a block in the tree, then by their atoms."""
        distance = dict.fromkeys((group for m in members for group in self.ends[m]), 0)
        queue, found = deque(distance), {}
        while queue:
            group = queue.popleft()
            for axis, other in self.edges[group]:
                if axis not in members:
                    found.setdefault(axis, distance[group])
                if other not in distance:
                    distance[other] = distance[group] + 1
                    queue.append(other)
        return sorted(found, key=lambda axis: (found[axis], self.pairs[axis]))


def _surroundings(neighbours: list[list[int]], elements: Sequence[int], *, radius: int = 3) -> list[int]:
    """A number for what every atom sees within some bonds; equal in all places of the molecule that look alike."""
    seen = [int(z) for z in elements]
    for _ in range(radius):
        keys = [(seen[a], tuple(sorted(seen[b] for b in around))) for a, around in enumerate(neighbours)]
        ranks = {key: n for n, key in enumerate(sorted(set(keys)))}
        seen = [ranks[key] for key in keys]
    return seen


def _torsion_atoms(axes: TorsionAxes, neighbours: list[list[int]], elements: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Atoms of the torsion of every axis, the same ones wherever the chemistry is the same, and its sign."""

    def outer(at: int, other: int) -> int:
        candidates = [a for a in neighbours[at] if a != other]
        return max(candidates, key=lambda a: (elements[a], sum(elements[b] for b in neighbours[a]), -a))

    atoms, sign = [], []
    for (i, j), moving in zip(axes.pairs.tolist(), axes.moving, strict=True):
        last = outer(j, i)
        atoms.append((outer(i, j), i, j, last))
        sign.append(1.0 if bool(moving[last]) else -1.0)
    return torch.tensor(atoms, dtype=torch.int64).reshape(-1, 4), torch.tensor(sign, dtype=torch.float64)
