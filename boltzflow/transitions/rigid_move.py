"""Rigid-body moves: shift and turn one of several molecules as a whole, Metropolis-tested."""

from collections.abc import Iterable

import torch

from boltzflow._typing import Bool, Float, Float64, Tensor
from boltzflow.coordinates.graph import connected_components, neighbour_lists
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.torsion_move import evaluate_moved

__all__ = ["RigidMove", "move_rigidly"]


def move_rigidly(
    positions: Float[Tensor, "batch n_atoms 3"],
    moving: Bool[Tensor, "batch n_atoms"],
    shift: Float[Tensor, "batch 3"],
    turn: Float[Tensor, "batch 3"],
) -> Float[Tensor, "batch n_atoms 3"]:
    """Turn the moving atoms of every row about their centre, and shift them (Rodrigues' formula).

    An isometry of the atoms that move, whose centre moves by the shift: volume preserving, with the inverse
    (−shift, −turn).

    Args:
        positions: Any length unit.
        moving: Atoms that move, at least one per row.
        shift: In that unit.
        turn: Rotation vector: right-handed about its direction, by its length in rad.
    """
    weight = moving[:, :, None].to(positions.dtype)
    centre = (positions * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    angle = turn.norm(dim=1)[:, None, None]
    axis = torch.nn.functional.normalize(turn, dim=1)[:, None].expand_as(positions)
    arm = positions - centre
    along = (arm * axis).sum(-1, keepdim=True) * axis
    turned = along + (arm - along) * angle.cos() + torch.linalg.cross(axis, arm) * angle.sin()
    return torch.where(moving[:, :, None], centre + turned + shift[:, None], positions)


class RigidMove(MetropolisKernel):
    """Shift and turn a randomly chosen molecule of each row as a rigid body; acts on the field "positions".

    Shift and rotation vector are Gaussian and independent of the configuration, so the proposal is symmetric; it
    preserves volume. Where the State carries a force, the proposal's force is evaluated with its energy.

    Args:
        bonds: Pairs of atom indices; the connected parts are the molecules.
        n_atoms: Number of atoms.
        width: Standard deviation of the shift along each axis, in the unit of the positions.
        turn: Standard deviation of each component of the rotation vector, rad; at most 1, since half a turn and more
            would be proposed as shorter turns the other way.
        n_steps: Trials per call.
        level: λ on the annealing path.

    Raises:
        ValueError: If there are fewer than two molecules, or a width is not positive.
    """

    def __init__(
        self,
        bonds: Iterable[tuple[int, int]],
        *,
        n_atoms: int,
        width: float = 0.02,
        turn: float = 0.3,
        n_steps: int = 1,
        level: float = 1.0,
    ) -> None:
        super().__init__(n_steps=n_steps, level=level)
        molecules = connected_components(neighbour_lists(n_atoms, list(bonds)))
        if len(molecules) < 2:
            raise ValueError("RigidMove bonds: expected at least two molecules, found one; leave rigid moves out.")
        if not (width > 0 and 0 < turn <= 1):
            raise ValueError(f"RigidMove: expected width > 0 and 0 < turn <= 1 rad, got width={width}, turn={turn}.")
        self.width, self.turn = width, turn
        moving = torch.zeros(len(molecules), n_atoms, dtype=torch.bool)
        for row, atoms in zip(moving, molecules, strict=True):
            row[atoms] = True
        self.register_buffer("_moving", moving)

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Move one molecule of every row."""
        before, _ = run.energy(state)
        x = state["positions"]
        if x.shape[1:] != (self._moving.shape[1], 3):
            raise ValueError(
                f"RigidMove: expected positions (batch, {self._moving.shape[1]}, 3), got {tuple(x.shape)}."
            )
        row = (run.uniform(before) * len(self._moving)).long().clamp_(max=len(self._moving) - 1)
        shift, turn = self.width * run.normal(x[:, 0]), self.turn * run.normal(x[:, 0])
        moved = move_rigidly(x, self._moving.to(x.device)[row], shift, turn)
        after, trial = evaluate_moved(state, moved, run)
        return trial, before - after
