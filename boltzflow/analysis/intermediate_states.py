"""States between two Targets, u_λ = (1−λ) u_A + λ u_B, sampled by replica exchange and added until they overlap."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from boltzflow._typing import Tensor
from boltzflow.errors import LowOverlapError
from boltzflow.run import Ledger, new_seed
from boltzflow.simulation import ReplicaExchange
from boltzflow.state import State
from boltzflow.statistics import bar_overlap
from boltzflow.targets.target import Target
from boltzflow.transitions.metropolis import MetropolisKernel

__all__ = ["IntermediateStates", "Recorded", "neighbour_overlaps"]

logger = logging.getLogger(__name__)

WANTED_OVERLAP = 0.1
"""Overlap of neighbours that insertion aims at; 0.03 is the least at which errors can be relied on."""
NO_OVERLAP = 1e-3
PILOT_RECORDS = 30
FORBIDDEN = 1e10
"""A reduced energy in place of infinity."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """Energies of the samples of every state under both ends, in time order.

    Args:
        lambdas: λ of every state, rising, shape (n_states,).
        u_a: Reduced energy under A, shape (n_records, n_states, n_chains), float64.
        u_b: The same under B.
    """

    lambdas: np.ndarray
    u_a: np.ndarray
    u_b: np.ndarray

    @property
    def work(self) -> np.ndarray:
        """u_B − u_A, shape (n_records, n_states, n_chains); where both are infinite, inf."""
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(self.u_b - self.u_a, nan=np.inf, posinf=np.inf, neginf=-np.inf)

    def observed(self, k: int) -> np.ndarray:
        """What tells how samples of state k are correlated: their work, shape (n_records, n_chains)."""
        return self.work[:, k]

    def steps(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Work from every state to the next, of its own samples, and back, of those of the next."""
        work = self.work.transpose(1, 0, 2).reshape(len(self.lambdas), -1)
        return [(step * work[k], -step * work[k + 1]) for k, step in enumerate(np.diff(self.lambdas))]

    def joined(self, *later: "Recorded") -> "Recorded":
        """These samples and later ones of the same states."""
        arrays = {f.name: [getattr(part, f.name) for part in (self, *later)] for f in fields(self)}
        return replace(self, **{name: np.concatenate(a) for name, a in arrays.items() if name != "lambdas"})

    def u_kn(self) -> np.ndarray:
        """Reduced energy at every state of every sample, samples by state, then record, then chain: (K, K n).

        Infinite energies are given as 10¹⁰.
        """
        a, b = (u.transpose(1, 0, 2).ravel() for u in (self.u_a, self.u_b))
        lam = self.lambdas[:, None]
        with np.errstate(invalid="ignore"):
            # an end of weight zero does not count, however large its energy is (0·inf)
            u = np.where(lam == 1, 0.0, (1 - lam) * a) + np.where(lam == 0, 0.0, lam * b)
        # MBAR takes finite numbers; the weight of both is exactly zero
        return np.where(u == np.inf, FORBIDDEN, u)

    def chains(self) -> np.ndarray:
        """Chain of every sample in the order of `u_kn`."""
        n_records, n_states, n_chains = self.u_a.shape
        return np.tile(np.arange(n_chains), n_records * n_states)


def neighbour_overlaps(recorded: Recorded) -> np.ndarray:
    """Overlap of every pair of neighbouring states, shape (n_states − 1,): 1/2 if they are the same, 0 if disjoint."""
    found = []
    for forward, reverse in recorded.steps():
        usable = np.isfinite(forward).any() and np.isfinite(reverse).any() and not np.any(reverse == -np.inf)
        found.append(bar_overlap(forward, reverse) if usable and not np.any(forward == -np.inf) else 0.0)
    return np.array(found)


