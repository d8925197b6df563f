"""Rectification: flow matching on pairs that the flow itself has made, which straightens its paths."""

import copy
from collections.abc import Mapping
from typing import Any

from boltzflow._typing import Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.flow_matching import FlowMatching
from boltzflow.objectives.objective import Step
from boltzflow.run import Run
from boltzflow.transitions import EulerFlow

__all__ = ["Rectification"]


class Rectification(FlowMatching):
    """Flow matching with x_1 = T(x_0), T the flow as it was at the start of the stage.

    Paths of these pairs cross less than those of pairs that know nothing of each other, and a flow that has learned
    them is straighter: fewer steps do. The density at the end is that of T up to the error of the regression; no data
    and no energies are seen, so that weights may become worse. Begin from a flow that was matched to data, end by path
    gradients.

    Args:
        generator: With one `EulerFlow`, of which the field is trained.
        stage_steps: Steps after which T is replaced by the flow as it is then; None = never.
        n_steps: Of T, along the same field; None = as many as the flow has.

    Raises:
        TypeError: If the Generator has not exactly one EulerFlow.

    References:
        Flow Straight and Fast (Liu, Gong, Liu, 2023), algorithm 1, https://arxiv.org/abs/2209.03003
    """

    needs_data = False
    needs_samples = True

    def __init__(self, generator: Generator, *, stage_steps: int | None = None, n_steps: int | None = None) -> None:
        super().__init__(generator)
        flow = generator.transitions[self._place]
        if not isinstance(flow, EulerFlow):
            raise TypeError(f"Rectification: expected a Generator with one EulerFlow, got a {type(flow).__name__}.")
        self.stage_steps = stage_steps
        self.n_steps = flow.n_steps if n_steps is None else n_steps
        self._stage = -1
        self._start: dict[str, Tensor] = {}
        self._teacher: tuple = ()

    def _ends(self, step: Step, name: str) -> tuple[Tensor, Tensor]:
        stage = 0 if self.stage_steps is None else step.index // self.stage_steps
        if stage != self._stage or not self._teacher:
            self._begin(stage)
        run = Run(step.rng, step.context, ledger=step.ledger)
        start = self.generator.base.sample(step.n_samples, step.rng, step.context)
        for transition in self.generator.transitions[: self._place]:
            start, _ = transition(start, run)
        x = start[name]
        for k in range(self.n_steps):
            x = x + self._teacher[0](x, k / self.n_steps) / self.n_steps
        return start[name], x

    def _begin(self, stage: int) -> None:
        field = self.generator.transitions[self._place].field
        if stage != self._stage:
            self._start = {name: value.detach().clone() for name, value in field.state_dict().items()}
        teacher = copy.deepcopy(field).requires_grad_(requires_grad=False)
        teacher.load_state_dict(self._start)
        self._stage, self._teacher = stage, (teacher,)

    def memory(self) -> dict:
        """The stage, and the field at its start."""
        return {"stage": self._stage, "start": self._start}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Continue from `memory()`."""
        if memory:
            self._stage, self._start, self._teacher = memory["stage"], memory["start"], ()
