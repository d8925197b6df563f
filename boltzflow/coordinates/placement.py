"""The order in which a Z-matrix places atoms, and the atoms that each is placed against."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from boltzflow._typing import Float, Tensor
from boltzflow.coordinates.graph import distances_from

__all__ = ["ON_A_LINE", "Row", "bent", "choose_seed", "place_atoms", "sine_of_angle"]

# Three bonded atoms count as straight within this angle of a line: thermal bends of a linear group stay below it.
_STRAIGHT = math.sin(math.radians(20.0))
# Atoms farther along the chain may be nearer to the line; the least in line is taken, but none within the last angle.
_NEARLY_STRAIGHT = math.sin(math.radians(12.0))
ON_A_LINE = math.sin(math.radians(5.0))

Sine = Callable[[int, int, int], float]


class Row(NamedTuple):
    """How one atom is placed: bond a-b, angle a-b-c, and a torsion about b-c measured from d."""

    a: int
    b: int
    c: int
    d: int
    first: int
    """The first sibling, whose torsion this one is relative to; -1 if it is measured from d itself."""
    proper: bool


def sine_of_angle(reference: Float[Tensor, "n_atoms 3"] | None) -> Sine:
    """Return the function (a, b, c) -> sine of the angle a-b-c in the reference; always 1 without one."""
    if reference is None:
        return lambda a, b, c: 1.0
    x = reference.detach().cpu().double().tolist()

    def sine(a: int, b: int, c: int) -> float:
        u, v = [p - q for p, q in zip(x[a], x[b], strict=True)], [p - q for p, q in zip(x[c], x[b], strict=True)]
        area = math.hypot(u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])
        lengths = math.hypot(*u) * math.hypot(*v)
        return area / lengths if lengths else 0.0

    return sine


def bent(atom: int, around: Iterable[int], sine: Sine) -> bool:
    """Tell whether an atom has two of the given neighbours that are not on a line with it."""
    return any(sine(i, atom, k) >= _STRAIGHT for i, k in combinations(around, 2))


def choose_seed(
    neighbours: list[list[int]],
    is_link: Callable[[int, int], bool],
    preference: Sequence[tuple[bool, bool]],
    numbers: Sequence[int],
    sine: Sine,
) -> tuple[int, int, int] | None:
    """Choose as j a centre of the graph (fewest levels) and as i and k its preferred, then largest branches.

    Returns:
        The seed (i, j, k); None if every bonded triple is straight.
    """
    best, candidates = None, []
    for j, around in enumerate(neighbours):
        if not bent(j, around, sine):
            continue
        real = [a for a in around if not is_link(j, a)]
        rank = (not bent(j, real, sine), -min(2, sum(numbers[a] != 1 for a in real)), preference[j])
        if best is None or rank < best:
            best, candidates = rank, []
        if rank == best:
            candidates.append(j)
    if not candidates:
        return None
    j = _centre(candidates, neighbours)
    size = branch_sizes(j, spanning_tree(j, neighbours))
    around = sorted(neighbours[j], key=lambda a: (is_link(j, a), *preference[a], -size[a], -numbers[a], a))
    i, k = next(pair for pair in combinations(around, 2) if sine(pair[0], j, pair[1]) >= _STRAIGHT)
    return i, j, k


def _centre(candidates: list[int], neighbours: list[list[int]]) -> int:
    """Return the candidate with the least largest distance, then the least sum of distances, then the lowest index."""
    one_end = distances_from(candidates[0], neighbours)
    ends = [max(range(len(one_end)), key=one_end.__getitem__)]
    from_ends = [distances_from(ends[0], neighbours)]
    ends.append(max(range(len(one_end)), key=from_ends[0].__getitem__))
    from_ends.append(distances_from(ends[1], neighbours))
    # No atom is nearer to all others than to the two ends, which spares nearly all searches (O(n) each).
    bound = {a: max(found[a] for found in from_ends) for a in candidates}
    best: tuple[int, int, int] | None = None
    for a in sorted(candidates, key=bound.__getitem__):
        if best is not None and bound[a] > best[0]:
            break
        distance = distances_from(a, neighbours)
        found = (max(distance), sum(distance), a)
        best = found if best is None else min(best, found)
    return best[-1]


def place_atoms(
    neighbours: list[list[int]],
    seed: tuple[int, int, int],
    is_link: Callable[[int, int], bool],
    preference: Sequence[tuple[bool, bool]],
    numbers: Sequence[int],
    sine: Sine,
) -> tuple[list[list[Row]], list[int]]:
    """Return the rows of every level, and the atoms for which no axis was found (their branches are missing, too)."""
    i, j, k = seed
    children = spanning_tree(j, neighbours)
    size = branch_sizes(j, children)
    # Placed atoms to refer to, nearest first, as linked pairs (atom, further atoms).
    chain: dict[int, Any] = {i: (j, (k, ())), j: (i, (k, ())), k: (j, (i, ()))}
    level = dict.fromkeys(seed, 0)
    linked_parent = {a: is_link(a, j) for a in (i, k)}
    waiting: dict[int, list[Row]] = defaultdict(list)
    levels: list[list[Row]] = []
    unplaced: list[int] = []

    def add(a: int, b: int, links: Any, *, first: int = -1, proper: bool) -> bool:
        axis = _axis(a, b, links, sine)
        if axis is None:
            unplaced.append(a)
            return False
        c, d = axis
        level[a] = 1 + max(level[b], level[c], level[d])
        chain[a] = (b, links)
        waiting[level[a]].append(Row(a, b, c, d, first, proper))
        return True

    def add_siblings(atoms: list[int], b: int, links: Any, *, soft_first: bool) -> None:
        first = -1
        for a in atoms:
            if sine(a, b, links[0]) < _STRAIGHT:  # in line with the axis: a stiff torsion about another one
                add(a, b, links, proper=False)
            elif first < 0 and soft_first:
                first = a if add(a, b, links, proper=True) else -1
            else:
                add(a, b, links, first=first, proper=False)

    def add_children(b: int) -> None:
        real = sorted(
            (a for a in children[b] if a not in seed and not is_link(a, b)),
            key=lambda a: (*preference[a], -size[a], -numbers[a], a),
        )
        links = chain[b]
        if linked_parent.get(b) and real:
            # The first atom of a fragment, its neighbour and a third one fix the orientation of the fragment, so that
            # every coordinate but these is one of the fragment's own.
            head, *rest = real
            if add(head, b, links, proper=True):
                beyond = links
                links = (head, links)
                add_siblings(rest, b, links, soft_first=True)
                if rest and rest[0] in chain:
                    chain[head] = (b, (rest[0], beyond))
            else:
                unplaced.extend(rest)
        else:
            add_siblings(real, b, links, soft_first=b != j)
        for a in sorted(a for a in children[b] if a not in seed and is_link(a, b)):
            linked_parent[a] = True
            add(a, b, links, proper=True)

    previous = [i, j, k]
    while True:
        for b in previous:
            add_children(b)
        if not waiting:
            return levels, unplaced
        levels.append(waiting.pop(len(levels) + 1))
        previous = [row.a for row in levels[-1]]


def _axis(a: int, b: int, links: Any, sine: Sine) -> tuple[int, int] | None:
    """Return (c, d) such that neither a-b-c nor b-c-d is on a line, from as near along the chain as possible."""
    c = _off_line(links, lambda c: sine(a, b, c))
    d = None if c is None else _off_line(links, lambda d: 0.0 if d == c else sine(b, c, d))
    return None if d is None else (c, d)


def _off_line(links: Any, sine: Callable[[int], float]) -> int | None:
    """Return the first atom that is clearly off a line, otherwise the one that is most."""
    best, found = ON_A_LINE, None
    for atom in _atoms(links):
        value = sine(atom)
        if value >= (_STRAIGHT if atom == links[0] else _NEARLY_STRAIGHT):
            return atom
        if value > best:
            best, found = value, atom
    return found


def _atoms(links: Any) -> Iterator[int]:
    while links:
        atom, links = links
        yield atom


def spanning_tree(root: int, neighbours: list[list[int]]) -> list[list[int]]:
    """Return the children of every atom in a breadth-first tree (ties: the parent with the lower index)."""
    distance = distances_from(root, neighbours)
    children: list[list[int]] = [[] for _ in neighbours]
    for atom, around in enumerate(neighbours):
        if atom != root:
            children[min(b for b in around if distance[b] == distance[atom] - 1)].append(atom)
    return children


def branch_sizes(root: int, children: list[list[int]]) -> list[int]:
    """Return the number of atoms in the branch that starts at every atom."""
    size = [1] * len(children)
    order = [root]
    for atom in order:
        order += children[atom]
    for atom in reversed(order):
        size[atom] += sum(size[child] for child in children[atom])
    return size
