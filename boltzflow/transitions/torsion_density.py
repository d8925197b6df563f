"""A normalised density of the torsions of a block given their surroundings: one network for all blocks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from boltzflow._typing import Bool, Float, Float64, Int, Tensor
from boltzflow.coordinates.torus import wrap
from boltzflow.networks.mlp import MLP
from boltzflow.transitions.spline_kernels import conditioned_spline, n_spline_parameters
from boltzflow.transitions.torsion_blocks import TorsionBlocks

__all__ = ["BlockRows", "TorsionDensity"]

_LOG_TURN = math.log(2 * math.pi)


class BlockRows(NamedTuple):
    """One block per row, with the values that its torsions and its surroundings have there.

    Attributes:
        block: Index of the block, (batch,), int64.
        values: Its coordinates, rad, (batch, n_coordinates); 0 where it has fewer.
        present: Which coordinates it has, the same shape.
        given: Angles that it is conditioned on, rad, (batch, n_given); 0 where there are fewer.
        known: Which of those there are, the same shape.
    """

    block: Int[Tensor, " batch"]
    values: Float[Tensor, "batch n_coordinates"]
    present: Bool[Tensor, "batch n_coordinates"]
    given: Float[Tensor, "batch n_given"]
    known: Bool[Tensor, "batch n_given"]


class TorsionDensity(torch.nn.Module):
    """q(x | kind, surroundings) = Π_j q(x_j | x_<j, kind, surroundings) over the coordinates of a block, on circles.

    Every factor is a uniform density pulled back through a rational-quadratic spline of the circle, whose parameters a
    network gives; before training all are uniform. A block with fewer coordinates leaves factors out. The kinds of the
    blocks enter through an embedding, so that blocks with the same surroundings learn from each other. The smallest
    slope of a spline bounds q from below.

    Args:
        n_kinds: Kinds of blocks.
        n_coordinates: Coordinates of the largest block.
        n_given: Angles that a block is conditioned on.
        bins: Bins of each spline.
        hidden: Widths of the hidden layers of each network.
        embedding: Features of a kind.
        fused: Compiled splines; False for short work, and for torch.func transforms.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
        Normalizing Flows on Tori and Spheres (Rezende et al., 2020), https://arxiv.org/abs/2002.02428
    """

    def __init__(
        self,
        n_kinds: int,
        *,
        n_coordinates: int,
        n_given: int,
        bins: int = 16,
        hidden: Sequence[int] = (64, 64),
        embedding: int = 16,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.kinds = torch.nn.Embedding(n_kinds, embedding)
        self.fused = fused
        # cosines and sines of the angles given, and which are; two harmonics of the coordinates before
        n_in = embedding + 3 * n_given
        self.networks = torch.nn.ModuleList(
            MLP(n_in + 4 * j, n_spline_parameters(bins), hidden=hidden, zero_init=True) for j in range(n_coordinates)
        )
        self.register_buffer("_circle", torch.ones(1, 1, dtype=torch.bool))
        self.register_buffer("_line", torch.zeros(1, 1, dtype=torch.bool))

    @classmethod
    def of(cls, blocks: TorsionBlocks, **options: object) -> "TorsionDensity":
        """One for all blocks of a molecule.

        Args:
            blocks: Give the sizes.
            **options: Of the constructor.
        """
        return cls(len(blocks.labels), n_coordinates=blocks.n_coordinates, n_given=blocks.given.shape[1], **options)

    def log_prob(self, kind: Int[Tensor, " batch"], rows: BlockRows) -> Float64[Tensor, " batch"]:
        """Log-density of the values of every row, per radian of each of its coordinates.

        Args:
            kind: Of the block of every row.
            rows: Values, and what they are conditioned on.
        """
        seen, total = [self._surroundings(kind, rows)], 0.0
        for j, network in enumerate(self.networks[: rows.values.shape[1]]):
            x = rows.values[:, j]
            _, slope = self._bend(network, seen, x, inverse=False)
            total = total + torch.where(rows.present[:, j], slope.double() - _LOG_TURN, 0.0)
            seen.append(_harmonics(x, rows.present[:, j]))
        return total

    def sample(
        self, kind: Int[Tensor, " batch"], rows: BlockRows, noise: Float[Tensor, "batch n_coordinates"]
    ) -> tuple[Float[Tensor, "batch n_coordinates"], Float64[Tensor, " batch"]]:
        """New values of every row, and their log-density.

        Args:
            kind: Of the block of every row.
            rows: What they are conditioned on; the values are not looked at.
            noise: Uniform in [0, 1).
        """
        seen, total, drawn = [self._surroundings(kind, rows)], 0.0, []
        for j, network in enumerate(self.networks[: rows.values.shape[1]]):
            x, slope = self._bend(network, seen, (2 * noise[:, j] - 1) * math.pi, inverse=True)
            total = total - torch.where(rows.present[:, j], slope.double() + _LOG_TURN, 0.0)
            seen.append(_harmonics(x, rows.present[:, j]))
            drawn.append(torch.where(rows.present[:, j], x, 0.0))
        return torch.stack(drawn, dim=1), total

    def _surroundings(self, kind: Tensor, rows: BlockRows) -> Tensor:
        known = rows.known.to(rows.given.dtype)
        return torch.cat([self.kinds(kind), rows.given.cos() * known, rows.given.sin() * known, known], dim=1)

    def _bend(self, network: MLP, seen: list[Tensor], x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = network(torch.cat(seen, dim=1)).t()[:, None, :].contiguous()
        y, slope = conditioned_spline(
            wrap(x)[None].contiguous(), raw, self._line, self._circle, inverse=inverse, fused=self.fused
        )
        return y[0], slope[0]


def _harmonics(x: Tensor, present: Tensor) -> Tensor:
    return torch.stack([x.cos(), x.sin(), (2 * x).cos(), (2 * x).sin()], dim=1) * present[:, None]
