"""Links between the molecules of one system: pseudo-bonds along which a Z-matrix continues to the next fragment."""

from collections.abc import Sequence

import numpy as np

from boltzflow._typing import Float, Tensor
from boltzflow.coordinates.graph import connected_components, neighbour_lists
from boltzflow.coordinates.placement import Sine, bent, sine_of_angle

__all__ = ["fragment_links"]

# Covalent radii of the non-metals in nm (Cordero et al., Dalton Trans. 2008, 2832): closer than 1.25 times their sum is
# bonded. Metals are left out, because their coordination distances are no longer than covalent bonds.
_RADIUS = {1: 0.031, 5: 0.084, 6: 0.076, 7: 0.071, 8: 0.066, 9: 0.057, 14: 0.111, 15: 0.107, 16: 0.105, 17: 0.102}
_RADIUS |= {34: 0.120, 35: 0.120, 53: 0.139}


def fragment_links(
    n_atoms: int,
    bonds: Sequence[tuple[int, int]],
    *,
    elements: Sequence[int],
    positions: Float[Tensor, "n_atoms 3"],
    names: Sequence[str] | None = None,
) -> tuple[tuple[int, int], ...]:
    """Find the pseudo-bonds that join the fragments (molecules, ions, waters) of a system into one tree.

    A minimal spanning tree over the fragments, grown from the largest, by the distance of their anchors. Anchors are
    the heavy atoms with two bonds that are not on a line; of a fragment without those its heavy atoms, otherwise all.

    Args:
        n_atoms: number of atoms.
        bonds: pairs of atom indices.
        elements: atomic numbers.
        positions: (n_atoms, 3) nm, a relaxed structure.
        names: atom names for errors; by default the atom indices.

    Returns:
        One pair (atom of an earlier fragment, atom of the new one) per further fragment, in the order of growth; empty
        for a single molecule. The same for the same arguments.

    Raises:
        ValueError: if a bond is impossible, if ``elements`` or ``positions`` do not fit ``n_atoms``, or if two
            fragments are so close that a bond must be missing.

    Example:
        >>> import torch
        >>> from boltzflow.coordinates import fragment_links
        >>> x = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.3]])
        >>> fragment_links(4, [(0, 1), (0, 2)], elements=[8, 1, 1, 11], positions=x)
        ((0, 3),)
    """
    neighbours = neighbour_lists(n_atoms, bonds)
    fragments = connected_components(neighbours)
    if len(elements) != n_atoms or tuple(positions.shape) != (n_atoms, 3):
        raise ValueError(
            f"elements, positions: expected {n_atoms} atomic numbers and shape ({n_atoms}, 3), got {len(elements)} and "
            f"{tuple(positions.shape)}; pass those of the topology that the bonds are from"
        )
    if len(fragments) < 2:
        return ()
    x = positions.detach().cpu().double().numpy()
    fragment_of = np.empty(n_atoms, dtype=np.int64)
    for number, atoms in enumerate(fragments):
        fragment_of[atoms] = number
    label = [str(a) for a in range(n_atoms)] if names is None else names
    _require_separate(fragment_of, elements, x, label)

    sine = sine_of_angle(positions)
    anchors = [_anchors(atoms, neighbours, elements, sine) for atoms in fragments]
    candidates = np.array(sorted(a for atoms in anchors for a in atoms))
    # For every candidate the nearest anchor of the tree so far; Prim's algorithm.
    nearest = np.zeros(len(candidates), dtype=np.int64)
    distance = np.full(len(candidates), np.inf)
    new = min(range(len(fragments)), key=lambda number: (-len(fragments[number]), number))
    joined: set[int] = set()
    links = []
    while True:
        joined.add(new)
        distance[fragment_of[candidates] == new] = np.nan
        for anchor in anchors[new]:
            from_anchor = np.linalg.norm(x[candidates] - x[anchor], axis=1)
            closer = from_anchor < distance
            nearest[closer], distance[closer] = anchor, from_anchor[closer]
        if len(joined) == len(fragments):
            return tuple(links)
        best = int(np.nanargmin(distance))
        links.append((int(nearest[best]), int(candidates[best])))
        new = int(fragment_of[candidates[best]])


def _anchors(atoms: list[int], neighbours: list[list[int]], elements: Sequence[int], sine: Sine) -> list[int]:
    """Return the atoms of a fragment that a link may end at."""
    heavy = [a for a in atoms if elements[a] != 1]
    return [a for a in heavy if bent(a, neighbours[a], sine)] or heavy or atoms


def _require_separate(fragment_of: np.ndarray, elements: Sequence[int], x: np.ndarray, names: Sequence[str]) -> None:
    """Raise where atoms of two fragments are at a bond's distance: the topology then lacks a bond."""
    radius = np.array([_RADIUS.get(int(z), 0.0) for z in elements])
    missing = []
    for a in range(len(x)):
        reach = np.where((radius > 0) & (radius[a] > 0), 1.25 * (radius + radius[a]), 0.0)
        near = (np.linalg.norm(x - x[a], axis=1) < reach) & (fragment_of != fragment_of[a])
        missing += [(a, int(b)) for b in np.flatnonzero(near) if b > a]
    if missing:
        listed = ", ".join(f"{names[a]} and {names[b]} ({np.linalg.norm(x[a] - x[b]):.3f} nm)" for a, b in missing[:10])
        raise ValueError(
            f"bonds: {len(missing)} pairs of atoms are at a bond's distance, but no bond of the topology joins their "
            f"fragments: {listed}. Add the bonds (CONECT records in a PDB file), or move the molecules apart"
        )
