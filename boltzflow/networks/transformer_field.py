"""TransformerField: attention over atoms, free of symmetry but for translations and permutations."""

import math
from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.networks.atom_features import AtomFeatures
from boltzflow.networks.graph_field import GraphField
from boltzflow.networks.scalar_vector import RadialFilters, separations

__all__ = ["TransformerField"]


class TransformerField(GraphField):
    """v_i from L blocks of attention, in which every atom sees where all atoms are, relative to their centre.

    It goes with translations and permutations of atoms of one type, and with neither rotations nor reflections: those
    it has to learn, from `FlowMatching(..., rotated=True)`. What it misses the weights correct. Scores of attention
    have a term of the distance and of the category of the pair. Divergence and Jacobian are those of autograd, exact
    at one backward pass per coordinate.

    Args:
        features: Of the atoms, or a type for every particle, [0] * N for identical ones.
        n_dimensions: D.
        unit: Length in which the network sees positions; about the width of the base.
        n_layers: L.
        hidden: Width, a multiple of the heads.
        n_heads: Of attention.
        reach: Centre of the last Gaussian of the distance, in units.
        n_basis: Gaussians.
        n_harmonics: Harmonics of t that are seen besides t.

    Raises:
        ValueError: If the width is no multiple of the heads.

    References:
        Vaswani et al. (2017), https://arxiv.org/abs/1706.03762; on atoms, with rotated data: Abramson et al. (2024),
        https://doi.org/10.1038/s41586-024-07487-w

    Example:
        >>> field = TransformerField([0] * 4, 3, n_layers=2, hidden=8, n_heads=2).double()
        >>> field.rotates
        False
    """

    def __init__(
        self,
        features: AtomFeatures | Sequence[int],
        n_dimensions: int,
        *,
        unit: float = 1.0,
        n_layers: int = 4,
        hidden: int = 64,
        n_heads: int = 4,
        reach: float = 5.0,
        n_basis: int = 32,
        n_harmonics: int = 4,
    ) -> None:
        super().__init__(features, n_dimensions, unit=unit, hidden=hidden, n_harmonics=n_harmonics)
        if hidden % n_heads:
            raise ValueError(
                f"TransformerField: expected a width that is a multiple of the heads, got {hidden} and {n_heads}."
            )
        sizes = {"n_pairs": self.features.n_pairs, "reach": reach, "n_basis": n_basis}
        self.places = torch.nn.Sequential(
            torch.nn.Linear(n_dimensions, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, hidden)
        )
        self.biases = torch.nn.ModuleList(RadialFilters(n_heads, **sizes) for _ in range(n_layers))
        self.blocks = torch.nn.ModuleList(_Block(hidden, n_heads) for _ in range(n_layers))
        self.readout = torch.nn.Sequential(torch.nn.LayerNorm(hidden), torch.nn.Linear(hidden, n_dimensions))
        torch.nn.init.zeros_(self.readout[-1].weight)
        torch.nn.init.zeros_(self.readout[-1].bias)

    def _place(self, features: AtomFeatures) -> None:
        super()._place(features)
        self.register_buffer("_square", features.pairs.to(self._harmonics.device), persistent=False)

    def forward(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch particles dim"]:
        """The velocities, (batch, N, D)."""
        x = (positions - positions.mean(1, keepdim=True)) / self.unit
        h = self.own_features(positions, t) + self.places(x)
        distances, _ = separations(x[:, :, None] - x[:, None])
        for bias, block in zip(self.biases, self.blocks, strict=True):
            h = block(h, bias(distances, self._square).movedim(-1, 1))
        v = self.readout(h)
        return self.unit * (v - v.mean(1, keepdim=True))


class _Block(torch.nn.Module):
    """Attention and a network of every atom, each added to what comes in."""

    def __init__(self, hidden: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.first, self.second = torch.nn.LayerNorm(hidden), torch.nn.LayerNorm(hidden)
        self.parts = torch.nn.Linear(hidden, 3 * hidden)
        self.joined = torch.nn.Linear(hidden, hidden)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(hidden, 4 * hidden), torch.nn.SiLU(), torch.nn.Linear(4 * hidden, hidden)
        )

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        """New features of all atoms."""
        heads = self.parts(self.first(h)).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        # fused attention has no forward-mode derivative
        scores = torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]) + bias, -1)
        h = h + self.joined((scores @ value).transpose(1, 2).flatten(2))
        return h + self.network(self.second(h))
