"""Trainer: the optimisation loop over a loss module, in a run folder that can be killed and resumed at any moment."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from boltzflow._typing import Tensor
from boltzflow.errors import NonFiniteEnergyError
from boltzflow.io.config import TrainingConfig
from boltzflow.objectives.objective import Objective, Step
from boltzflow.run import Context, Ledger, make_rng, new_seed
from boltzflow.state import State
from boltzflow.training.ema import ExponentialMovingAverage
from boltzflow.training.schedule import warmup_cosine

__all__ = ["Trainer", "TrainingState"]

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 50


@dataclass
class TrainingState:
    """What a checkpoint needs to continue a run to the result of an unbroken one.

    Attributes:
        step: Steps done.
        seed: Keys the random stream of every step, as (seed, step).
        optimizer: State of the optimizer.
        ema: State of the moving average.
        ledger: Target evaluations since the start of the run.
        n_clipped: Steps whose gradient was clipped.
        n_skipped: Steps left out because loss or gradient were not finite.
        seconds: Training time.
    """

    step: int
    seed: int
    optimizer: dict
    ema: dict
    ledger: dict = field(default_factory=dict)
    n_clipped: int = 0
    n_skipped: int = 0
    seconds: float = 0.0


class Trainer:
    """Minimise a loss module.

    Step k draws data rows and noise from the stream (seed, k), so a resumed run continues exactly.

    Args:
        objective: Loss module; its `generator` is what is trained.
        config: The loop's settings.
        data: Training rows, for objectives that read data; on the device and in the dtype of the generator.
        context: Passed on to Targets and Transitions.
        metrics: JSON-lines file to which a line is appended every `config.log_every` steps; None for none.

    Raises:
        ValueError: If the objective needs data and there is none.
    """

    def __init__(
        self,
        objective: Objective,
        config: TrainingConfig,
        *,
        data: State | None = None,
        context: Context | None = None,
        metrics: Path | None = None,
    ) -> None:
        if objective.needs_data and data is None:
            raise ValueError(
                f"{type(objective).__name__} needs training data, got none: give objective.data an ensemble file "
                "(boltzflow simulate makes one), or set objective.likelihood to 0."
            )
        self.objective = objective
        self.config = config
        self.data = data if objective.needs_data else None
        self.context = context
        self.metrics = metrics
        self.seed = new_seed() if config.seed is None else config.seed
        self.step = 0
        self.ledger = Ledger()
        self.n_clipped = self.n_skipped = 0
        self.seconds = 0.0
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True
        )
        self.ema = ExponentialMovingAverage(objective.generator, decay=config.ema_decay)
        self._device = self.parameters[0].device

    def run(self, *, on_checkpoint: Callable[["Trainer"], None] | None = None, progress: bool | None = None) -> None:
        """Train to `config.steps`.

        Args:
            on_checkpoint: Called every `config.checkpoint_every` steps and at the end.
            progress: Whether to show a bar; by default only on a terminal.

        Raises:
            NonFiniteEnergyError: If loss or gradient were not finite for many steps in a row.
        """
        show = sys.stderr.isatty() if progress is None else progress
        bar = tqdm(total=self.config.steps, initial=self.step, desc="train", disable=not show)
        sums: dict[str, Tensor] = {}
        in_a_row, since_log, started = 0, 0, time.perf_counter()
        while self.step < self.config.steps:
            taken, logged = self.train_step()
            in_a_row = 0 if taken else in_a_row + 1
            if in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise NonFiniteEnergyError(
                    f"training: loss or gradient were not finite for {in_a_row} steps in a row (step {self.step}). "
                    "Lower training.learning_rate, or train by likelihood first (objective.reverse_kl=0)."
                )
            since_log += 1
            for name, value in logged.items():
                sums[name] = sums.get(name, 0.0) + value
            bar.update()
            at_end = self.step == self.config.steps
            if self.step % self.config.log_every == 0 or at_end:
                now = time.perf_counter()
                self.seconds += now - started
                started = now
                self._log({name: float(v) / since_log for name, v in sums.items()}, bar)
                sums, since_log = {}, 0
            if on_checkpoint is not None and (self.step % self.config.checkpoint_every == 0 or at_end):
                on_checkpoint(self)
        bar.close()

    def train_step(self) -> tuple[bool, dict[str, Tensor]]:
        """One step; returns whether it was taken (finite loss and gradient), and the numbers to log."""
        config = self.config
        rng = make_rng(self.seed, self.step, device=self._device)
        rate = config.learning_rate * warmup_cosine(
            self.step,
            n_steps=config.steps,
            warmup_steps=config.warmup_steps,
            final_fraction=config.final_learning_rate_fraction,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        step = Step(
            rng=rng,
            data=self._rows(rng),
            n_samples=config.reverse_batch_size if self.objective.needs_samples else 0,
            context=self.context,
            ledger=self.ledger,
        )
        loss, logged = self.objective(step)
        loss.backward()
        bound = math.inf if config.clip_gradient is None else config.clip_gradient
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, bound)
        self.step += 1
        finite = bool(torch.isfinite(norm) & torch.isfinite(loss.detach()))
        if not finite:
            self.n_skipped += 1
            return False, {}
        self.n_clipped += int(norm > bound)
        self.optimizer.step()
        self.ema.update()
        return True, {"loss": loss.detach(), "gradient_norm": norm.detach(), **logged}

    def _rows(self, rng: torch.Generator) -> State | None:
        if self.data is None:
            return None
        rows = torch.randint(len(self.data), (self.config.batch_size,), generator=rng, device=rng.device)
        return self.data.index(rows)

    def _log(self, means: dict[str, float], bar: tqdm) -> None:
        line = {
            "step": self.step,
            "seconds": round(self.seconds, 2),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **means,
            "n_energy": self.ledger.n_energy(),
            "n_force": self.ledger.n_force(),
            "n_clipped": self.n_clipped,
            "n_skipped": self.n_skipped,
        }
        bar.set_postfix({k: f"{v:.4g}" for k, v in means.items() if k in {"loss", "nll", "reverse_kl", "ess_fraction"}})
        if self.metrics is not None:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def state(self) -> TrainingState:
        """Everything that a checkpoint needs besides the parameters."""
        return TrainingState(
            step=self.step,
            seed=self.seed,
            optimizer=self.optimizer.state_dict(),
            ema=self.ema.state_dict(),
            ledger=self.ledger.as_dict(),
            n_clipped=self.n_clipped,
            n_skipped=self.n_skipped,
            seconds=self.seconds,
        )

    def load_state(self, state: TrainingState) -> None:
        """Continue from `state()`; the parameters must have been loaded before."""
        self.step, self.seed = state.step, state.seed
        self.optimizer.load_state_dict(state.optimizer)
        self.ema.load_state_dict(state.ema)
        self.n_clipped, self.n_skipped, self.seconds = state.n_clipped, state.n_skipped, state.seconds
        self.ledger = Ledger.from_dict(state.ledger)
