"""Moves of single particles, tested with the energies of these particles alone: displacements and swap Monte Carlo."""

import abc
import math
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.run import Context, EnergyModel, Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.step_size import Stepped, tracks
from boltzflow.transitions.torsion_move import evaluate_moved

__all__ = ["ParticleDisplacement", "ParticleEnergies", "ParticleMove", "SpeciesSwap", "swap_monte_carlo"]


@runtime_checkable
class ParticleEnergies(Protocol):
    """A Target whose energy is a sum of terms of one particle and of pairs, each a function of the distance."""

    def particle_energies(
        self,
        columns: Float[Tensor, "d n batch"],
        places: Float[Tensor, "k d batch"],
        slots: Sequence[int],
        *,
        without: Sequence[int],
        context: Context | None = None,
    ) -> Float64[Tensor, "k batch"]:
        """Energy of particle slots[k] at places[k] with all others but those in `without`."""


class ParticleMove(MetropolisKernel):
    """Moves one or two particles of the field "positions" (n, d) at a time, the same ones in every row.

    Which particles are moved is drawn anew for every trial, whatever the configurations. Each trial is in detailed
    balance for the particles drawn, so that rows at equilibrium are independent although they share the draws.

    Under a level of one Target with `ParticleEnergies` a trial costs the energies of the moved particles. The ledger
    counts them by their share of the n (n − 1)/2 pairs of an energy: 4/n of an evaluation for a displacement, about 8/n
    for a swap, rounded up per call, which ends with one evaluation of its result. Otherwise every trial is an
    evaluation. The numbers are the same.
    """

    @abc.abstractmethod
    def picks(self, n_trials: int, n_particles: int, rng: torch.Generator) -> list[tuple[int, ...]]:
        """Draw the slots of trials: of one particle that is shifted, or of two that exchange places."""

    def shifts(self, n_trials: int, x: Float[Tensor, "batch n d"], run: Run) -> Float[Tensor, "trials batch d"] | None:
        """Draw symmetric shifts; None where particles exchange places."""
        return None

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Make the move of one trial, and evaluate the whole energy."""
        before, _ = run.energy(state)
        x = state["positions"]
        (slots,) = self.picks(1, x.shape[1], run.rng)
        shifts = self.shifts(1, x, run)
        moved = x.clone()
        moved[:, list(slots)] = x[:, list(slots)].flip(1) if shifts is None else x[:, list(slots)] + shifts[0][:, None]
        after, proposal = evaluate_moved(state, moved, run)
        return proposal, before - after

    def step(self, state: State, run: Run) -> State:
        """Make `n_steps` trials."""
        local = None if tracks(self, state, run) else _one_term(run)
        if local is None:
            return super().step(state, run)
        weight, target = local
        x = state["positions"].detach()
        batch, n = x.shape[:2]
        slots, shifts = self.picks(self.n_steps, n, run.rng), self.shifts(self.n_steps, x, run)
        like = torch.empty(self.n_steps, batch, dtype=torch.float64, device=x.device)
        chances = (slots, shifts, run.uniform(like).log())
        fast = getattr(target, "particle_trials", None)
        found = None if fast is None else fast(x, *chances, weight=weight, context=run.context)
        x, accepted, total = _trials(target, x, *chances, weight, run.context) if found is None else found
        self._accepted = self._accepted + accepted.sum().long()
        self._trials += self.n_steps * batch
        self.last_acceptance = total / self.n_steps
        if not any(target is one for one in run.free):
            n_pairs = batch * sum(2 * len(pair) * (n - len(pair)) for pair in slots)
            run.ledger.count(target.name, energy=math.ceil(2 * n_pairs / (n * (n - 1))))
        # anew: of energies that were huge at first, sums of differences would be left with their rounding
        return evaluate_moved(state, x, run)[1]


def _trials(
    target: ParticleEnergies,
    x: Tensor,
    slots: Sequence[tuple[int, ...]],
    shifts: Tensor | None,
    log_uniforms: Tensor,
    weight: float | Tensor,
    context: Context | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions after trials one after the other; accepted trials and acceptance probabilities, summed by row."""
    columns = x.permute(2, 1, 0).contiguous()
    accepted, total = torch.zeros(2, len(x), dtype=torch.float64, device=x.device)
    for t, pair in enumerate(slots):
        present = columns[:, list(pair)].transpose(0, 1)
        proposed = present.flip(0) if shifts is None else present + shifts[t].T
        both = torch.cat([present, proposed])
        u = target.particle_energies(columns, both, pair * 2, without=pair, context=context)
        odds = weight * (u[: len(pair)].sum(0) - u[len(pair) :].sum(0))
        accept = log_uniforms[t] < odds
        for k, slot in enumerate(pair):
            columns[:, slot] = torch.where(accept, proposed[k], present[k])
        accepted += accept
        total += torch.nan_to_num(odds, nan=-torch.inf).clamp(max=0.0).exp()
    return columns.permute(2, 1, 0).contiguous(), accepted, total


