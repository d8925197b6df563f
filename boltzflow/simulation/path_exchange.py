"""Replica exchange along a path of Targets that is no mixture of its ends, such as one of λ with a soft core."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context, Level, Run
from boltzflow.simulation.replica_exchange import ReplicaExchange
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.transitions.metropolis import MetropolisKernel, per_row
from boltzflow.transitions.swap import exchange_neighbours

__all__ = ["PathExchange", "PathRows"]


class _RowTarget:
    """Every row under the Target of its own rung, as one energy that evaluations are kept for."""

    def __init__(self, targets: Sequence[Target], factors: Tensor, rungs: Tensor) -> None:
        self.targets, self.factors, self.rungs = targets, factors, rungs
        self._rows = [(k, (rungs == k).nonzero()[:, 0]) for k in rungs.unique().tolist()]
        self.name, self.fields = targets[0].name, targets[0].fields

    def _parts(self, state: State) -> list[tuple[int, Tensor, State]]:
        return [(k, row, state.index(row)) for k, row in self._rows]

    def reduced_energy(self, state: State, context: Context | None = None) -> Tensor:
        u = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k, row, part in self._parts(state):
            u[row] = self.factors[k] * self.targets[k].reduced_energy(part, context).double()
        return u

    def energy_and_force(self, state: State, context: Context | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        u = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        force = {n: torch.zeros_like(state[n]) for n in self.fields if state[n].is_floating_point()}
        for k, row, part in self._parts(state):
            energy, own = self.targets[k].energy_and_force(part, context)
            u[row] = self.factors[k] * energy.double()
            for name, value in own.items():
                force[name][row] = per_row(self.factors[k].expand(len(row)), value) * value
        return u, force


@dataclass(frozen=True, eq=False)
class PathRows:
    """A level at which every row has the energy of the Target on its rung.

    Args:
        rows: The energies.
    """

    rows: _RowTarget

    @property
    def terms(self) -> tuple[tuple[float, _RowTarget], ...]:
        """The one energy that is evaluated."""
        return ((1.0, self.rows),)

    def energy(self, state: State, run: Run) -> tuple[Float64[Tensor, " batch"], State]:
        """The energy of every row, and the State that carries it."""
        return run.evaluate(self.rows, state)

    def energy_and_force(self, state: State, run: Run) -> tuple[Float64[Tensor, " batch"], dict[str, Tensor], State]:
        """Energy and force of every row, and the State that carries them."""
        return run.evaluate_with_force(self.rows, state)


class PathExchange(ReplicaExchange):
    """Walkers that exchange rungs, where rung r samples exp(−c_r u_r) with a Target of its own.

    Only the Target of its rung is evaluated for a walker, and that of the neighbour when an exchange is tried.

    Args:
        targets: One for every rung, all on the same fields; the first one relaxes the start.
        start: As for `ReplicaExchange`.
        factors: c of every rung, float64.
        n_chains: Independent ladders.
        kernels: As for `ReplicaExchange`.
        context: Passed on to the Targets.
        n_relax: Relaxation steps of the start.
        seed: Random by default, and kept.

    References:
        Fukunishi, Watanabe, Takada, J. Chem. Phys. 116, 9058 (2002).
    """

    def __init__(
        self,
        targets: Sequence[Target],
        start: State,
        *,
        factors: Float64[Tensor, " n_rungs"],
        n_chains: int,
        kernels: Sequence[MetropolisKernel],
        context: Context | None = None,
        n_relax: int = 100,
        seed: int | None = None,
    ) -> None:
        self.targets = tuple(targets)
        self._factors = factors.to(start.device)
        self._start(targets[0], start, len(factors), n_chains, kernels, None, context, n_relax, seed)
        self._here: _RowTarget | None = None

    def _rungs(self) -> dict[str, Any]:
        return {"targets": [t.name for t in self.targets], "factors": self._factors.tolist()}

    def _energy_of(self, rungs: Tensor) -> _RowTarget:
        return _RowTarget(self.targets, self._factors, rungs)

    def _level(self, rows: Tensor) -> Level:
        if self._here is None or not torch.equal(self._here.rungs, rows):
            self._here = self._energy_of(rows)
            # evaluations on other rungs are of no use any more
            self._state = State(dict(self._state.fields), self.target.fields)
        return PathRows(self._here)

    def _exchange(self, parity: int) -> tuple[Tensor, Tensor]:
        rung = self._walker_at.argsort(0)
        rows = rung.flatten()
        partner = rows + torch.where((rows - parity) % 2 == 0, 1, -1)
        paired = (partner >= 0) & (partner < self.n_rungs)
        own, self._state = self._level(rows).energy(self._state, self._run)
        other = own.clone()
        if bool(paired.any()):
            there = State({n: self._state[n][paired] for n in self.target.fields}, self.target.fields)
            other[paired] = self._run.evaluate(self._energy_of(partner[paired]), there)[0]
        change = (own - other).reshape(self.n_rungs, self.n_chains).gather(0, self._walker_at)
        lower = torch.arange(parity, self.n_rungs - 1, 2, device=self._device)
        return exchange_neighbours(self._walker_at, change[lower] + change[lower + 1], parity=parity, rng=self._run.rng)

    def energies(self, targets: Sequence[Target] | None = None) -> Float64[Tensor, "n_targets n_rungs n_chains"]:
        """Reduced energy of the present walker of every rung under these Targets, by default those of the rungs."""
        wanted = self.targets if targets is None else targets
        known: dict[Target, Tensor] = {}
        for target in wanted:
            if target not in known:
                u, _ = self._run.evaluate(target, self._state)
                known[target] = u.reshape(self.n_rungs, self.n_chains).gather(0, self._walker_at)
        return torch.stack([known[target] for target in wanted])

    def record(
        self, n_records: int, *, sweeps_per_record: int = 1, targets: Sequence[Target] | None = None
    ) -> Float64[Tensor, "n_records n_targets n_rungs n_chains"]:
        """Sample with frozen step sizes; see `ReplicaExchange.record`.

        Args:
            n_records: How often energies are recorded.
            sweeps_per_record: Sweeps between records.
            targets: Whose energies; by default those of the rungs.
        """
        found = []
        for _ in range(n_records):
            for _ in range(sweeps_per_record):
                self._sweep()
            found.append(self.energies(targets).cpu())
        return torch.stack(found)
