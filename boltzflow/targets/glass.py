"""A supercooled liquid: the two-dimensional ternary mixture in a periodic box that swap Monte Carlo equilibrates."""

import math
from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets.glass_kernel import LiquidKernel, library
from boltzflow.targets.target import Target

__all__ = ["TernaryLiquid"]

_SIGMA = ((1.0, 0.8, 0.9), (0.8, 0.88, 0.8), (0.9, 0.8, 0.94))
_EPSILON = ((1.0, 1.5, 0.75), (1.5, 0.5, 1.5), (0.75, 1.5, 0.75))
# of N = 1290: the length of its box
_REFERENCE = (1290, 32.8962)
# (r/σ)² at the cutoff, and the polynomial in it with which the energy and two derivatives vanish there
_CUT = 6.25
_C4 = 6 * _CUT**-5 - 21 * _CUT**-8
_C2 = 6 * _CUT**-7 - 3 * _CUT**-4 - 2 * _C4 * _CUT
_C0 = _CUT**-3 - _CUT**-6 - _C2 * _CUT - _C4 * _CUT**2


def _shape(q: Tensor) -> Tensor:
    """V/4ε at q = (r/σ)² up to the cutoff; +inf at 0."""
    inverse = q.reciprocal()
    s = inverse * inverse * inverse
    return s * (s - 1) + _C0 + q * (_C2 + _C4 * q)


def _slope(q: Tensor) -> Tensor:
    """Derivative of `_shape` by q; 0 at the cutoff."""
    inverse = q.reciprocal()
    s = inverse * inverse * inverse
    return 3 * s * inverse * (1 - 2 * s) + _C2 + 2 * _C4 * q