def _one_term(run: Run) -> tuple[float | Tensor, EnergyModel] | None:
    """Weight and Target of a level that has but one, with `ParticleEnergies`."""
    terms = () if run.level is None else run.level.terms
    return terms[0] if len(terms) == 1 and isinstance(terms[0][1], ParticleEnergies) else None


class ParticleDisplacement(ParticleMove, Stepped):
    """Metropolis displacements of single particles by Gaussian steps, the local Monte Carlo of liquids.

    Args:
        step_size: Standard deviation of every component, in the unit of the positions, a number or one per row.
        n_steps: Trials per call; as many as there are particles are a sweep.
        level: λ on the annealing path.

    References:
        Metropolis et al., J. Chem. Phys. 21, 1087 (1953).
    """

    target_acceptance: ClassVar[float] = 0.4

    def __init__(self, step_size: float | Tensor, *, n_steps: int = 1, level: float = 1.0) -> None:
        super().__init__(n_steps=n_steps, level=level)
        self.register_step_size(step_size, learnable=False)

    def picks(self, n_trials: int, n_particles: int, rng: torch.Generator) -> list[tuple[int, ...]]:
        """Any particle."""
        drawn = torch.randint(n_particles, (n_trials,), device=rng.device, generator=rng)
        return [(slot,) for slot in drawn.tolist()]

    def shifts(self, n_trials: int, x: Float[Tensor, "batch n d"], run: Run) -> Float[Tensor, "trials batch d"]:
        """Gaussian steps."""
        noise = run.normal(x.new_empty(n_trials, len(x), x.shape[2]))
        return self.current_step_size().to(x.dtype).reshape(-1, 1) * noise


class SpeciesSwap(ParticleMove):
    """Exchanges the positions of two particles of different species: the non-local move of swap Monte Carlo.

    The species of a particle is that of its slot, so this exchanges the species of two sites. Pairs of unlike particles
    are all equally likely, wherever they are.

    Args:
        species: Species of every slot, (n,), integers.
        n_steps: Trials per call.
        level: λ on the annealing path.

    Raises:
        ValueError: If all particles are of one species.

    References:
        Grigera and Parisi, Phys. Rev. E 63, 045102 (2001); Ninarello, Berthier and Coslovich, Phys. Rev. X 7, 021039
        (2017).
    """

    def __init__(self, species: Tensor | Sequence[int], *, n_steps: int = 1, level: float = 1.0) -> None:
        super().__init__(n_steps=n_steps, level=level)
        kinds = torch.as_tensor(species).cpu()
        pairs = torch.triu_indices(len(kinds), len(kinds), 1)
        self.n_particles = len(kinds)
        self.pairs = [tuple(pair) for pair in pairs[:, kinds[pairs[0]] != kinds[pairs[1]]].T.tolist()]
        if not self.pairs:
            raise ValueError(f"SpeciesSwap species: expected at least two of them, got {kinds.tolist()}.")

    def picks(self, n_trials: int, n_particles: int, rng: torch.Generator) -> list[tuple[int, ...]]:
        """Any pairs of unlike particles."""
        if n_particles != self.n_particles:
            raise ValueError(f"SpeciesSwap: has the species of {self.n_particles} particles, got {n_particles}.")
        drawn = torch.randint(len(self.pairs), (n_trials,), device=rng.device, generator=rng)
        return [self.pairs[k] for k in drawn.tolist()]


def swap_monte_carlo(
    species: Tensor | Sequence[int], *, step_size: float = 0.1, swap_fraction: float = 0.2, n_sweeps: int = 1
) -> list[ParticleMove]:
    """Kernels of swap Monte Carlo: displacements and exchanges of species, n trials per sweep of n particles.

    Args:
        species: Species of every slot, (n,), integers.
        step_size: Of the displacements, where its adaptation starts or as it stays.
        swap_fraction: Of the trials that exchange species, in [0, 1); 0 leaves plain local Monte Carlo.
        n_sweeps: Sweeps of all particles per call of the kernels.

    Raises:
        ValueError: If the fraction is not in [0, 1).

    Example:
        >>> from boltzflow.run import make_rng
        >>> from boltzflow.simulation import ParallelTempering
        >>> from boltzflow.targets import TernaryLiquid
        >>> liquid = TernaryLiquid(temperature=1.0).double()
        >>> chains = ParallelTempering(
        ...     liquid, liquid.start(8, make_rng(1)), temperatures=[1.0], n_chains=8,
        ...     kernels=swap_monte_carlo(liquid.species), seed=2,
        ... )
        >>> chains.burn_in(20)
        >>> chains.run(10).reduced_energies.shape
        torch.Size([10, 8])
    """
    if not 0.0 <= swap_fraction < 1.0:
        raise ValueError(f"swap_monte_carlo swap_fraction: expected a number in [0, 1), got {swap_fraction}.")
    n_trials = len(species) * n_sweeps
    n_swaps = round(swap_fraction * n_trials)
    kernels: list[ParticleMove] = [ParticleDisplacement(step_size, n_steps=max(n_trials - n_swaps, 1))]
    return [*kernels, SpeciesSwap(species, n_steps=n_swaps)] if n_swaps else kernels
