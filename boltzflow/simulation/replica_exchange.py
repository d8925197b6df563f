"""Hamiltonian replica exchange: every rung is a mixture of energies of its own, all rungs and ladders in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context, Level, Run
from boltzflow.simulation.parallel_tempering import ParallelTempering
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.step_size import per_row
from boltzflow.transitions.swap import exchange_neighbours

__all__ = ["MixedRows", "ReplicaExchange"]


@dataclass(frozen=True, eq=False)
class MixedRows:
    """A level at which every row mixes the energies of some Targets in its own way: Σ_k c_k u_k, and forces likewise.

    A Target that no row uses is not evaluated, and where c_k = 0 an infinite u_k does not count (0·inf).

    Args:
        targets: The Targets, all on the same fields.
        coefficients: c_k of every row, shape (n_targets, batch), float64.
    """

    targets: tuple[Target, ...]
    coefficients: Tensor

    @property
    def terms(self) -> tuple[tuple[float, Target], ...]:
        """The Targets that some row uses, each with its largest coefficient."""
        largest = self.coefficients.abs().amax(1).tolist()
        return tuple((c, target) for c, target in zip(largest, self.targets, strict=True) if c)

    def energy(self, state: State, run: Run) -> tuple[Float64[Tensor, " batch"], State]:
        """Σ_k c_k u_k and the State that carries the u_k."""
        total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for c, target in zip(self.coefficients, self.targets, strict=True):
            if bool((c != 0).any()):
                u, state = run.evaluate(target, state)
                total = total + torch.where(c == 0, 0.0, c * u)
        return total, state

    def energy_and_force(self, state: State, run: Run) -> tuple[Float64[Tensor, " batch"], dict[str, Tensor], State]:
        """Σ_k c_k u_k, Σ_k c_k f_k by field, and the State that carries them."""
        total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        force: dict[str, Tensor] = {}
        for c, target in zip(self.coefficients, self.targets, strict=True):
            if bool((c != 0).any()):
                u, leaf, state = run.evaluate_with_force(target, state)
                total = total + torch.where(c == 0, 0.0, c * u)
                for name, f in leaf.items():
                    part = torch.where(per_row(c, f) == 0, 0.0, per_row(c, f) * f)
                    force[name] = force[name] + part if name in force else part
        return total, force, state


class ReplicaExchange(ParallelTempering):
    """Walkers that exchange rungs, where rung r samples exp(−Σ_k c_rk u_k).

    With one Target and c = β this is parallel tempering; with two and c = (1 − λ, λ) it is a chain of intermediate
    states between them. Everything else is as in `ParallelTempering`: step sizes are adapted to every rung in
    `burn_in`, and frozen.

    Args:
        targets: On the same fields; the first one relaxes the start.
        start: One row, one per ladder, or one per walker (rungs slowest).
        coefficients: Of every Target on every rung, shape (n_rungs, n_targets), float64; no rung may have only zeros.
        n_chains: Independent ladders.
        kernels: Applied in this order in every sweep; copied. A `step_size` may be one per rung.
        context: Passed on to the Targets.
        n_relax: Relaxation steps of the start.
        seed: Random by default, and kept.

    Raises:
        ValueError: If the Targets read different fields, or shapes or coefficients do not fit.
        NonFiniteEnergyError: If the relaxed start has a non-finite energy under the first Target.

    References:
        Fukunishi, Watanabe, Takada, J. Chem. Phys. 116, 9058 (2002); Sugita, Kitao, Okamoto, J. Chem. Phys. 113, 6042
        (2000), Eq. 14.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        start: State,
        *,
        coefficients: Float64[Tensor, "n_rungs n_targets"],
        n_chains: int,
        kernels: Sequence[MetropolisKernel],
        context: Context | None = None,
        n_relax: int = 100,
        seed: int | None = None,
    ) -> None:
        if coefficients.shape[1] != len(targets) or not len(coefficients):
            raise ValueError(
                f"coefficients: expected one row per rung and {len(targets)} columns, one per Target; got "
                f"{tuple(coefficients.shape)}."
            )
        if not bool(torch.isfinite(coefficients).all() and (coefficients != 0).any(1).all()):
            raise ValueError(f"coefficients: expected finite numbers, not all zero on a rung; got {coefficients}.")
        for other in targets[1:]:
            if other.fields != targets[0].fields:
                raise ValueError(
                    f"targets: {targets[0].name} reads {targets[0].fields}, {other.name} reads {other.fields}; "
                    "expected the same fields."
                )
        self.targets = tuple(targets)
        self._coefficients = coefficients.to(start.device)
        self._start(targets[0], start, len(coefficients), n_chains, kernels, None, context, n_relax, seed)

    def _rungs(self) -> dict[str, Any]:
        return {"targets": [t.name for t in self.targets], "coefficients": self._coefficients.tolist()}

    def _level(self, rows: Tensor) -> Level:
        return MixedRows(self.targets, self._coefficients[rows].T)

    def energies(self) -> Float64[Tensor, "n_targets n_rungs n_chains"]:
        """Reduced energy of the present walker of every rung under every Target."""
        found = []
        for target in self.targets:
            u, self._state = self._run.evaluate(target, self._state)
            found.append(u.reshape(self.n_rungs, self.n_chains).gather(0, self._walker_at))
        return torch.stack(found)

    def walkers(self) -> State:
        """The configurations, one row per rung and ladder, rungs slowest: a start for another simulation."""
        rows = self._walker_at * self.n_chains + torch.arange(self.n_chains, device=self._device)
        return self._state.index(rows.flatten())

    def _exchange(self, parity: int) -> tuple[Tensor, Tensor]:
        lower = torch.arange(parity, self.n_rungs - 1, 2, device=self._device)
        u = self.energies()
        step = (self._coefficients[lower] - self._coefficients[lower + 1]).T[:, :, None]
        # Targets that the two rungs weigh alike cancel, however large their energies are
        odds = torch.where(step == 0, 0.0, step * (u[:, lower] - u[:, lower + 1])).sum(0)
        return exchange_neighbours(self._walker_at, odds, parity=parity, rng=self._run.rng)

    def record(
        self, n_records: int, *, sweeps_per_record: int = 1
    ) -> Float64[Tensor, "n_records n_targets n_rungs n_chains"]:
        """Sample with frozen step sizes; energies under every Target of the walkers of all rungs, on the host.

        Args:
            n_records: How often energies are recorded.
            sweeps_per_record: Sweeps between records.
        """
        found = []
        for _ in range(n_records):
            for _ in range(sweeps_per_record):
                self._sweep()
            found.append(self.energies().cpu())
        return torch.stack(found)
