"""PairField: radial velocities between pairs of particles, with divergence and Jacobian in closed form."""

from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Int, Tensor
from boltzflow.networks.vector_field import VectorField

__all__ = ["PairField"]


class PairField(VectorField):
    """v_i = Σ_j f_ab(r_ij, t) (x_i − x_j) over particles of types a and b, f a sum of Gaussians of the distance.

    The same f acts on both partners, so v is the gradient of a pair potential: it has no mean, its Jacobian is
    symmetric, and it goes with translations, with permutations within types, and with rotations and reflections (in a
    box with those that map the box on itself). In a box the nearest images count, and f ends smoothly, with two
    derivatives, at a cutoff of at most half an edge. Between knots of t the weights are interpolated linearly. v is
    linear in the weights, which are zero before training.

    Args:
        types: Type of every particle, an integer each; [0] * N for identical ones.
        n_dimensions: D.
        box: Edges of a periodic box, one for all directions or one each; None = open.
        reach: Largest distance at which f acts; None = half the shortest edge. Needed without a box, where it is the
            centre of the last Gaussian.
        start: Centre of the first Gaussian; below the distances that occur it would be wasted.
        n_basis: Gaussians, equidistant and as wide as they are apart.
        n_times: Knots of t in [0, 1]; 1 = f does not depend on t.

    Attributes:
        kinds: The unordered pairs of types that occur, in the order of the last axis of the weights.

    Raises:
        ValueError: If the reach is more than half an edge, or numbers make no basis.

    References:
        Equivariant Flows (Köhler, Klein, Noé, 2020), section 5, https://arxiv.org/abs/2006.02425

    Example:
        >>> field = PairField([0, 0, 1], 2, box=4.0).double()
        >>> field(torch.rand(5, 3, 2, dtype=torch.float64)).shape
        torch.Size([5, 3, 2])
    """

    is_gradient = True
    rotates = True
    reflects = True

    def __init__(
        self,
        types: Sequence[int],
        n_dimensions: int,
        *,
        box: float | Sequence[float] | None = None,
        reach: float | None = None,
        start: float = 0.0,
        n_basis: int = 12,
        n_times: int = 1,
    ) -> None:
        super().__init__()
        if len(types) < 2 or n_basis < 2 or n_times < 1:
            raise ValueError(
                f"PairField: expected at least 2 particles, 2 Gaussians and 1 time, got {len(types)}, {n_basis} and "
                f"{n_times}."
            )
        edges = None if box is None else torch.as_tensor(box, dtype=torch.float64).expand(n_dimensions).clone()
        if reach is None:
            if edges is None:
                raise ValueError("PairField reach: expected a distance, since there is no box whose half it could be.")
            reach = 0.5 * float(edges.min())
        if edges is not None and reach > 0.5 * float(edges.min()):
            raise ValueError(
                f"PairField reach: expected at most half of the shortest edge, {0.5 * float(edges.min()):.6g}, "
                f"got {reach:.6g}: beyond it nearest images change abruptly."
            )
        if not 0.0 <= start < reach:
            raise ValueError(f"PairField start: expected a distance in [0, {reach:.6g}), got {start}.")
        self.types = tuple(int(kind) for kind in types)
        self.n_particles, self.n_dimensions = len(types), n_dimensions
        self.reach = float(reach)
        self.register_buffer("_edges", edges, persistent=False)
        first, second, kind_of, self.kinds = _pairs(types)
        self.register_buffer("_first", first, persistent=False)
        self.register_buffer("_second", second, persistent=False)
        self.register_buffer("_kind_of", kind_of, persistent=False)
        self.register_buffer("_centres", torch.linspace(start, self.reach, n_basis), persistent=False)
        self._width = (self.reach - start) / (n_basis - 1)
        self.weights = torch.nn.Parameter(torch.zeros(n_times, n_basis, len(self.kinds)))

    def forward(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch particles dim"]:
        """The velocities, (batch, N, D)."""
        r, d = self._separations(positions)
        f, _ = self._strength(d, t)
        return self._gathered([f * c for c in r])

    def divergence(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, " batch"]:
        """Σ_{i≠j} (f' r + D f), (batch,)."""
        _, d = self._separations(positions)
        f, slope = self._strength(d, t)
        return 2.0 * (slope * d + self.n_dimensions * f).sum(0)

    def jacobian(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch coordinates coordinates"]:
        """∂v/∂x, (batch, N·D, N·D): blocks −(f 1 + f'/r r rᵀ) between particles, minus their sums on the diagonal."""
        return self.velocity_and_jacobian(positions, t)[1]

    def velocity_and_jacobian(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch particles dim"], Float[Tensor, "batch coordinates coordinates"]]:
        """Both at once."""
        r, d = self._separations(positions)
        f, slope = self._strength(d, t)
        return self._gathered([f * c for c in r]), self._blocks(r, f, slope / d)

    def jvp(
        self,
        positions: Float[Tensor, "batch particles dim"],
        tangent: Float[Tensor, "batch particles dim"],
        t: float | Float[Tensor, " batch"] = 0.0,
    ) -> tuple[Float[Tensor, "batch particles dim"], Float[Tensor, "batch particles dim"]]:
        """The velocities, and Σ_j (f e_ij + f'/r (r·e_ij) r) with e_ij the difference of the tangents."""
        r, d = self._separations(positions)
        f, slope = self._strength(d, t)
        components = tangent.permute(2, 1, 0).contiguous()
        e = [c.index_select(0, self._first) - c.index_select(0, self._second) for c in components]
        along = slope / d * sum(a * b for a, b in zip(r, e, strict=True))
        pushed = [f * b + along * a for a, b in zip(r, e, strict=True)]
        return self._gathered([f * c for c in r]), self._gathered(pushed)

    def strength(self, distances: Float[Tensor, " n"], t: float = 0.0) -> Float[Tensor, "kinds n"]:
        """The function f of every kind of pair at given distances, (kinds, n)."""
        g = self._gaussians(distances[:, None])[..., 0]
        weights = torch.einsum("t,tkp->kp", self._hats(t, distances), self.weights)
        return (g @ weights).t() * self._cutoff(distances)[0]

    def stein(
        self, positions: Float[Tensor, "batch particles dim"], force: Float[Tensor, "batch particles dim"]
    ) -> Float[Tensor, "batch basis"]:
        """∇·b + F·b of the field b that belongs to every single weight, the same at all times.

        With F = −∇u each of them has the mean 0 under exp(−u); their best linear fit to a change of u is the field that
        follows the change, to first order.

        Args:
            positions: (batch, N, D).
            force: F, (batch, N, D), in kT per unit of length.

        Returns:
            (batch, n_basis · kinds), in the order of `weights[0].flatten()`.

        References:
            Control functionals for Monte Carlo integration (Oates, Girolami, Chopin, 2017), eq. 2,
            https://arxiv.org/abs/1410.2392
        """
        r, d = self._separations(positions)
        components = force.permute(2, 1, 0).contiguous()
        pull = sum(
            c * (f.index_select(0, self._first) - f.index_select(0, self._second))
            for c, f in zip(r, components, strict=True)
        )
        cut, slope_of_cut = self._cutoff(d)
        # of cut · g · (x_i − x_j), g a Gaussian: both parts are g times something
        at_centre = 2.0 * (slope_of_cut * d + self.n_dimensions * cut) + cut * pull
        beside = 2.0 * cut * d / self._width**2
        kinds = torch.nn.functional.one_hot(self._kind_of, len(self.kinds)).to(d.dtype)
        functions = [
            (g * (at_centre - beside * (d - centre))).t() @ kinds
            for g, centre in zip(self._gaussians(d).unbind(1), self._centres, strict=True)
        ]
        return torch.stack(functions, 1).flatten(1)

    def _separations(self, positions: Tensor) -> tuple[list[Tensor], Tensor]:
        """x_i − x_j of every pair by component, and distances, each (pairs, batch): gathering moves whole rows."""
        r = []
        for k, c in enumerate(positions.permute(2, 1, 0).contiguous()):
            delta = c.index_select(0, self._first) - c.index_select(0, self._second)
            if self._edges is not None:
                delta = delta - self._edges[k] * torch.round(delta / self._edges[k])
            r.append(delta)
        squared = sum(c.square() for c in r)
        # the root has no gradient at 0, where two particles coincide
        return r, squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()

    def _cutoff(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """(1 − r²/reach²)³ and its derivative; 1 and 0 without a box."""
        if self._edges is None:
            return torch.ones_like(d), torch.zeros_like(d)
        q = (1.0 - (d / self.reach).square()).clamp_min(0.0)
        return q**3, -6.0 / self.reach**2 * d * q.square()

    def _gaussians(self, d: Tensor) -> Tensor:
        """(pairs, n_basis, batch)."""
        scale = 0.5**0.5 / self._width
        return torch.exp(-(d[:, None] * scale - (self._centres * scale)[:, None]).square())

    def _hats(self, t: float | Tensor, like: Tensor) -> Tensor:
        """Weights of the knots of t: (n_times,), or (n_times, batch) for one t per row."""
        n = self.weights.shape[0]
        t = torch.as_tensor(t, dtype=like.dtype, device=like.device)
        if n == 1:
            return torch.ones((1,), dtype=like.dtype, device=like.device)
        knots = torch.arange(n, dtype=like.dtype, device=like.device).reshape(-1, *[1] * t.ndim)
        return (1.0 - ((n - 1) * t - knots).abs()).clamp_min(0.0)

    def _strength(self, d: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Strength f of every pair and its derivative f', (pairs, batch) each."""
        hats = self._hats(t, d)
        per_row = hats.ndim == 2
        layers = self.weights if per_row else torch.einsum("t,tkp->kp", hats, self.weights)[None]
        g = self._gaussians(d)
        cut, slope_of_cut = self._cutoff(d)
        f = slope = 0.0
        for k, layer in enumerate(layers):
            # Σ w g and Σ w centre g, of which the slope Σ w g (centre − r)/width² is made
            both = torch.stack([layer, layer * self._centres[:, None]])[:, :, self._kind_of].permute(2, 0, 1)
            value, moment = torch.bmm(both, g).unbind(1)
            hat = hats[k] if per_row else 1.0
            f = f + hat * cut * value
            slope = slope + hat * (slope_of_cut * value + cut * (moment - d * value) / self._width**2)
        return f, slope

    def _gathered(self, pulls: list[Tensor]) -> Tensor:
        """Σ over the partners of every particle: (batch, N, D)."""
        total = []
        for pull in pulls:
            zero = pull.new_zeros(self.n_particles, pull.shape[1])
            total.append(zero.index_add(0, self._first, pull).index_add(0, self._second, pull, alpha=-1))
        return torch.stack(total).permute(2, 1, 0).contiguous()

    def _blocks(self, r: list[Tensor], f: Tensor, slope_over_d: Tensor) -> Tensor:
        n, dim, batch = self.n_particles, self.n_dimensions, f.shape[1]
        there, back = self._first * n + self._second, self._second * n + self._first
        blocks = {}
        for a in range(dim):
            for b in range(a, dim):
                block = slope_over_d * r[a] * r[b]
                block = block + f if a == b else block
                full = block.new_zeros(n * n, batch).index_copy(0, there, -block).index_copy(0, back, -block)
                full = full.unflatten(0, (n, n))
                blocks[a, b] = full - torch.diag_embed(full.sum(1).t()).permute(1, 2, 0)
        # (D, D, N, N, batch) to (batch, N, D, N, D)
        full = torch.stack([torch.stack([blocks[min(a, b), max(a, b)] for b in range(dim)]) for a in range(dim)])
        return full.permute(4, 2, 0, 3, 1).reshape(batch, n * dim, n * dim)

    def extra_repr(self) -> str:
        """Sizes."""
        shape = f"particles={self.n_particles}, dimensions={self.n_dimensions}, reach={self.reach:.6g}"
        return (
            f"{shape}, kinds of pairs={len(self.kinds)}, basis={self.weights.shape[1]}, times={self.weights.shape[0]}"
        )


def _pairs(
    types: Sequence[int],
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " pairs"], tuple[tuple[int, int], ...]]:
    """Both members of every pair, the index of its kind, and the kinds: the unordered pairs of types that occur."""
    of = torch.as_tensor(types, dtype=torch.long)
    first, second = torch.triu_indices(len(of), len(of), 1)
    both = torch.stack([torch.minimum(of[first], of[second]), torch.maximum(of[first], of[second])])
    kinds, kind_of = torch.unique(both, dim=1, return_inverse=True)
    return first, second, kind_of, tuple((int(a), int(b)) for a, b in kinds.t())
