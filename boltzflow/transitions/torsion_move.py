"""Torsion moves: rotate one side of a molecule about a rotatable bond, Metropolis-tested."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from boltzflow._typing import Bool, Float, Float64, Int, Tensor
from boltzflow.coordinates.graph import neighbour_lists, split_by_bonds
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import MetropolisKernel, moves_centre

__all__ = ["TorsionAxes", "TorsionMove", "evaluate_moved", "rotatable_axes", "rotate_about_bond"]


@dataclass(frozen=True, eq=False)
class TorsionAxes:
    """Bonds to rotate about.

    Args:
        pairs: Atoms (i, j) of every axis, shape (n_axes, 2), int64.
        moving: Atoms that turn about each axis, shape (n_axes, n_atoms), bool; i and j are not among them.
    """

    pairs: Int[Tensor, "n_axes 2"]
    moving: Bool[Tensor, "n_axes n_atoms"]

    def __len__(self) -> int:
        """Number of axes."""
        return self.pairs.shape[0]

    def select(self, pairs: Iterable[tuple[int, int]]) -> "TorsionAxes":
        """Only the named bonds, in either direction.

        Raises:
            ValueError: If a bond is not among the axes.
        """
        known = {frozenset(p): k for k, p in enumerate(self.pairs.tolist())}
        wanted = [frozenset(p) for p in pairs]
        missing = [tuple(sorted(p)) for p in wanted if p not in known]
        if missing:
            raise ValueError(f"TorsionAxes.select: no rotatable bonds {missing}; there are {self.pairs.tolist()}.")
        rows = torch.tensor([known[p] for p in wanted], dtype=torch.int64)
        return TorsionAxes(self.pairs[rows], self.moving[rows])


def rotatable_axes(bonds: Iterable[tuple[int, int]], *, n_atoms: int) -> TorsionAxes:
    """Rotatable bonds of a molecular graph: in no ring, and with further atoms bonded at both ends.

    Args:
        bonds: Pairs of atom indices.
        n_atoms: Number of atoms.

    Returns:
        The axes, each with the smaller side of the molecule as the part that moves; none for a rigid molecule.

    Raises:
        ValueError: If a bond names an atom outside 0..n_atoms−1.
    """
    bonds = sorted({(min(i, j), max(i, j)) for i, j in bonds})
    for i, j in bonds:
        if not (0 <= i < j < n_atoms):
            raise ValueError(f"rotatable_axes: bond ({i}, {j}) must join two of the {n_atoms} atoms.")
    neighbours = neighbour_lists(n_atoms, bonds)
    atoms, sides = split_by_bonds(neighbours)
    pairs, moving = [], torch.zeros(len(bonds), n_atoms, dtype=torch.bool)
    for i, j in bonds:
        # a bond without sides is in a ring
        if len(neighbours[i]) < 2 or len(neighbours[j]) < 2 or (i, j) not in sides:
            continue
        head, molecule, branch = sides[i, j]
        outside = [*atoms[molecule.start : branch.start], *atoms[branch.stop : molecule.stop]]
        left, right = (atoms[branch], outside) if head == i else (outside, atoms[branch])
        row = moving[len(pairs)]
        row[min(left, right, key=len)] = True
        row[[i, j]] = False
        pairs.append((i, j))
    return TorsionAxes(
        torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        moving[: len(pairs)].clone(),
    )


def rotate_about_bond(
    positions: Float[Tensor, "batch n_atoms 3"],
    pairs: Int[Tensor, "batch 2"],
    moving: Bool[Tensor, "batch n_atoms"],
    angle: Float[Tensor, " batch"],
) -> Float[Tensor, "batch n_atoms 3"]:
    """Turn the moving atoms of every row about its bond i→j by an angle (Rodrigues' formula).

    Given the atoms that stay, this is an isometry of those that move: volume preserving, with the inverse −angle.

    Args:
        positions: Any length unit.
        pairs: Atoms (i, j) of the axis of each row.
        moving: Atoms that turn.
        angle: Right-handed about i→j, rad.
    """
    ends = positions.gather(1, pairs[:, :, None].expand(-1, -1, 3))
    origin = ends[:, :1]
    axis = torch.nn.functional.normalize(ends[:, 1] - ends[:, 0], dim=-1)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    a, b, c = axis.unbind(1)
    o = torch.zeros_like(a)
    across = torch.stack([o, -c, b, c, o, -a, -b, a, o], dim=1).unflatten(1, (3, 3))
    along = axis[:, :, None] * axis[:, None, :]
    matrix = along + cos * (torch.eye(3, dtype=along.dtype, device=along.device) - along) + sin * across
    return torch.where(moving[:, :, None], torch.baddbmm(origin, positions - origin, matrix.mT), positions)


def evaluate_moved(
    state: State, moved: Float[Tensor, "batch n d"], run: Run
) -> tuple[Float64[Tensor, " batch"], State]:
    """Return the energy of a proposal and its State, with the force where the State before carries one.

    Args:
        state: Before the move.
        moved: Proposed positions; where the space has no translations they are brought back to the centre of `state`.
        run: Gives the energy.
    """
    x = state["positions"]
    if not moves_centre(state.spaces["positions"]):
        moved = moved + (x - moved).mean(1, keepdim=True)
    trial = state.replace(positions=moved)
    if any(e.force is not None for e in state.evaluations.values()):
        after, _, trial = run.energy_and_force(trial)
        return after, trial
    return run.energy(trial)


class TorsionMove(MetropolisKernel):
    """Rotate the smaller side of a molecule about a randomly chosen bond of each row; acts on the field "positions".

    The angle comes from a symmetric mixture: uniform over the circle, Gaussian, or ±2π/3 (which permutes a methyl
    group). Bond lengths and angles stay, so basins that only high barriers separate are joined by one move. The
    proposal is symmetric and volume preserving. Where the State carries a force, the proposal's force is evaluated with
    its energy, so that a following gradient step needs no evaluation of its own.

    Args:
        axes: Bonds to choose from, each with equal probability.
        weights: Of the uniform, Gaussian and threefold proposals; need not be normalised.
        width: Standard deviation of the Gaussian angle, rad.
        n_steps: Trials per call.
        level: λ on the annealing path.
    """

    def __init__(
        self,
        axes: TorsionAxes,
        *,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        width: float = 0.3,
        n_steps: int = 1,
        level: float = 1.0,
    ) -> None:
        super().__init__(n_steps=n_steps, level=level)
        if not len(axes):
            raise ValueError(
                "TorsionMove axes: expected at least one rotatable bond, got none; leave torsion moves out."
            )
        if len(weights) != 3 or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                "TorsionMove weights: expected three non-negative numbers (uniform, Gaussian, threefold), "
                f"got {weights}."
            )
        if not width > 0:
            raise ValueError(f"TorsionMove width: expected a positive angle in rad, got {width}.")
        self.width = width
        self._thresholds = (weights[0] / sum(weights), (weights[0] + weights[1]) / sum(weights))
        self.register_buffer("_pairs", axes.pairs.clone())
        self.register_buffer("_moving", axes.moving.clone())

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Rotate every row about a bond of its own."""
        before, _ = run.energy(state)
        x = state["positions"]
        if x.shape[1:] != (self._moving.shape[1], 3):
            raise ValueError(
                f"TorsionMove: expected positions (batch, {self._moving.shape[1]}, 3), got {tuple(x.shape)}."
            )
        axis, kind, turn = (run.uniform(before) for _ in range(3))
        row = (axis * len(self._pairs)).long().clamp_(max=len(self._pairs) - 1)
        local = self.width * run.normal(before)
        hop = torch.where(turn < 0.5, -2 * math.pi / 3, 2 * math.pi / 3)
        angle = torch.where(
            kind < self._thresholds[0], (2 * turn - 1) * math.pi, torch.where(kind < self._thresholds[1], local, hop)
        )
        pairs, moving = self._pairs.to(x.device)[row], self._moving.to(x.device)[row]
        moved = rotate_about_bond(x, pairs, moving, angle.to(x.dtype))
        after, trial = evaluate_moved(state, moved, run)
        return trial, before - after
