"""Small tools on a molecule's bond graph: neighbours, components, distances and colour refinement."""

from collections import deque
from collections.abc import Sequence

import numpy as np

__all__ = [
    "colour_classes",
    "connected_components",
    "distances_from",
    "neighbour_lists",
    "smallest_ring",
    "split_by_bonds",
]


def neighbour_lists(n_atoms: int, bonds: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the sorted neighbours of every atom.

    Args:
        n_atoms: number of atoms.
        bonds: pairs of atom indices; a pair may be repeated or reversed.

    Returns:
        One sorted list of neighbours per atom.

    Raises:
        ValueError: if a bond names an atom that does not exist, or joins an atom to itself.
    """
    found: list[set[int]] = [set() for _ in range(n_atoms)]
    for i, j in bonds:
        if not (0 <= i < n_atoms and 0 <= j < n_atoms) or i == j:
            raise ValueError(
                f"bond ({i}, {j}): expected two different atoms among 0..{n_atoms - 1}; correct the bond list"
            )
        found[i].add(j)
        found[j].add(i)
    return [sorted(atoms) for atoms in found]


def distances_from(start: int, neighbours: Sequence[Sequence[int]]) -> list[int]:
    """Return the number of bonds from ``start`` to every atom (-1 where there is no path)."""
    distance = [-1] * len(neighbours)
    distance[start] = 0
    queue = deque([start])
    while queue:
        atom = queue.popleft()
        for other in neighbours[atom]:
            if distance[other] < 0:
                distance[other] = distance[atom] + 1
                queue.append(other)
    return distance


def connected_components(neighbours: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the connected components, each a sorted list of atoms, ordered by their first atom."""
    seen = [False] * len(neighbours)
    components = []
    for atom in range(len(neighbours)):
        if not seen[atom]:
            seen[atom] = True
            component = [atom]
            for member in component:
                for other in neighbours[member]:
                    if not seen[other]:
                        seen[other] = True
                        component.append(other)
            components.append(sorted(component))
    return components


def smallest_ring(i: int, j: int, neighbours: Sequence[Sequence[int]], *, largest: int) -> list[int] | None:
    """Return the atoms of a smallest ring through the bond i-j, in order from i to j; None if it has more than so many.

    Args:
        i: one atom of the bond.
        j: the other.
        neighbours: of every atom.
        largest: number of atoms up to which rings are looked for.
    """
    before = {i: i}
    shell = [i]
    for _ in range(largest - 1):
        shell = [(a, b) for a in shell for b in neighbours[a] if b not in before and (a, b) != (i, j)]
        for a, b in shell:
            before.setdefault(b, a)
        if j in before:
            path = [j]
            while path[-1] != i:
                path.append(before[path[-1]])
            return path[::-1]
        shell = list(dict.fromkeys(b for _, b in shell))
    return None


def split_by_bonds(
    neighbours: Sequence[Sequence[int]],
) -> tuple[list[int], dict[tuple[int, int], tuple[int, slice, slice]]]:
    """Find the two sides of every bond that is in no ring.

    Returns:
        All atoms in depth-first order; and by bond (i, j), i < j, the atom at the head of a branch, the part of that
        order that is the molecule, and the part that is the branch, both as slices.

    References:
        A note on finding the bridges of a graph (Tarjan, 1974).
    """
    order: list[int] = []
    entered, lowest, parent = [-1] * len(neighbours), [0] * len(neighbours), [-1] * len(neighbours)
    sides = {}
    for root in range(len(neighbours)):
        if entered[root] >= 0:
            continue
        start, branches, stack = len(order), [], [root]
        while stack:
            atom = stack[-1]
            if entered[atom] < 0:
                entered[atom] = lowest[atom] = len(order)
                order.append(atom)
            child = next((b for b in neighbours[atom] if entered[b] < 0), None)
            if child is not None:
                parent[child] = atom
                stack.append(child)
                continue
            stack.pop()
            above = parent[atom]
            reached = [lowest[b] if parent[b] == atom else entered[b] for b in neighbours[atom] if b != above]
            lowest[atom] = min([lowest[atom], *reached])
            if above >= 0 and lowest[atom] == entered[atom]:
                branches.append((atom, slice(entered[atom], len(order))))
        for head, branch in branches:
            bond = (min(head, parent[head]), max(head, parent[head]))
            sides[bond] = (head, slice(start, len(order)), branch)
    return order, sides


def colour_classes(elements: Sequence[int], neighbours: Sequence[Sequence[int]]) -> list[int]:
    """Return a colour per atom by iterated refinement of (element, colours of the neighbours).

    Atoms that an automorphism of the graph exchanges always share a colour. On trees (branches without rings) the
    converse holds too, which is the case that the label sectors rely on.

    References:
        The reduction of a graph to canonical form (Weisfeiler and Leman, 1968): one-dimensional refinement.
    """
    if not neighbours:
        return []
    n, most = len(neighbours), max(map(len, neighbours))
    padded = np.array([[*around, *[n] * (most - len(around))] for around in neighbours], dtype=np.int64)
    n_classes, colours = 0, _ranks(np.asarray(elements, dtype=np.int64))
    while n_classes < (n_classes := int(colours.max()) + 1):
        # a missing neighbour has a colour of its own
        around = np.sort(np.append(colours, n)[padded], axis=1)
        for column in around.T:
            colours = _ranks(colours * (n + 1) + column)
    return colours.tolist()


def _ranks(keys: np.ndarray) -> np.ndarray:
    """Replace each key by its rank among the distinct keys."""
    return np.unique(keys, return_inverse=True)[1].reshape(-1)
