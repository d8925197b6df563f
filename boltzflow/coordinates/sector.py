"""The hand of stereo-centres and the labelling sector of identical hydrogens, fixed to those of a reference."""

import math
from itertools import combinations

import torch
from torch import nn

from boltzflow._typing import Bool, Float, Tensor
from boltzflow.coordinates.graph import colour_classes, neighbour_lists
from boltzflow.coordinates.zmatrix import ZMatrix

__all__ = ["LabelSector"]

# A sibling torsion keeps a hand only while the reference is clearly on one side: between 30 and 150 degrees.
_CLEAR_HAND = (math.pi / 6, 5 * math.pi / 6)
# The volume that unit vectors to three neighbours span at a carbon whose hand is kept by that volume alone.
_CLEAR_VOLUME = 0.2


class LabelSector(nn.Module):
    """The part of labelled configuration space in which every kept centre has the hand of the reference.

    *What is kept.* At every atom with four neighbours each sibling torsion keeps the sign of the reference: its domain
    is (0, pi) or (-pi, 0) instead of the circle (``hand``). The hand of stereo-centres, the order of the labels of the
    hydrogens of CH3, CH2 and NH3+, and cis/trans on rings are therefore fixed by construction of the coordinates. The
    same holds for a pyramidal NH2. Where ring closure leaves a four-coordinate centre with fewer than two sibling
    torsions, the sign of the volume of three neighbours is checked in addition (zero weight, not construction).
    Planar centres (carbonyl, amide, aromatic, guanidinium and amide NH2) and all proper torsions keep the full circle,
    so both labelings of a planar NH2, the three rotamers of CH3, both ring flips and cis/trans amides stay inside.

    *What log Z counts.* Let Z_all be the integral over all labelled configurations with the hand of the stereo-centres
    given. Of the 3! permutations of the labels of a CH3, the three cyclic ones turn the proper torsion by 120 degrees
    and stay in the sector, the three odd ones leave it: a factor of 2, as for the one transposition of a CH2 and for
    every other centre at which two neighbours head identical branches outside rings. These transpositions act
    independently, hence Z_all = ``n_copies`` * Z_sector = 2^k Z_sector with k such centres. For pairs of hydrogens on
    a three-coordinate centre this is exact. At four-coordinate centres configurations in neither sector exist, in
    which both siblings lie on one side of the plane of (first, centre, parent), that is where a bond angle is far from
    tetrahedral; they have weight zero here, as have the mirror images of stereo-centres. Symmetries that
    exchange the two sides of a ring are not counted.

    Args:
        zmatrix: built with ``elements``.
        reference: (n_atoms, 3) nm, a relaxed structure.

    Attributes:
        hand: (n_atoms - 3,) int64: +1 where a torsion is confined to (0, pi), -1 for (-pi, 0), 0 for the circle.
        stereo_centres: four-coordinate atoms with four different neighbours (by colour refinement of the graph).
        kept_centres: all atoms whose hand is kept.
        doubled_centres: kept centres at which a transposition of identical branches leaves the sector.

    Raises:
        ValueError: if the Z-matrix has no elements, if ``reference`` has another shape, or if the reference is not
            tetrahedral at a carbon with four neighbours.

    Example:
        >>> import torch
        >>> from boltzflow.coordinates import LabelSector, ZMatrix
        >>> bonds = [(0, 1), (0, 2), (0, 3), (0, 4)]
        >>> x = 0.06 * torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
        >>> sector = LabelSector(ZMatrix.from_bonds(5, bonds, elements=[6, 9, 17, 1, 1]), x)
        >>> exchanged = x[None, [0, 1, 2, 4, 3]]
        >>> sector.n_copies, sector.contains(exchanged).tolist(), sector.relabel(exchanged)[1]
        (2, [False], 1)
    """

    hand: Tensor

    def __init__(self, zmatrix: ZMatrix, reference: Float[Tensor, "n_atoms 3"]) -> None:
        super().__init__()
        if not any(zmatrix.elements):
            raise ValueError(
                "zmatrix: has no elements, so identical hydrogens cannot be found; build it with elements="
            )
        if reference.shape != (zmatrix.n_atoms, 3):
            raise ValueError(f"reference: expected shape {(zmatrix.n_atoms, 3)}, got {tuple(reference.shape)}")
        self.zmatrix = zmatrix
        neighbours = neighbour_lists(zmatrix.n_atoms, zmatrix.bonds)
        colours = colour_classes(zmatrix.elements, neighbours)
        hydrogens = {b: [a for a in around if _is_terminal_hydrogen(zmatrix, neighbours, a)]
                     for b, around in enumerate(neighbours)}  # fmt: skip

        corners, rows = self._sibling_corners(neighbours, hydrogens, reference)
        corners += self._extra_corners(corners, neighbours, hydrogens, reference.double().cpu())
        self.register_buffer("_corners", torch.tensor(corners, dtype=torch.int64).reshape(-1, 4), persistent=False)
        signs = self._volumes(reference[None]).sign()[:, 0].long()
        self.register_buffer("_signs", signs, persistent=False)
        hand = torch.zeros(zmatrix.n_atoms - 3, dtype=torch.int64)
        hand[rows] = signs[: len(rows)]
        self.register_buffer("hand", hand, persistent=False)

        centres = sorted({corner[0] for corner in corners})
        self.kept_centres = tuple(centres)
        self.stereo_centres = tuple(
            b for b, around in enumerate(neighbours) if len(around) == 4 == len({colours[a] for a in around})
        )
        self.doubled_centres = tuple(b for b in centres if _has_identical_branches(b, neighbours, colours))
        # At each centre with identical hydrogens: its volumes, and the pair whose exchange reverses all of them.
        self._exchanges = [
            ([n for n, corner in enumerate(corners) if corner[0] == b], self._exchange_pair(corners, b, hydrogens[b]))
            for b in centres
            if len(hydrogens[b]) >= 2
        ]

    @property
    def n_copies(self) -> int:
        """Number of equivalent labelled copies of the sector, 2^k (see the class)."""
        return 2 ** len(self.doubled_centres)

    def contains(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Bool[Tensor, " batch"]:
        """Tell which configurations lie in the sector.

        Args:
            positions: (batch, n_atoms, 3) nm.

        Returns:
            (batch,) True inside; False outside and where a kept centre has non-finite coordinates.
        """
        return (self._volumes(positions) * self._signs[:, None] > 0).all(0)

    def relabel(self, positions: Float[Tensor, "batch n_atoms 3"]) -> tuple[Tensor, int]:
        """Exchange the labels of two identical hydrogens at every centre that has them in the other order.

        The volume of configuration space is unchanged, and a permutation-invariant energy too. Stereo-centres are
        never touched: frames with another hand stay outside the sector, which ``contains`` tells.

        Args:
            positions: (batch, n_atoms, 3) nm.

        Returns:
            New positions and the number of frames that changed.
        """
        reversed_ = self._volumes(positions) * self._signs[:, None] < 0
        changed = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
        result = positions.clone()
        for corners, (one, two) in self._exchanges:
            exchange = reversed_[corners].all(0)
            result[:, one] = torch.where(exchange[:, None], positions[:, two], positions[:, one])
            result[:, two] = torch.where(exchange[:, None], positions[:, one], positions[:, two])
            changed |= exchange
        return result, int(changed.sum())

    def describe(self, names: list[str] | None = None) -> str:
        """Return what is fixed and what log Z counts, as text."""
        label = [str(a) for a in range(self.zmatrix.n_atoms)] if names is None else names

        def listed(atoms: tuple[int, ...]) -> str:
            return ", ".join(label[a] for a in atoms) or "none"

        return (
            f"hand of the reference kept at {len(self.kept_centres)} centres ({listed(self.kept_centres)}); "
            f"stereo-centres: {listed(self.stereo_centres)}; label order of identical branches fixed at "
            f"{listed(self.doubled_centres)}: Z over all labelled configurations = {self.n_copies} Z(sector), "
            f"log {self.n_copies} = {math.log(self.n_copies):.6f}. The mirror images of stereo-centres are not counted"
        )

    def _volumes(self, positions: Tensor) -> Tensor:
        """Return (n_corners, batch) six-fold signed volumes; for (b, a, c, d) the sign is that of torsion a-b-c-d."""
        b, a, c, d = positions.permute(2, 1, 0)[:, self._corners].unbind(2)
        return ((a - b) * torch.linalg.cross(d - b, c - b, dim=0)).sum(0)

    def _sibling_corners(
        self, neighbours: list[list[int]], hydrogens: dict[int, list[int]], reference: Tensor
    ) -> tuple[list[tuple[int, int, int, int]], list[int]]:
        """Return (b, a, c, first) for each sibling torsion that keeps its hand, and the rows of those torsions."""
        corners, rows = [], []
        for row, (a, b, c, d) in enumerate(self.zmatrix.torsion_atoms.tolist()):
            pair = len(neighbours[b]) == 3 and {a, d} <= set(hydrogens[b])
            around = {a, c, d} <= set(neighbours[b]) and (len(neighbours[b]) == 4 or pair)
            if self.zmatrix.proper[row] or not around:
                continue
            if _CLEAR_HAND[0] < abs(_torsion(*reference[[a, b, c, d]])) < _CLEAR_HAND[1]:
                corners.append((b, a, c, d))
                rows.append(row)
        return corners, rows

    def _extra_corners(
        self,
        corners: list[tuple[int, int, int, int]],
        neighbours: list[list[int]],
        hydrogens: dict[int, list[int]],
        reference: Tensor,
    ) -> list[tuple[int, int, int, int]]:
        """Return three neighbours of each four-coordinate centre of which fewer than two siblings keep a hand."""
        kept = [corner[0] for corner in corners]
        extra = []
        for b, around in enumerate(neighbours):
            if len(around) == 4 and kept.count(b) < 2 and (self.zmatrix.elements[b] == 6 or b in kept):
                # With both hydrogens among the three, an exchange of them reverses the volume exactly.
                first = [*hydrogens[b], *(a for a in around if a not in hydrogens[b])][:3]
                arms = torch.nn.functional.normalize(reference[first] - reference[b], dim=1)
                volume = float(torch.linalg.det(arms))
                if abs(volume) < _CLEAR_VOLUME:
                    raise ValueError(
                        f"reference: carbon {b} with four neighbours {around} is not tetrahedral (the unit vectors to "
                        f"{first} span the volume {volume:.2f}, a tetrahedral carbon's are at ±0.77); pass an "
                        "energy-minimised structure"
                    )
                extra.append((b, *first))
        return extra

    @staticmethod
    def _exchange_pair(corners: list[tuple[int, int, int, int]], b: int, hydrogens: list[int]) -> tuple[int, int]:
        """Return two hydrogens such that their exchange maps the volumes of the centre to each other with a sign."""
        mine = [set(corner[1:]) for corner in corners if corner[0] == b]
        for pair in combinations(hydrogens, 2):
            swap = dict(zip(pair, reversed(pair), strict=True))
            if all({swap.get(a, a) for a in corner} in mine for corner in mine):
                return pair
        raise ValueError(f"no exchange of hydrogens {hydrogens} of atom {b} maps its sector to the mirror image")


def _is_terminal_hydrogen(zmatrix: ZMatrix, neighbours: list[list[int]], atom: int) -> bool:
    return zmatrix.elements[atom] == 1 and len(neighbours[atom]) == 1


def _has_identical_branches(b: int, neighbours: list[list[int]], colours: list[int]) -> bool:
    """Tell whether two neighbours of ``b`` head branches of equal colour that are connected only through ``b``."""
    for one, two in combinations(neighbours[b], 2):
        if colours[one] == colours[two]:
            branches = [_branch(head, b, neighbours) for head in (one, two)]
            if all(len(branch & set(neighbours[b])) == 1 for branch in branches):
                return True
    return False


def _branch(head: int, centre: int, neighbours: list[list[int]]) -> set[int]:
    """Return the atoms that are reached from ``head`` without passing ``centre``."""
    branch, ahead = {head}, [head]
    while ahead:
        found = [a for a in neighbours[ahead.pop()] if a != centre and a not in branch]
        branch.update(found)
        ahead += found
    return branch


def _torsion(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> float:
    """Return the torsion a-b-c-d of four points, in rad."""
    v1, v2, v3 = a - b, c - b, d - c
    n1, n2 = torch.linalg.cross(v1, v2), torch.linalg.cross(v3, v2)
    return math.atan2(float(v2.norm() * (v1 @ n2)), float(n1 @ n2))
