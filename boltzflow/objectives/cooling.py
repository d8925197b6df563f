"""Another objective at a temperature that falls step by step."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from boltzflow._typing import Float, Tensor
from boltzflow.objectives.objective import Objective, Step

__all__ = ["Cooling"]


class Cooling(Objective):
    """An objective on a `Tempered` Target whose temperature falls from `hottest` to 1, by a constant ratio per step.

    The limit of a temperature ladder in which every step has samples and a temperature of its own.

    Args:
        objective: Acts on `Tempered(target)`, which reads the temperature from the context of the step.
        hottest: Temperature of the first `hot_steps`, relative to the target's.
        hot_steps: Steps before it falls.
        steps: Steps during which it falls; then it is 1.

    Raises:
        ValueError: If hottest is below 1 or a number of steps is negative.

    Example:
        >>> from boltzflow.generators import Generator
        >>> from boltzflow.objectives import ReverseKL
        >>> from boltzflow.targets import DoubleWell, Gaussian, Tempered
        >>> term = ReverseKL(Generator(Gaussian(2), []), Tempered(DoubleWell()))
        >>> cooling = Cooling(term, hottest=4.0, hot_steps=10, steps=100)
        >>> [cooling.temperature(k) for k in (0, 10, 60, 200)]
        [4.0, 4.0, 2.0, 1.0]
    """

    def __init__(self, objective: Objective, *, hottest: float, hot_steps: int, steps: int) -> None:
        if hottest < 1.0 or hot_steps < 0 or steps < 0:
            raise ValueError(
                f"Cooling: expected hottest >= 1 and no negative number of steps, got hottest={hottest}, "
                f"hot_steps={hot_steps}, steps={steps}."
            )
        super().__init__(objective.generator)
        self.objective = objective
        self.hottest, self.hot_steps, self.steps = hottest, hot_steps, steps
        self.needs_data, self.needs_samples = objective.needs_data, objective.needs_samples

    def temperature(self, index: int) -> float:
        """Relative to the target's, at a step."""
        done = (index - self.hot_steps) / self.steps if self.steps else float(index >= self.hot_steps)
        return self.hottest ** (1.0 - min(1.0, max(0.0, done)))

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """What the objective returns, and the temperature."""
        temperature = self.temperature(step.index)
        context = {**(step.context or {}), "inverse_temperature": 1.0 / temperature}
        loss, logged = self.objective(replace(step, context=context))
        return loss, {**logged, "temperature_ratio": loss.new_tensor(temperature).detach()}

    def memory(self) -> dict:
        """That of the objective."""
        return self.objective.memory()

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Continue from `memory()`."""
        self.objective.recall(memory)
