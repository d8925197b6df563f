"""Torsion-block moves: a few torsions of a molecule are drawn anew from a learned conditional density."""

from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.coordinates.dihedral import dihedral_angles
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.torsion_blocks import TorsionBlocks
from boltzflow.transitions.torsion_density import BlockRows, TorsionDensity
from boltzflow.transitions.torsion_move import evaluate_moved, rotate_about_bond

__all__ = ["BlockTables", "TorsionBlockFlow"]


class BlockTables(torch.nn.Module):
    """`TorsionBlocks` as buffers, and what every row has in a block of its own; acts on positions of the molecule.

    Args:
        blocks: Of the molecule.
    """

    def __init__(self, blocks: TorsionBlocks) -> None:
        super().__init__()
        for name in ("atoms", "moving", "sign", "axes", "coordinate", "sense", "given", "kind"):
            self.register_buffer(name, getattr(blocks, name).clone())
        self.register_buffer("leading", blocks.leading)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.axes)

    def read(self, positions: Float[Tensor, "batch n_atoms 3"], block: Int[Tensor, " batch"]) -> BlockRows:
        """Torsions of a block of every row, and those that it is conditioned on."""
        wanted = torch.cat([self.leading[block], self.given[block].flatten(1)], dim=1)
        return self._rows(dihedral_angles(positions, self.atoms[wanted.clamp(min=0)]), wanted, block)

    def select(self, torsions: Float[Tensor, "batch n_axes"], block: Int[Tensor, " batch"]) -> BlockRows:
        """`read`, where all torsions are known."""
        wanted = torch.cat([self.leading[block], self.given[block].flatten(1)], dim=1)
        return self._rows(torsions.gather(1, wanted.clamp(min=0)), wanted, block)

    def _rows(self, angles: Tensor, wanted: Tensor, block: Tensor) -> BlockRows:
        angles, n = torch.where(wanted >= 0, angles, 0.0), self.leading.shape[1]
        pairs = angles[:, n:].unflatten(1, self.given.shape[1:])
        return BlockRows(block, angles[:, :n], wanted[:, :n] >= 0, pairs.sum(2), self.given[block][:, :, 0] >= 0)

    def turn(
        self,
        positions: Float[Tensor, "batch n_atoms 3"],
        block: Int[Tensor, " batch"],
        change: Float[Tensor, "batch n_coordinates"],
    ) -> Float[Tensor, "batch n_atoms 3"]:
        """Change the coordinates of a block of every row; bonds, angles and all other torsions stay."""
        for axis, coordinate, sense in zip(
            self.axes[block].unbind(1), self.coordinate[block].unbind(1), self.sense[block].unbind(1), strict=True
        ):
            row = axis.clamp(min=0)
            own = change.gather(1, coordinate.clamp(min=0)[:, None])[:, 0]
            angle = torch.where(axis >= 0, self.sign[row].to(own.dtype) * sense * own, 0.0)
            positions = rotate_about_bond(positions, self.atoms[row, 1:3], self.moving[row], angle)
        return positions


class TorsionBlockFlow(MetropolisKernel):
    """Draw the torsions of a randomly chosen block of each row from q(x | c); acts on the field "positions".

    The surroundings c, other torsions of the molecule, are the same before and after, and with bonds and angles fixed
    the volume element does not depend on torsions. So min(1, exp(u(x) − u(y)) q(x | c) / q(y | c)) is exact for
    any q: a poor one costs acceptance only. Unlike a density over the whole molecule it does not become useless with
    size, as every factor sees a few torsions; nor does it know what is far away along the chain, so that crowded
    surroundings reject what the torsions alone allow.

    The density is a constant here: it is trained beforehand (`boltzflow.training.fit_torsion_density`), and recorded
    chains keep their exact stationary distribution. Where the State carries a force, the proposal's force is evaluated
    with its energy, so that a following gradient step needs no evaluation of its own.

    Args:
        blocks: Of the molecule.
        density: Of the dtype of the walkers.
        weights: Of the blocks; equal by default.
        n_steps: Trials per call.
        level: λ on the annealing path.

    Attributes:
        trials: Trials of every block up to now, (n_blocks,), float64; not part of a checkpoint.
        accepted: Sum of their acceptance probabilities.

    Raises:
        ValueError: If the weights do not fit the blocks.

    References:
        Hastings, Biometrika 57, 97 (1970).
        Meta-Learning MCMC Proposals (Wang et al., 2018), blocks proposed by a network that approximates their
        conditional, https://arxiv.org/abs/1708.06040
    """

    def __init__(
        self,
        blocks: TorsionBlocks,
        density: TorsionDensity,
        *,
        weights: Sequence[float] | Float[Tensor, " n_blocks"] | None = None,
        n_steps: int = 1,
        level: float = 1.0,
    ) -> None:
        super().__init__(n_steps=n_steps, level=level)
        chosen = torch.ones(len(blocks)) if weights is None else torch.as_tensor(weights)
        chosen = chosen.double()
        if chosen.shape != (len(blocks),) or not bool((chosen >= 0).all() and 0 < chosen.sum() < torch.inf):
            raise ValueError(
                f"TorsionBlockFlow weights: expected {len(blocks)} non-negative numbers, one per block, got "
                f"{chosen.tolist()}."
            )
        self.tables = BlockTables(blocks)
        self.density = density
        cumulative = chosen.cumsum(0)
        self.register_buffer("_cumulative", cumulative / cumulative[-1])
        for name in ("trials", "accepted"):
            self.register_buffer(name, torch.zeros(len(blocks), dtype=torch.float64), persistent=False)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of the move and of its density."""
        return ("TorsionBlockFlow", "SplineCoupling", "circular spline")

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw a block of every row anew."""
        before, _ = run.energy(state)
        x = state["positions"]
        if x.shape[1:] != (self.tables.moving.shape[1], 3):
            raise ValueError(
                f"TorsionBlockFlow: expected positions (batch, {self.tables.moving.shape[1]}, 3), got {tuple(x.shape)}."
            )
        chosen = run.uniform(before).to(self._cumulative.dtype)
        block = torch.searchsorted(self._cumulative, chosen, right=True).clamp_(max=len(self.tables) - 1)
        rows = self.tables.read(x, block)
        kind = self.tables.kind[block]
        with torch.no_grad():
            log_q_before = self.density.log_prob(kind, rows)
            drawn, log_q_after = self.density.sample(kind, rows, run.uniform(rows.values))
        moved = self.tables.turn(x, block, drawn - rows.values)
        after, trial = evaluate_moved(state, moved, run)
        odds = before - after + log_q_before - log_q_after
        self._count(block, odds.detach())
        return trial, odds

    def _count(self, block: Tensor, odds: Tensor) -> None:
        probability = torch.nan_to_num(odds, nan=-torch.inf).clamp(max=0.0).exp().to(self.accepted.dtype)
        self.trials = self.trials.index_add(0, block, torch.ones_like(probability))
        self.accepted = self.accepted.index_add(0, block, probability)
