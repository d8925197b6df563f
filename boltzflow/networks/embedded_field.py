"""EmbeddedField: pair velocities that know the surroundings of both particles, with a cheap exact Jacobian."""

import math
from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.networks.mlp import silu_slope
from boltzflow.networks.vector_field import VectorField

__all__ = ["EmbeddedField"]


class EmbeddedField(VectorField):
    """v_i = Σ_j φ(r_ij, n_i, n_j, n̄, t) (x_i − x_j) minus its mean, with surroundings n_i = ν(Σ_j γ(r_ij, t)).

    One round of messages γ makes features of the surroundings of every particle, as the embedding densities of metals
    do, and their mean n̄ tells of the whole; φ, γ and ν are small networks. It goes with translations, rotations,
    reflections and permutations within types.
    Since φ is one number per pair, its derivatives by all that it sees cost one backward pass: the exact Jacobian of
    all N·D coordinates comes for a few evaluations, where deeper networks need one pass per coordinate.

    Args:
        types: Type of every particle, an integer each; [0] * N for identical ones.
        n_dimensions: D.
        reach: Centre of the last of the Gaussians that show distances to the networks; beyond it φ is constant in r.
        hidden: Width of the networks.
        n_features: Features of the surroundings.
        n_basis: Gaussians, equidistant from 0.
        n_harmonics: Harmonics of t that the networks see.

    References:
        EGNN, of which this is one layer with scalar messages: Satorras, Hoogeboom, Welling (2021),
        https://arxiv.org/abs/2102.09844; embedding densities: Daw, Baskes, Phys. Rev. B 29, 6443 (1984).

    Example:
        >>> field = EmbeddedField([0] * 4, 2, reach=6.0).double()
        >>> field(torch.rand(5, 4, 2, dtype=torch.float64), 0.5).shape
        torch.Size([5, 4, 2])
    """

    rotates = True
    reflects = True

    def __init__(
        self,
        types: Sequence[int],
        n_dimensions: int,
        *,
        reach: float,
        hidden: int = 64,
        n_features: int = 16,
        n_basis: int = 32,
        n_harmonics: int = 4,
    ) -> None:
        super().__init__()
        n = len(types)
        if n < 2 or n_basis < 2 or reach <= 0:
            raise ValueError(
                f"EmbeddedField: expected at least 2 particles, 2 Gaussians and a positive reach, got {n}, {n_basis} "
                f"and {reach}."
            )
        self.types = tuple(int(kind) for kind in types)
        self.n_particles, self.n_dimensions, self.reach = n, n_dimensions, float(reach)
        self._width = self.reach / n_basis
        first = torch.arange(n).repeat_interleave(n - 1)
        second = torch.arange(n).expand(n, n)[~torch.eye(n, dtype=torch.bool)]
        self.register_buffer("_first", first, persistent=False)
        self.register_buffer("_second", second, persistent=False)
        self.register_buffer("_centres", torch.linspace(0.0, self.reach, n_basis), persistent=False)
        self.register_buffer("_harmonics", math.pi * torch.arange(1, n_harmonics + 1.0), persistent=False)
        kinds = torch.as_tensor(types, dtype=torch.long)
        n_types = int(kinds.max()) + 1
        self.register_buffer("_pairs", kinds[first] * n_types + kinds[second], persistent=False)
        n_edge = n_basis + 2 * n_harmonics
        self.message = torch.nn.ModuleList([torch.nn.Linear(n_edge, hidden), torch.nn.Linear(hidden, n_features)])
        self.node = torch.nn.Linear(n_features, n_features)
        self.edge = torch.nn.Linear(n_edge, hidden)
        self.pair: torch.nn.Embedding | None = None
        if n_types > 1:
            # what an edge knows of the types at its ends, added to the first layers of messages and edges
            self.pair = torch.nn.Embedding(n_types**2, 2 * hidden)
            torch.nn.init.normal_(self.pair.weight, std=0.1)
        self.of_first = torch.nn.Linear(n_features, hidden, bias=False)
        self.of_second = torch.nn.Linear(n_features, hidden, bias=False)
        self.of_all = torch.nn.Linear(n_features, hidden, bias=False)
        self.inner = torch.nn.Linear(hidden, hidden)
        self.last = torch.nn.Linear(hidden, 1)
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)

    def forward(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch particles dim"]:
        """The velocities, (batch, N, D)."""
        r, d = self._separations(positions)
        messages, edges, _ = self._edges(d, t)
        _, n = self._surroundings(messages)
        return self._velocity(r, self._strength(edges, n)[-1])

    def velocity_and_jacobian(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch particles dim"], Float[Tensor, "batch coordinates coordinates"]]:
        """Both at once, the Jacobian by the chain rule written out."""
        batch, n_particles, dim = positions.shape
        r, d = self._separations(positions)
        messages, edges, slope = self._edges(d, t)
        sums, n = self._surroundings(messages)
        outer, inner, phi = self._strength(edges, n)
        # ∂φ by the first layer of its network
        back = (self.last.weight[0] * silu_slope(inner)) @ self.inner.weight * silu_slope(outer)
        by_distance = (back * (slope @ self.edge.weight[:, : slope.shape[-1]].t())).sum(-1, keepdim=True)
        by_first, by_second = back @ self.of_first.weight, back @ self.of_second.weight
        by_all = back @ self.of_all.weight / n_particles
        direction = r / d

        # ∂(surroundings)/∂x: (batch, N, features, N, D)
        grown = (slope @ self.message[0].weight[:, : slope.shape[-1]].t()) * silu_slope(messages)
        grown = grown @ self.message[1].weight.t() / math.sqrt(n_particles - 1)
        change = self._square((grown[..., None] * direction[..., None, :]).flatten(2))
        change = change.unflatten(-1, (-1, dim))
        # the centre moves with all its neighbours' edges, every neighbour against its own
        change = torch.diag_embed(change.sum(2).movedim(1, -1)).movedim((-2, -1), (1, 2)) - change
        slopes = silu_slope(sums)[:, :, None, :, None]
        change = torch.einsum("bjkma,fm->bjfka", change * slopes, self.node.weight)

        # how v_i hangs on the surroundings of j: those of i by all its edges, those of j by their own, all by the mean
        hangs = self._square((by_second[..., None] * r[..., None, :]).flatten(2)).unflatten(-1, (-1, dim))
        own = (by_first[..., None] * r[..., None, :]).unflatten(1, (n_particles, n_particles - 1)).sum(2)
        of_all = (by_all[..., None] * r[..., None, :]).unflatten(1, (n_particles, n_particles - 1)).sum(2)
        hangs = hangs + torch.diag_embed(own.movedim(1, -1)).movedim((-2, -1), (1, 2)) + of_all[:, :, None]
        through = hangs.permute(0, 1, 4, 2, 3).reshape(batch, n_particles * dim, -1)
        jacobian = through @ change.reshape(batch, -1, n_particles * dim)

        # directly, at fixed surroundings
        direct = (by_distance * r)[..., None] * direction[..., None, :]
        direct = direct + phi[..., None] * torch.eye(dim, dtype=phi.dtype, device=phi.device)
        direct = self._square(direct.flatten(2)).unflatten(-1, (dim, dim))
        direct = torch.diag_embed(direct.sum(2).movedim(1, -1)).movedim((-2, -1), (1, 2)) - direct
        jacobian = jacobian + direct.permute(0, 1, 3, 2, 4).reshape(jacobian.shape)
        jacobian = jacobian.unflatten(1, (n_particles, dim))
        jacobian = (jacobian - jacobian.mean(1, keepdim=True)).flatten(1, 2)
        return self._velocity(r, phi), jacobian

    def jacobian(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch coordinates coordinates"]:
        """∂v/∂x, (batch, N·D, N·D)."""
        return self.velocity_and_jacobian(positions, t)[1]

    def _separations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_i − x_j, (batch, edges, D), and distances, (batch, edges, 1); edges lie in order of i."""
        r = x[:, self._first] - x[:, self._second]
        squared = r.square().sum(-1, keepdim=True)
        # the root has no gradient at 0, where two particles coincide
        return r, squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()

    def _edges(self, d: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First layers of messages and edges before their activation, and the slopes of the Gaussians."""
        z = (d - self._centres) / self._width
        gaussians = torch.exp(-0.5 * z.square())
        t = torch.as_tensor(t, dtype=d.dtype, device=d.device).reshape(-1, 1, 1)
        times = torch.cat([torch.cos(self._harmonics * t), torch.sin(self._harmonics * t)], -1)
        seen = torch.cat([gaussians, times.expand(len(d), d.shape[1], -1)], -1)
        messages, edges = self.message[0](seen), self.edge(seen)
        if self.pair is not None:
            of_pair = self.pair(self._pairs)
            messages, edges = messages + of_pair[:, : messages.shape[-1]], edges + of_pair[:, messages.shape[-1] :]
        return messages, edges, -z / self._width * gaussians

    def _surroundings(self, messages: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the messages and the features of the surroundings, (batch, N, features)."""
        messages = self.message[1](torch.nn.functional.silu(messages))
        sums = messages.unflatten(1, (self.n_particles, self.n_particles - 1)).sum(2) / math.sqrt(self.n_particles - 1)
        return sums, self.node(torch.nn.functional.silu(sums))

    def _strength(self, edges: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both hidden layers before their activation, and φ, (batch, edges, 1)."""
        first = self.of_first(n) + self.of_all(n.mean(1, keepdim=True))
        outer = edges + first[:, self._first] + self.of_second(n)[:, self._second]
        inner = self.inner(torch.nn.functional.silu(outer))
        return outer, inner, self.last(torch.nn.functional.silu(inner))

    def _velocity(self, r: Tensor, phi: Tensor) -> Tensor:
        v = (phi * r).unflatten(1, (self.n_particles, self.n_particles - 1)).sum(2)
        return v - v.mean(1, keepdim=True)

    def _square(self, edges: Float[Tensor, "batch edges k"]) -> Float[Tensor, "batch particles particles k"]:
        """Values of edges as a matrix over both ends, 0 on the diagonal."""
        n = self.n_particles
        place = self._first * n + self._second
        full = edges.new_zeros(len(edges), n * n, edges.shape[2]).index_copy(1, place, edges)
        return full.unflatten(1, (n, n))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"particles={self.n_particles}, dimensions={self.n_dimensions}, reach={self.reach:.6g}"