class IntermediateStates:
    """Independent ladders of states λ between two Targets, with hotter states of A at their end.

    All states of all ladders are one batch of `ReplicaExchange`. States may be added at any time: a new one starts from
    the walkers of the state next to it, and step sizes are adapted again.

    Args:
        a: The Target at λ = 0.
        b: The Target at λ = 1, on the same fields.
        start: One row, or one per ladder; relaxed with the energy of A.
        kernels: As for `ParallelTempering`.
        ratio: Where u_B = ratio · u_A (one potential at two temperatures), the ratio, so that only A is evaluated.
        n_chains: Independent ladders.
        max_temperature: Of the hottest state, as a multiple of A's; 1 = no hot states.
        seed: Random by default.
    """

    def __init__(
        self,
        a: Target,
        b: Target,
        start: State,
        *,
        kernels: Sequence[MetropolisKernel],
        ratio: float | None = None,
        n_chains: int = 32,
        max_temperature: float = 1.0,
        seed: int | None = None,
    ) -> None:
        if not max_temperature >= 1:
            raise ValueError(f"max_temperature: expected a factor >= 1, got {max_temperature}.")
        if n_chains < 2:
            raise ValueError(f"n_chains: errors are found between ladders, so expected at least 2, got {n_chains}.")
        self.a, self.b, self.ratio = a, b, ratio
        self.n_chains = n_chains
        self.seed = new_seed() if seed is None else seed
        # with ΔT/T = 2/√d about a quarter of the exchanges of d quadratic degrees of freedom succeed
        n_hot = math.ceil(math.log(max_temperature) / (2 / math.sqrt(a.dimension)))
        self.hot = [max_temperature ** (k / n_hot) for k in range(n_hot, 0, -1)] if n_hot else []
        self._kernels = list(kernels)
        self._start, self._rungs = start, 0
        self._ledger = Ledger()
        self.simulation: ReplicaExchange | None = None
        self.lambdas: np.ndarray = np.zeros(0)

    @property
    def ledger(self) -> Ledger:
        """Evaluations of all simulations up to now."""
        total = Ledger()
        total.merge(self._ledger)
        if self.simulation is not None:
            total.merge(self.simulation.ledger)
        return total

    def set_states(self, lambdas: Sequence[float]) -> None:
        """Go on with these states; every one starts from the nearest of those before."""
        new = np.asarray(lambdas, dtype=np.float64)
        if new.ndim != 1 or not len(new) or np.any(np.diff(new) <= 0) or new[0] < 0 or new[-1] > 1:
            raise ValueError(f"lambdas: expected rising numbers in [0, 1], got {list(lambdas)}.")
        if self.simulation is None:
            start, n_relax = self._start, 100
            sizes: dict[int, Tensor] = {}
        else:
            old = self.simulation
            nearest = [int(np.abs(self.lambdas - lam).argmin()) for lam in new]
            origin = torch.tensor([*range(len(self.hot)), *(len(self.hot) + k for k in nearest)])
            walkers = old.walkers()
            rows = origin[:, None] * self.n_chains + torch.arange(self.n_chains)
            start, n_relax = walkers.index(rows.flatten().to(walkers.device)), 0
            sizes = {i: s.cpu()[origin] for i, s in old.step_sizes.items()}
            self._ledger.merge(old.ledger)
        self.simulation = self._simulate(
            new.tolist(),
            start,
            n_chains=self.n_chains,
            kernels=self._kernels,
            n_relax=n_relax,
            seed=self.seed + self._rungs,
        )
        for i, s in sizes.items():
            self.simulation.step_sizes[i] = s.to(self.simulation.step_sizes[i])
        self._rungs += 1
        self.lambdas = new

    def _simulate(self, lambdas: list[float], start: State, **options: Any) -> ReplicaExchange:
        """Replica exchange of the hot states and of these."""
        ends = ((1.0, 0.0), (0.0, 1.0)) if self.ratio is None else ((1.0,), (self.ratio,))
        a, b = (torch.tensor(end, dtype=torch.float64) for end in ends)
        rungs = [a / factor for factor in self.hot] + [(1 - lam) * a + lam * b for lam in lambdas]
        targets = (self.a, self.b) if self.ratio is None else (self.a,)
        return ReplicaExchange(targets, start, coefficients=torch.stack(rungs), **options)

    def burn_in(self, n_sweeps: int) -> None:
        """Equilibrate and adapt the step sizes."""
        self.simulation.burn_in(n_sweeps)

    def record(self, n_records: int, *, sweeps_per_record: int) -> Recorded:
        """Sample; energies of the states λ, the hot ones left out."""
        u = self.simulation.record(n_records, sweeps_per_record=sweeps_per_record)[:, :, len(self.hot) :].numpy()
        return Recorded(self.lambdas, u[:, 0], u[:, 1] if self.ratio is None else self.ratio * u[:, 0])

    def until_overlap(self, *, n_burn_in: int, sweeps_per_record: int, max_states: int) -> list[dict[str, Any]]:
        """Add states where neighbours overlap too little, until all do.

        Args:
            n_burn_in: Sweeps after every addition.
            sweeps_per_record: As for `record`.
            max_states: How many states there may be.

        Returns:
            λ and overlaps of every round.

        Raises:
            LowOverlapError: If that many states are not enough.
        """
        rounds: list[dict[str, Any]] = []
        while True:
            pilot = self.record(PILOT_RECORDS, sweeps_per_record=sweeps_per_record)
            overlaps = neighbour_overlaps(pilot)
            rounds.append({"lambdas": self.lambdas.tolist(), "overlaps": overlaps.tolist()})
            logger.info("%d states, smallest overlap of neighbours %.3g", len(self.lambdas), overlaps.min())
            added = [_between(*pair) for pair in zip(self.lambdas, self.lambdas[1:], overlaps, strict=False)]
            wanted = np.unique(np.concatenate([self.lambdas, *added]))
            if len(wanted) == len(self.lambdas):
                return rounds
            if len(wanted) > max_states:
                k = int(overlaps.argmin())
                raise LowOverlapError(
                    f"{self.a.name} -> {self.b.name}: with {len(self.lambdas)} states, λ = {self.lambdas[k]:.4g} and "
                    f"{self.lambdas[k + 1]:.4g} still have an overlap of {overlaps[k]:.2g}, and at least {len(wanted)} "
                    f"states would be needed where max_states = {max_states}: allow more states, or go through a "
                    "system in between and add the two differences."
                )
            self.set_states(wanted.tolist())
            self.burn_in(n_burn_in)

    def sample(
        self, n: int, *, sweeps_per_record: int, seconds: float = math.inf, chunk: int = 10
    ) -> tuple[Recorded, bool]:
        """Record until every state has n samples over all ladders, or the time is up.

        Args:
            n: Samples of every state.
            sweeps_per_record: As for `record`.
            seconds: At most; one chunk is always recorded.
            chunk: Records between two looks at the clock.

        Returns:
            The samples, and whether all n were drawn.
        """
        began = time.perf_counter()
        wanted = max(2, math.ceil(n / self.n_chains))
        parts: list[Recorded] = []
        done = 0
        while done < wanted and (done < 4 or time.perf_counter() - began < seconds):
            parts.append(self.record(min(chunk, wanted - done), sweeps_per_record=sweeps_per_record))
            done += len(parts[-1].u_a)
        return parts[0].joined(*parts[1:]), done == wanted


def _between(low: float, high: float, overlap: float) -> np.ndarray:
    """States to add between two neighbours: three where nothing overlaps, one where too little does."""
    if overlap >= WANTED_OVERLAP:
        return np.zeros(0)
    return np.linspace(low, high, 5 if overlap < NO_OVERLAP else 3)[1:-1]