class TernaryLiquid(Target):
    """u = Σ_{i<j} V_ab(r_ij) / T of three species of particles in a periodic square, in reduced units: "KA2-2D".

    V_ab(r) = 4 ε_ab [(σ_ab/r)¹² − (σ_ab/r)⁶ + C0 + C2 (r/σ_ab)² + C4 (r/σ_ab)⁴] for r < 2.5 σ_ab, else 0; the three
    constants make V, V′ and V″ vanish at the cutoff. Distances are to the nearest image. The species of a particle is
    that of its slot and stays: an exchange of species is an exchange of positions.

    Positions are points of the torus [0, L)², of which every representative has the same energy; log Z is over the
    torus of all N labelled particles, with L² of it from the translations. `context["temperature"]` overrides the
    temperature, and `Tempered`, `TemperedPath` and parallel tempering scale u as that of any other Target.

    Args:
        counts: Particles of species 1, 2 and 3, which fill the slots in this order.
        length: L; None = the density 1.19206 of the model, which the default counts have in a box of 6.00600.
        temperature: T, in units of ε_11.

    Raises:
        ValueError: If there are fewer than two particles, or the box is shorter than twice the longest cutoff.

    References:
        The model of two-dimensional glass formers of Jung, Biroli and Berthier (2023, 2024), after the ternary mixture
        of Parmar, Ozawa and Berthier, Phys. Rev. Lett. 125, 085505 (2020), whose parameters differ.

    Example:
        >>> from boltzflow.run import make_rng
        >>> liquid = TernaryLiquid(temperature=0.3)
        >>> liquid.n_particles, liquid.dimension, round(liquid.length, 4)
        (43, 86, 6.006)
        >>> start = liquid.start(1, make_rng(0))
        >>> hot = liquid.reduced_energy(start, {"temperature": 0.6})
        >>> (hot / liquid.reduced_energy(start)).item()
        0.5
    """

    measure = "torus"

    def __init__(
        self, counts: Sequence[int] = (20, 11, 12), *, length: float | None = None, temperature: float = 1.0
    ) -> None:
        counts = tuple(int(n) for n in counts)
        n = sum(counts)
        if len(counts) != 3 or min(counts) < 0 or n < 2:
            raise ValueError(f"TernaryLiquid counts: expected three numbers, two particles or more, got {counts}.")
        if length is None:
            length = _REFERENCE[1] * math.sqrt(n / _REFERENCE[0])
        present = [a for a, count in enumerate(counts) if count]
        shortest = 2 * math.sqrt(_CUT) * max(_SIGMA[a][b] for a in present for b in present)
        if not shortest <= length < math.inf:
            raise ValueError(
                f"TernaryLiquid length: expected at least twice the longest cutoff, {shortest:g}, got {length:g}; take "
                "more particles, or a longer box."
            )
        super().__init__({"positions": Space("box", (n, 2))}, name=f"KA2-2D, N = {n}")
        self.counts, self.length, self.temperature = counts, float(length), _temperature(temperature)
        self.register_buffer("species", torch.arange(3).repeat_interleave(torch.tensor(counts)), persistent=False)
        sigma, epsilon = (torch.tensor(table, dtype=torch.float64) for table in (_SIGMA, _EPSILON))
        of = (self.species[:, None], self.species[None])
        self.register_buffer("_inverse_square", sigma[of] ** -2, persistent=False)
        self.register_buffer("_depth", 4 * epsilon[of], persistent=False)
        self.register_buffer("_pairs", torch.triu_indices(n, n, 1), persistent=False)

    @property
    def n_particles(self) -> int:
        """N."""
        return len(self.species)

    def start(self, n: int, rng: torch.Generator) -> State:
        """Rows on a square lattice, each with its particles in another order: no ensemble, but a start for chains."""
        side = math.ceil(math.sqrt(self.n_particles))
        sites = torch.rand((n, side**2), dtype=torch.float64, device=rng.device, generator=rng).argsort(1)
        sites = sites[:, : self.n_particles].to(self.species.device)
        grid = torch.stack([sites.div(side, rounding_mode="floor"), sites % side], 2)
        return self.state((grid + 0.5).to(self._depth.dtype) * (self.length / side))

    def wrap(self, positions: Float[Tensor, "*batch n 2"]) -> Float[Tensor, "*batch n 2"]:
        """The representatives in [0, L)."""
        return torch.remainder(positions, self.length)

    def nearest_image(self, differences: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
        """Components of differences, each brought into [−L/2, L/2]."""
        return differences - self.length * (differences / self.length).round()

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Sum over all pairs, shape (batch,); +inf where particles coincide."""
        x = state["positions"]
        if self._compiles(x) and not (torch.is_grad_enabled() and x.requires_grad):
            return self._beta(context) * self._kernel.energies(x, with_force=False)[0]
        depth, _, q, _ = self._of_pairs(x)
        return self._beta(context) * (depth * _shape(q)).sum(0, dtype=torch.float64)

    def energy_and_force(
        self, state: State, context: Context | None = None
    ) -> tuple[Float64[Tensor, " batch"], dict[str, Tensor]]:
        """Energy and force in closed form, detached."""
        x = state["positions"].detach()
        with torch.no_grad():
            beta = self._beta(context)
            if self._compiles(x):
                u, force = self._kernel.energies(x, with_force=True)
                return beta * u, {"positions": beta * force}
            depth, inverse_square, q, differences = self._of_pairs(x)
            u = beta * (depth * _shape(q)).sum(0, dtype=torch.float64)
            pull = (2 * beta * depth * inverse_square) * _slope(q)
            force = torch.zeros_like(x.permute(2, 1, 0).contiguous())
            for component, d in zip(force, differences, strict=True):
                part = pull * d
                component.index_add_(0, self._pairs[1], part).index_add_(0, self._pairs[0], part, alpha=-1)
        return u, {"positions": force.permute(2, 1, 0).contiguous()}

    def particle_energies(
        self,
        columns: Float[Tensor, "2 n batch"],
        places: Float[Tensor, "k 2 batch"],
        slots: Sequence[int],
        *,
        without: Sequence[int],
        context: Context | None = None,
    ) -> Float64[Tensor, "k batch"]:
        """Energies of single particles, of which the change of u by a move of one or two is a sum: O(N).

        Args:
            columns: Positions with the batch last.
            places: Where each of k particles is put.
            slots: Which particle each of them is.
            without: Particles that are left out of the sums, the particle itself among them.
            context: As in `reduced_energy`.
        """
        difference = columns - places[:, :, None]
        difference -= (difference / self.length).round_().mul_(self.length)
        squared = difference.square_().sum(1)
        for slot in without:
            squared[:, slot] = torch.inf
        q = squared.mul_(self._inverse_square[list(slots), :, None].to(squared.dtype)).clamp_(max=_CUT)
        depth = self._depth[list(slots), None].to(squared.dtype)
        return self._beta(context) * (depth @ _shape(q))[:, 0].double()

    def particle_trials(
        self,
        positions: Float[Tensor, "batch n 2"],
        slots: Sequence[tuple[int, ...]],
        shifts: Float[Tensor, "trials batch 2"] | None,
        log_uniforms: Float64[Tensor, "trials batch"],
        *,
        weight: float | Tensor,
        context: Context | None = None,
    ) -> tuple[Float64[Tensor, "batch n 2"], Float64[Tensor, " batch"], Float64[Tensor, " batch"]] | None:
        """Metropolis trials of `ParticleMove` one after the other, in one compiled pass.

        Args:
            positions: Before.
            slots: Of every trial the particle that moves, or the two that exchange places.
            shifts: Of the particle; None where two exchange places.
            log_uniforms: A trial whose log odds are above is accepted.
            weight: Of u in the energy of the level, a number or one per row.
            context: As in `reduced_energy`.

        Returns:
            Positions after all, number of accepted trials and sum of acceptance probabilities of every row; None where
            nothing is compiled: not float64 on the CPU, or no C++ compiler.
        """
        if not self._compiles(positions):
            return None
        beta = torch.as_tensor(weight * self._beta(context), dtype=torch.float64).expand(len(positions))
        return self._kernel.trials(positions, slots, shifts, log_uniforms, beta)

    @property
    def _kernel(self) -> LiquidKernel:
        return LiquidKernel(self._inverse_square, self._depth, length=self.length, constants=(_CUT, _C0, _C2, _C4))

    def _compiles(self, x: Tensor) -> bool:
        tables = (x, self._depth)
        return all(t.dtype == torch.float64 and t.device.type == "cpu" for t in tables) and library() is not None

    def _of_pairs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Of every pair 4ε and σ⁻², shape (pairs, 1); (r/σ)² up to the cutoff, (pairs, batch); x_i − x_j."""
        i, j = self._pairs
        differences = [
            self.nearest_image(c.index_select(0, i) - c.index_select(0, j)) for c in x.permute(2, 1, 0).contiguous()
        ]
        inverse_square, depth = (t[i, j, None].to(x.dtype) for t in (self._inverse_square, self._depth))
        # NaN passes the clamp
        return (
            depth,
            inverse_square,
            (sum(d.square() for d in differences) * inverse_square).clamp(max=_CUT),
            differences,
        )

    def _beta(self, context: Context | None) -> float | Tensor:
        given = self.temperature if context is None or "temperature" not in context else context["temperature"]
        return 1.0 / (given.double() if isinstance(given, Tensor) else _temperature(given))


def _temperature(value: float) -> float:
    if not 0.0 < value < math.inf:
        raise ValueError(f"TernaryLiquid temperature: expected a positive number, in units of ε_11, got {value!r}.")
    return float(value)
