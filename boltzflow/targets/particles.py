"""Clusters of identical particles without a centre of mass: DW4 and Lennard-Jones clusters."""

import abc
from typing import Literal

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets.cluster_kernel import cluster_energies, library
from boltzflow.targets.target import Target

__all__ = ["DoubleWellCluster", "LennardJonesCluster", "PairTarget"]


class PairTarget(Target):
    """u = Σ_{i<j} pair(r_ij) + ½ stiffness Σ_i |x_i − x̄|², on the mean-free subspace of positions (N, D).

    The energy reads only differences, so it is invariant under translations, and log Z is over d = (N − 1) D dimensions
    of labelled particles. The virial identity is E[x·∇u] = d. It does not depend on the context.

    Args:
        n_particles: N, at least 2.
        n_dimensions: D.
        stiffness: Of the harmonic well about the centre of mass; 0 = none.
        name: Shown in ledgers and provenance.
    """

    measure = "mean-free"

    def __init__(self, n_particles: int, n_dimensions: int, *, stiffness: float, name: str) -> None:
        if n_particles < 2 or n_dimensions < 1:
            raise ValueError(
                f"{name}: expected at least 2 particles in at least 1 dimension, got {n_particles} and {n_dimensions}."
            )
        dimension = (n_particles - 1) * n_dimensions
        super().__init__({"positions": Space("line", (n_particles, n_dimensions), dimension)}, name=name)
        self.stiffness = float(stiffness)
        self.register_buffer("_pairs", torch.triu_indices(n_particles, n_particles, 1), persistent=False)

    @abc.abstractmethod
    def pair_energy(self, squared_distance: Float[Tensor, "pairs batch"]) -> Float[Tensor, "pairs batch"]:
        """Energy of every unordered pair in kT from its squared distance."""

    def pair_slope(self, squared_distance: Float[Tensor, "pairs batch"]) -> Float[Tensor, "pairs batch"]:
        """Its derivative by the squared distance, by autograd; written out it is faster."""
        with torch.enable_grad():
            leaf = squared_distance.detach().requires_grad_()
            return torch.autograd.grad(self.pair_energy(leaf).sum(), leaf)[0]

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Pair and harmonic energies, shape (batch,)."""
        return self._energy(sum(d.square() for d in self._differences(state["positions"])))

    def energy_and_force(
        self, state: State, context: Context | None = None
    ) -> tuple[Float64[Tensor, " batch"], dict[str, Tensor]]:
        """Energy and force, by `pair_slope`."""
        x = state["positions"].detach()
        differences = self._differences(x)
        squared = sum(d.square() for d in differences)
        pull = 2 * self.pair_slope(squared) + self.stiffness / x.shape[1]
        force = torch.zeros_like(x.permute(2, 1, 0).contiguous())
        for component, d in zip(force, differences, strict=True):
            along = d.mul_(pull)
            component.index_add_(0, self._pairs[1], along).index_add_(0, self._pairs[0], along, alpha=-1)
        return self._energy(squared), {"positions": force.permute(2, 1, 0).contiguous()}

    def wrap(self, positions: Float[Tensor, "*batch n dim"]) -> Float[Tensor, "*batch n dim"]:
        """The same configuration with its centre at the origin, where chains with unequal masses may have left it."""
        return positions - positions.mean(-2, keepdim=True)

    def _differences(self, x: Tensor) -> list[Float[Tensor, "pairs batch"]]:
        """x_i − x_j of every pair, by component. With the batch last, gathering moves whole rows: 8 times faster."""
        return [
            c.index_select(0, self._pairs[0]) - c.index_select(0, self._pairs[1])
            for c in x.permute(2, 1, 0).contiguous()
        ]

    def _energy(self, squared: Float[Tensor, "pairs batch"]) -> Float64[Tensor, " batch"]:
        u = self.pair_energy(squared).sum(0, dtype=torch.float64)
        if self.stiffness:
            # Σ_i |x_i − x̄|² = Σ_{i<j} r_ij² / N
            n_particles = self.fields["positions"].shape[0]
            u = u + 0.5 * self.stiffness / n_particles * squared.sum(0, dtype=torch.float64)
        return u


class DoubleWellCluster(PairTarget):
    """N particles in D dimensions with u = Σ_{i<j} [c δ + b δ² + a δ⁴], δ = r_ij − r0. The defaults are DW4.

    Reference for DW4: ⟨u⟩ = −22.539 ± 0.003.

    Args:
        n_particles: N.
        n_dimensions: D.
        a: Quartic coefficient.
        b: Quadratic coefficient.
        c: Linear coefficient.
        r0: Distance of the barrier.

    References:
        Köhler, Klein, Noé, ICML 2020.
    """

    def __init__(
        self,
        n_particles: int = 4,
        n_dimensions: int = 2,
        *,
        a: float = 0.9,
        b: float = -4.0,
        c: float = 0.0,
        r0: float = 4.0,
    ) -> None:
        super().__init__(n_particles, n_dimensions, stiffness=0.0, name=f"DW{n_particles}")
        self.a, self.b, self.c, self.r0 = float(a), float(b), float(c), float(r0)

    def pair_energy(self, squared_distance: Float[Tensor, "pairs batch"]) -> Float[Tensor, "pairs batch"]:
        """The double well of every pair."""
        delta = self._distance(squared_distance) - self.r0
        return delta * (self.c + delta * (self.b + self.a * delta.square()))

    def pair_slope(self, squared_distance: Float[Tensor, "pairs batch"]) -> Float[Tensor, "pairs batch"]:
        """Its derivative by the squared distance."""
        distance = self._distance(squared_distance)
        delta = distance - self.r0
        return (self.c + delta * (2 * self.b + 4 * self.a * delta.square())) / (2 * distance)

    def _distance(self, squared: Tensor) -> Tensor:
        # the root has no gradient at 0, where two particles coincide
        return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()


class LennardJonesCluster(PairTarget):
    """N particles with u = ε Σ [(r_min/r)¹² − 2 (r_min/r)⁶] + ½ stiffness Σ |x_i − x̄|².

    Two conventions are in use and differ by a factor of two in the pair energy. "ordered" sums over i ≠ j, each pair
    twice: the LJ13 and LJ55 of the sampling literature and of its public data. "unordered" sums over i < j.

    Args:
        n_particles: N.
        pair_sum: "ordered" or "unordered".
        n_dimensions: D.
        epsilon: Well depth in kT.
        r_min: Distance of the minimum.
        stiffness: Of the harmonic well about the centre of mass.

    References:
        Köhler, Klein, Noé, ICML 2020; Klein, Krämer, Noé, NeurIPS 2023.
    """

    def __init__(
        self,
        n_particles: int = 13,
        *,
        pair_sum: Literal["ordered", "unordered"] = "ordered",
        n_dimensions: int = 3,
        epsilon: float = 1.0,
        r_min: float = 1.0,
        stiffness: float = 1.0,
    ) -> None:
        if pair_sum not in ("ordered", "unordered"):
            raise ValueError(f"LennardJonesCluster pair_sum: expected 'ordered' or 'unordered', got {pair_sum!r}.")
        depth = "" if epsilon == 1.0 else f", epsilon {epsilon:g}"
        name = f"LJ{n_particles} ({pair_sum} pairs{depth})"
        super().__init__(n_particles, n_dimensions, stiffness=stiffness, name=name)
        self.pair_sum = pair_sum
        self.epsilon, self.r_min = float(epsilon), float(r_min)

    def pair_energy(self, squared_distance: Float[Tensor, "pairs batch"]) -> Float[Tensor, "pairs batch"]:
        """The Lennard-Jones energy of every pair, doubled if pairs are ordered; +inf where particles coincide."""
        # s (s − 2) is inf at s = inf, where s² − 2 s would be NaN
        s = (self.r_min**2 / squared_distance) ** 3
        return s * (s - 2) * self._depth

    def pair_slope(self, squared_distance: Float[Tensor, "pairs batch"]) -> Float[Tensor, "pairs batch"]:
        """Its derivative by the squared distance."""
        inverse = 1.0 / squared_distance
        s = (self.r_min**2 * inverse) ** 3
        return (1.0 - s) * s * inverse * (6 * self._depth)

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Pair and harmonic energies, shape (batch,)."""
        x = state["positions"]
        if self._compiles(x) and not (torch.is_grad_enabled() and x.requires_grad):
            return self._compiled(x, with_force=False)[0]
        return super().reduced_energy(state, context)

    def energy_and_force(
        self, state: State, context: Context | None = None
    ) -> tuple[Float64[Tensor, " batch"], dict[str, Tensor]]:
        """Energy and force, compiled on the CPU where there is a C++ compiler."""
        x = state["positions"]
        if not self._compiles(x):
            return super().energy_and_force(state, context)
        u, force = self._compiled(x, with_force=True)
        return u, {"positions": force}

    def _compiles(self, x: Tensor) -> bool:
        return (
            x.dtype in (torch.float32, torch.float64)
            and x.device.type == "cpu"
            and x.shape[2] <= 3
            and library() is not None
        )

    def _compiled(self, x: Tensor, *, with_force: bool) -> tuple[Tensor, Tensor | None]:
        spring = self.stiffness / x.shape[1]
        return cluster_energies(x, depth=self._depth, r_min=self.r_min, spring=spring, with_force=with_force)

    @property
    def _depth(self) -> float:
        return (2.0 if self.pair_sum == "ordered" else 1.0) * self.epsilon
