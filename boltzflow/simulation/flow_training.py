"""Training of a generator on the states of the chains that it proposes moves to: the adaptive part of flow-MCMC."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from boltzflow.run import Run
from boltzflow.state import State

if TYPE_CHECKING:
    from boltzflow.generators.generator import Generator

__all__ = ["FlowTrainer", "FlowTraining"]


@dataclass(frozen=True)
class FlowTraining:
    """How a generator learns from the chains during a burn-in.

    Args:
        steps: Optimisation steps after every sweep; 0 = the generator stays as it is.
        batch_size: States per step, drawn from those that are kept.
        learning_rate: Of Adam.
        memory: Sweeps whose states are kept.
        until: Fraction of the burn-in after which the generator is frozen; in the rest the chains relax with it.

    Raises:
        ValueError: If a value is out of its range.
    """

    steps: int = 1
    batch_size: int = 256
    learning_rate: float = 1e-3
    memory: int = 50
    until: float = 0.75

    def __post_init__(self) -> None:
        """Check the values."""
        if self.steps < 0 or min(self.batch_size, self.memory) < 1 or not self.learning_rate > 0:
            raise ValueError(f"FlowTraining: expected steps >= 0 and positive sizes and rates, got {self}.")
        if not 0 < self.until < 1:
            raise ValueError(f"FlowTraining until: expected a fraction between 0 and 1, got {self.until}.")


class FlowTrainer:
    """Adam on −mean log q over states of the chains, the forward KL divergence from where they are.

    Args:
        generator: Bijective; trained in place.
        settings: How.

    References:
        Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119, e2109420119 (2022), algorithm 1.
    """

    def __init__(self, generator: "Generator", settings: FlowTraining) -> None:
        self.generator, self.settings = generator, settings
        self.parameters = [p for p in generator.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("FlowTrainer: the generator has no parameters that require a gradient.")
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate)
        self.states: list[dict[str, torch.Tensor]] = []
        self.n_skipped = 0

    def step(self, state: State, run: Run) -> None:
        """Keep the states of a sweep, and train on some of those that are kept.

        Rows without a density are left out; a step whose gradient is not finite is skipped and counted.
        """
        self.states = [*self.states, {name: value.detach().clone() for name, value in state.fields.items()}]
        self.states = self.states[-self.settings.memory :]
        pool = State({k: torch.cat([s[k] for s in self.states]) for k in state.fields}, state.spaces)
        for _ in range(self.settings.steps):
            rows = torch.randint(len(pool), (self.settings.batch_size,), generator=run.rng, device=run.rng.device).to(
                pool.device
            )
            self._train(pool.index(rows), run)

    def _train(self, batch: State, run: Run) -> None:
        with torch.enable_grad():
            self.optimizer.zero_grad(set_to_none=True)
            log_q = self.generator.log_prob(batch, context=run.context)
            finite = torch.isfinite(log_q.detach())
            if not bool(finite.all()) and bool(finite.any()):
                # a mask on the result would leave 0·NaN in the gradients
                log_q = self.generator.log_prob(batch.index(finite), context=run.context)
            (-log_q.mean()).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        else:
            self.n_skipped += 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values to go on from; the parameters are those of the generator."""
        return {"optimizer": self.optimizer.state_dict(), "states": list(self.states), "n_skipped": self.n_skipped}

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a `state_dict`."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.states = [{name: value.to(device) for name, value in state.items()} for state in saved["states"]]
        self.n_skipped = saved["n_skipped"]
