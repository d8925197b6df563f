"""States along a path of Targets that is no mixture of its ends, such as the λ of alchemical atoms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from boltzflow.analysis.intermediate_states import FORBIDDEN, IntermediateStates, Recorded
from boltzflow.simulation import PathExchange
from boltzflow.state import State
from boltzflow.targets.target import Target

__all__ = ["PathStates", "RecordedPath"]


@dataclass(frozen=True, eq=False)
class RecordedPath(Recorded):
    """Energies of the samples of every state under all states, in time order.

    Args:
        lambdas: Position of every state on the path, rising, shape (n_states,).
        u_a: Reduced energy under A, shape (n_records, n_states, n_chains), float64.
        u_b: The same under B.
        u: Reduced energies, shape (n_records, states they are evaluated at, states they come from, n_chains), float64.
    """

    u: np.ndarray

    def _difference(self, to: int, of: int) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(self.u[:, to, of] - self.u[:, of, of], nan=np.inf, posinf=np.inf, neginf=-np.inf)

    def observed(self, k: int) -> np.ndarray:
        """The work to the next state, or from the last to the one before it; shape (n_records, n_chains)."""
        if len(self.lambdas) == 1:
            return super().observed(k)
        return self._difference(k + 1 if k + 1 < len(self.lambdas) else k - 1, k)

    def steps(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """See `Recorded.steps`."""
        pairs = range(len(self.lambdas) - 1)
        return [(self._difference(k + 1, k).ravel(), self._difference(k, k + 1).ravel()) for k in pairs]

    def u_kn(self) -> np.ndarray:
        """See `Recorded.u_kn`."""
        found = self.u.transpose(1, 2, 0, 3).reshape(len(self.lambdas), -1)
        return np.minimum(found, FORBIDDEN)


class PathStates(IntermediateStates):
    """Independent ladders of states of a path, with hotter states of its beginning at their end.

    Args:
        path: Position from 0 (A) to 1 (B) to the Target there.
        start: As for `IntermediateStates`.
        **options: Those of `IntermediateStates`, without a ratio.
    """

    def __init__(self, path: Callable[[float], Target], start: State, **options: Any) -> None:
        super().__init__(path(0.0), path(1.0), start, **options)
        self._path = path
        self._targets: dict[float, Target] = {0.0: self.a, 1.0: self.b}

    def _at(self, lambdas: Sequence[float]) -> list[Target]:
        for position in lambdas:
            if position not in self._targets:
                self._targets[position] = self._path(position)
        return [self._targets[position] for position in lambdas]

    def _simulate(self, lambdas: list[float], start: State, **options: Any) -> PathExchange:
        targets = [self.a] * len(self.hot) + self._at(lambdas)
        factors = torch.tensor([1 / factor for factor in self.hot] + [1.0] * len(lambdas), dtype=torch.float64)
        return PathExchange(targets, start, factors=factors, **options)

    def record(self, n_records: int, *, sweeps_per_record: int) -> RecordedPath:
        """Sample; energies at all states of the samples of all states, the hot ones left out."""
        targets = [self.a, self.b, *self._at(self.lambdas.tolist())]
        found = self.simulation.record(n_records, sweeps_per_record=sweeps_per_record, targets=targets)
        u = found[:, :, len(self.hot) :].numpy()
        return RecordedPath(self.lambdas, u[:, 0], u[:, 1], u[:, 2:])
