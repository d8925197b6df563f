"""NeighbourField: velocities along sums over neighbours, with weights that know the surroundings; cheap Jacobians."""

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import one_hot, silu

from boltzflow._typing import Float, Tensor
from boltzflow.networks.mlp import silu_slope
from boltzflow.networks.vector_field import VectorField

__all__ = ["NeighbourField"]

_SPREAD = 3.0
"""Distances from its centre at which a basis function ends, in units of their spacing."""


class NeighbourField(VectorField):
    """v_i = Σ_k a_k(surroundings of i, t) Σ_j b_k(r_ij) (x_i − x_j) minus its mean, the weights a from a network.

    Of the surroundings of every particle the network sees mixtures of the densities Σ_j b_k(r_ij), and lengths of
    mixtures of the vectors Σ_j b_k(r_ij) r and of the matrices Σ_j b_k(r_ij) r rᵀ, r = x_i − x_j, which tell of angles
    between its neighbours. The functions b_k are smooth bumps of the distance, and a constant. It goes with
    translations, rotations, reflections and permutations within types.

    The network works per particle and not per pair, and everything that it tells of a particle reaches one velocity:
    its exact Jacobian takes D backward passes through the network of every particle, written out, and a few products
    of matrices. That is about twice as cheap as that of `EmbeddedField`, in which neighbours speak too; over
    several steps they do so here as well.

    Args:
        types: Type of every particle, an integer each; [0] * N for identical ones.
        n_dimensions: D.
        reach: Centre of the last bump.
        hidden: Width of the network.
        n_features: Mixtures of densities, and as many of vectors; half as many of matrices.
        n_basis: Bumps, equidistant from 0.
        n_harmonics: Harmonics of t that the network sees.

    References:
        Densities of embedded atoms: Daw, Baskes, Phys. Rev. B 29, 6443 (1984); invariants of vectors: Drautz, Phys.
        Rev. B 99, 014104 (2019).

    Example:
        >>> field = NeighbourField([0] * 4, 2, reach=6.0).double()
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
        n_basis: int = 24,
        n_harmonics: int = 4,
    ) -> None:
        super().__init__()
        n = len(types)
        if n < 2 or n_basis < 2 or reach <= 0:
            raise ValueError(
                f"NeighbourField: expected at least 2 particles, 2 bumps and a positive reach, got {n}, {n_basis} "
                f"and {reach}."
            )
        self.types = tuple(int(kind) for kind in types)
        self.n_particles, self.n_dimensions, self.reach = n, n_dimensions, float(reach)
        self._width = self.reach / n_basis
        kinds = torch.as_tensor(types, dtype=torch.long)
        n_types = int(kinds.max()) + 1
        n_functions = (n_basis + 1) * n_types
        self.register_buffer("_kinds", kinds, persistent=False)
        self.register_buffer("_centres", torch.linspace(0.0, self.reach, n_basis), persistent=False)
        self.register_buffer("_harmonics", math.pi * torch.arange(1, n_harmonics + 1.0), persistent=False)
        self.register_buffer("_of_type", one_hot(kinds, n_types).float() if n_types > 1 else None, persistent=False)
        self.register_buffer("_others", 1.0 - torch.eye(n), persistent=False)
        self.densities = torch.nn.Linear(n_functions, n_features)
        self.vectors = torch.nn.Linear(n_functions, n_features, bias=False)
        n_matrices = (n_features + 1) // 2
        self.matrices = torch.nn.Linear(n_functions, n_matrices, bias=False)
        self.first = torch.nn.Linear(2 * n_features + n_matrices + 2 * n_harmonics + 1, hidden)
        self.own: torch.nn.Embedding | None = None
        if n_types > 1:
            self.own = torch.nn.Embedding(n_types, hidden)
            torch.nn.init.normal_(self.own.weight, std=0.1)
        self.inner = torch.nn.Linear(hidden, hidden)
        self.last = torch.nn.Linear(hidden, n_functions)
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)

    def forward(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch particles dim"]:
        """The velocities, (batch, N, D)."""
        r, _, basis, _ = self._neighbours(positions)
        _, weights, sums, *_ = self._weights(basis, r, t)
        v = (weights[..., None, :] @ sums)[..., 0, :]
        return v - v.mean(1, keepdim=True)

    def velocity_and_jacobian(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch particles dim"], Float[Tensor, "batch coordinates coordinates"]]:
        """Both at once, the Jacobian by the chain rule written out."""
        dim, root = positions.shape[2], math.sqrt(self.n_particles - 1)
        sizes = [self.densities.out_features, self.vectors.out_features, self.matrices.out_features]
        r, d, basis, slopes = self._neighbours(positions)
        layers, weights, sums, vectors, matrices, mixed = self._weights(basis, r, t)
        v = (weights[..., None, :] @ sums)[..., 0, :]

        # every component of v_i back through the network of i: (batch, N, D, what it sees)
        back = sums.mT @ self.last.weight
        back = (back * silu_slope(layers[1])[:, :, None]) @ self.inner.weight
        back = (back * silu_slope(layers[0])[:, :, None]) @ self.first.weight[:, : sum(sizes)]
        by_density, by_vector, by_matrix = back.split(sizes, 3)
        by_density = by_density @ self.densities.weight / root
        by_vector = by_vector * _length_slope(vectors, root)[:, :, None]
        # ∂v_i by every Σ_j b_k (x_i − x_j), as it stands and by its length: (batch, N, D, D, functions)
        by_sum = (by_vector[:, :, :, None] * vectors.mT[:, :, None]) @ self.vectors.weight
        by_sum = by_sum + torch.eye(dim, dtype=v.dtype, device=v.device)[..., None] * weights[:, :, None, None]

        # by x_j: through the vector x_i − x_j, and through the distance
        through_vector = by_sum.flatten(2, 3) @ basis.mT
        through_distance = torch.cat([by_sum.flatten(2, 3), by_density], 2) @ slopes.mT
        r = r.mT
        along = (through_distance[:, :, : dim * dim].unflatten(2, (dim, dim)) * r[:, :, None]).sum(3)
        along = along + through_distance[:, :, dim * dim :]
        pulls = through_vector.unflatten(2, (dim, dim)) + along[:, :, :, None] * (r / d[:, :, None])[:, :, None]
        by_matrix = (by_matrix * _length_slope(matrices, root)[:, :, None])[:, :, :, None] * matrices.mT[:, :, None]
        pulls = pulls + self._through_matrices(by_matrix.flatten(2, 3), mixed, slopes, r, d)
        pulls = pulls * self._others[:, None, None]
        # (batch, i, D, D, j): every neighbour against the particle itself
        jacobian = pulls.sum(4, keepdim=True) * (1.0 - self._others[:, None, None]) - pulls
        jacobian = (jacobian - jacobian.mean(1, keepdim=True)).mT.flatten(3).flatten(1, 2)
        return v - v.mean(1, keepdim=True), jacobian

    def jacobian(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch coordinates coordinates"]:
        """∂v/∂x, (batch, N·D, N·D)."""
        return self.velocity_and_jacobian(positions, t)[1]

    def _through_matrices(self, by_matrix: Tensor, mixed: Tensor, slopes: Tensor, r: Tensor, d: Tensor) -> Tensor:
        """What matrices add to the derivative by neighbours, (batch, i, D, D, j)."""
        dim = r.shape[2]
        at = (by_matrix @ mixed.mT).unflatten(2, (dim, dim, dim))
        sloped = (by_matrix @ (slopes @ self.matrices.weight.t()).mT).unflatten(2, (dim, dim, dim))
        turned = 2.0 * (at * r[:, :, None, None]).sum(4)
        along = ((sloped * r[:, :, None, None]).sum(4) * r[:, :, None]).sum(3)
        return turned + along[:, :, :, None] * (r / d[:, :, None])[:, :, None]

    def _neighbours(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_i − x_j, (batch, i, j, D), distances, the functions of them and their slopes, (batch, i, j, functions)."""
        r = x[:, :, None] - x[:, None]
        squared = r.square().sum(3)
        # the root has no gradient at 0, where two particles coincide
        d = squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
        z = (d[..., None] - self._centres) / self._width
        bump = (1.0 - z.square() / _SPREAD**2).clamp_min(0.0)
        square = bump.square()
        slopes = square * bump * z * (-8.0 / _SPREAD**2 / self._width)
        # of a sum over all, so that it weighs as much as a bump whatever the number of particles
        one = torch.full_like(d, 1.0 / math.sqrt(self.n_particles - 1))[..., None]
        basis, slopes = torch.cat([square.square(), one], 3), torch.cat([slopes, 0.0 * one], 3)
        if self._of_type is not None:
            # of the neighbours of every type
            basis, slopes = ((y[..., None] * self._of_type[:, None]).flatten(3) for y in (basis, slopes))
        return r, d, basis, slopes

    def _weights(
        self, basis: Tensor, r: Tensor, t: float | Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Hidden layers before their activation, the weights a, the sums over neighbours, and what is mixed of them."""
        root = math.sqrt(self.n_particles - 1)
        sums = basis.mT @ r
        vectors = self.vectors.weight @ sums / root
        # half of r rᵀ is enough of a symmetric matrix, but the whole is simpler to differentiate
        mixed = basis @ self.matrices.weight.t()
        matrices = mixed.mT @ (r[..., :, None] * r[..., None, :]).flatten(3) / root
        lengths = [torch.log1p(y.square().sum(3)) for y in (vectors, matrices)]
        t = torch.as_tensor(t, dtype=r.dtype, device=r.device).reshape(-1, 1, 1)
        times = torch.cat([t, torch.cos(self._harmonics * t), torch.sin(self._harmonics * t)], -1)
        densities = self.densities(basis.sum(2) / root)
        seen = torch.cat([densities, *lengths, times.expand(len(r), self.n_particles, -1)], -1)
        outer = self.first(seen)
        if self.own is not None:
            outer = outer + self.own(self._kinds)
        inner = self.inner(silu(outer))
        return (outer, inner), self.last(silu(inner)), sums, vectors, matrices, mixed

    def extra_repr(self) -> str:
        """Sizes."""
        return f"particles={self.n_particles}, dimensions={self.n_dimensions}, reach={self.reach:.6g}"


def _length_slope(y: Tensor, root: float) -> Tensor:
    """The derivative of log(1 + |y|²) by a sum of which y is 1/root times a mixture, but for the factor y."""
    return 2.0 / (1.0 + y.square().sum(3)) / root
