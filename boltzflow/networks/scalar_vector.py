"""Features that are scalars and vectors: filters of the distance, updates and read-outs that keep them so."""

import torch

from boltzflow._typing import Float, Int, Tensor

__all__ = ["RadialFilters", "ScalarVectorReadout", "ScalarVectorUpdate", "separations"]


def separations(r: Float[Tensor, "*edges dim"]) -> tuple[Float[Tensor, "*edges 1"], Float[Tensor, "*edges dim"]]:
    """The length of vectors, and r/√(1 + r²), a direction that is smooth at 0."""
    squared = r.square().sum(-1, keepdim=True)
    # the root has no gradient at 0, where two atoms coincide
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt(), r / (1.0 + squared).sqrt()


class RadialFilters(torch.nn.Module):
    """Σ_k w_k g_k(d) times a factor of the category of the pair; it dies out with the last of the Gaussians g.

    Args:
        n_out: Filters.
        n_pairs: Categories of pairs.
        reach: Centre of the last Gaussian.
        n_basis: Gaussians, equidistant from 0.
    """

    def __init__(self, n_out: int, *, n_pairs: int, reach: float, n_basis: int) -> None:
        super().__init__()
        if reach <= 0 or n_basis < 2:
            raise ValueError(f"RadialFilters: expected a positive reach and 2 Gaussians, got {reach} and {n_basis}.")
        self.register_buffer("_centres", torch.linspace(0.0, reach, n_basis), persistent=False)
        self._width = reach / n_basis
        self.linear = torch.nn.Linear(n_basis, n_out, bias=False)
        # one category of pairs says nothing
        self.factors = torch.nn.Embedding(n_pairs, n_out) if n_pairs > 1 else None

    def forward(self, distances: Float[Tensor, "*edges 1"], pairs: Int[Tensor, "*kinds"]) -> Float[Tensor, "*edges k"]:
        """The filters of every edge; the last axes of the edges are those of the categories."""
        filters = self.linear(torch.exp(-0.5 * ((distances - self._centres) / self._width).square()))
        return filters if self.factors is None else filters * (1.0 + self.factors(pairs))


class ScalarVectorUpdate(torch.nn.Module):
    """s ← s + a + b ⟨Uv, Vv⟩, v ← v + c Uv with a, b, c from s and |Vv|; all of one atom.

    Args:
        hidden: Number of scalars, and of vectors.

    References:
        PaiNN (Schütt, Unke, Gastegger, 2021), eqs. 9-10, https://arxiv.org/abs/2102.03150
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.maps = torch.nn.Linear(hidden, 2 * hidden, bias=False)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(2 * hidden, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, 3 * hidden)
        )

    def forward(
        self, s: Float[Tensor, "*atoms hidden"], v: Float[Tensor, "*atoms dim hidden"]
    ) -> tuple[Float[Tensor, "*atoms hidden"], Float[Tensor, "*atoms dim hidden"]]:
        """Both kinds of features."""
        first, second = self.maps(v).chunk(2, -1)
        # the norm would have no gradient where there is no vector yet
        size = (1.0 + second.square().sum(-2)).sqrt()
        a, b, c = self.network(torch.cat([s, size], -1)).chunk(3, -1)
        return s + a + b * (first * second).sum(-2), v + c[..., None, :] * first


class ScalarVectorReadout(torch.nn.Module):
    """One vector per atom: its vectors, mixed with weights from its scalars; zero before training.

    Args:
        hidden: Number of scalars, and of vectors.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weights = torch.nn.Sequential(
            torch.nn.Linear(hidden, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, hidden)
        )
        torch.nn.init.zeros_(self.weights[-1].weight)
        torch.nn.init.zeros_(self.weights[-1].bias)

    def forward(
        self, s: Float[Tensor, "*atoms hidden"], v: Float[Tensor, "*atoms dim hidden"]
    ) -> Float[Tensor, "*atoms dim"]:
        """The vectors."""
        return (self.weights(s)[..., None, :] * v).sum(-1)
