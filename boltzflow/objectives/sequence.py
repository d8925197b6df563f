"""Objectives one after the other."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.objectives.objective import Objective, Step
from boltzflow.run import Context, Ledger
from boltzflow.state import State

__all__ = ["Sequence"]


class Sequence(Objective):
    """Phases over one Generator: each trains for its number of steps, the last one until the end.

    A phase counts its own steps from 0.

    Args:
        phases: (number of steps, objective) pairs; the number of the last one is not read.

    Raises:
        ValueError: If there is no phase, a number of steps is not positive, or the phases train different Generators.
    """

    def __init__(self, phases: list[tuple[int, Objective]]) -> None:
        if not phases:
            raise ValueError("Sequence: expected at least one (number of steps, objective), got none.")
        lengths = [n for n, _ in phases[:-1]]
        if any(n < 1 for n in lengths):
            raise ValueError(f"Sequence: expected positive numbers of steps, got {lengths}; leave a phase out instead.")
        if any(phase.generator is not phases[0][1].generator for _, phase in phases):
            raise ValueError("Sequence: expected phases over one and the same Generator.")
        super().__init__(phases[0][1].generator)
        self.phases = torch.nn.ModuleList(phase for _, phase in phases)
        self.starts = [sum(lengths[:k]) for k in range(len(phases))]
        self.needs_data = any(phase.needs_data for _, phase in phases)
        self.needs_samples = any(phase.needs_samples for _, phase in phases)
        self._current = 0

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """What the phase of the step returns."""
        self._current = max(k for k, start in enumerate(self.starts) if start <= step.index)
        return self.phases[self._current](replace(step, index=step.index - self.starts[self._current]))

    def prepare(self, data: State, context: Context | None, ledger: Ledger) -> State:
        """What every phase prepares."""
        for phase in self.phases:
            data = phase.prepare(data, context, ledger)
        return data

    def memory(self) -> dict:
        """That of the current phase, and which it is."""
        return {"phase": self._current, "memory": self.phases[self._current].memory()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Continue from `memory()`."""
        if memory:
            self._current = memory["phase"]
            self.phases[self._current].recall(memory["memory"])
