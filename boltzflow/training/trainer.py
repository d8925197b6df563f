"""Trainer: the optimisation loop over a loss module, in a run folder that can be killed and resumed at any moment."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from boltzflow._typing import Tensor
from boltzflow.errors import CheckpointMismatchError, NonFiniteEnergyError
from boltzflow.generators.generator import Generator
from boltzflow.io.config import TrainingConfig
from boltzflow.networks import VectorField
from boltzflow.objectives.objective import Objective, Step
from boltzflow.run import Context, Ledger, make_rng, new_seed
from boltzflow.state import State
from boltzflow.training.ema import ExponentialMovingAverage
from boltzflow.training.graph import StepGraph
from boltzflow.training.memory import keep_freed_memory
from boltzflow.training.natural_gradient import NaturalGradient
from boltzflow.training.processes import Processes
from boltzflow.training.schedule import warmup_cosine
from boltzflow.transitions.acceptance import reset_acceptance, warn_of_rejection

__all__ = ["Trainer", "TrainingState"]

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 50
_SCORES = 2**31
"""Keys the random streams of the samples whose scores make the natural gradient; no shard has this number."""


@dataclass
class TrainingState:
    """What a checkpoint needs to continue a run to the result of an unbroken one.

    Attributes:
        step: Steps done.
        seed: Keys the random streams of every step, as (seed, step) or, of several shards, (seed, step, shard).
        optimizer: State of the optimizer.
        ema: State of the moving average.
        ledger: Target evaluations that the model has cost so far, those of its data and of earlier stages included.
        data: Digests of the data whose cost is in the ledger.
        n_clipped: Steps whose gradient was clipped.
        n_skipped: Steps left out because loss or gradient were not finite.
        n_skipped_in_a_row: Those just before this one.
        objective: What the objective remembers, see `Objective.memory`.
        pending: Sums of what was logged since the last line of metrics, and the number of steps in them.
        seconds: Training time.
        n_shards: Parts of the batch of a step.
    """

    step: int
    seed: int
    optimizer: dict
    ema: dict
    ledger: dict = field(default_factory=dict)
    data: list[str] = field(default_factory=list)
    n_clipped: int = 0
    n_skipped: int = 0
    n_skipped_in_a_row: int = 0
    objective: dict = field(default_factory=dict)
    pending: dict = field(default_factory=dict)
    seconds: float = 0.0
    n_shards: int = 1


class Trainer:
    """Minimise a loss module.

    Step k draws data rows and noise from the stream (seed, k), so a resumed run continues exactly. A step calls the
    loss module and nothing inside it, so that `objective` may be replaced by a data-parallel wrapper of itself.

    Of several shards each takes an equal part of the batch from the stream (seed, k, shard), and the loss is the mean
    of theirs. Processes share the shards among them. Their gradients are added in the order of the shards on every
    process, so that the result does not depend on the number of processes.

    Args:
        objective: Loss module; its `generator` is what is trained.
        config: The loop's settings.
        data: Training rows, for objectives that read data; on the device and in the dtype of the generator.
        context: Passed on to Targets and Transitions.
        metrics: JSON-lines file to which a line is appended every `config.log_every` steps, with means over the steps
            since the last one that were taken; None for none. Only the first process writes it.
        world: The processes that train together.

    Raises:
        ValueError: If the objective needs data and there is none, nothing can be trained, or the natural gradient is
            to have a weight decay.
    """

    def __init__(
        self,
        objective: Objective,
        config: TrainingConfig,
        *,
        data: State | None = None,
        context: Context | None = None,
        metrics: Path | None = None,
        world: Processes | None = None,
    ) -> None:
        if objective.needs_data and data is None:
            raise ValueError(
                f"{type(objective).__name__} needs training data, got none: give objective.data an ensemble file "
                "(boltzflow simulate makes one), or set objective.likelihood and objective.coverage to 0."
            )
        keep_freed_memory()
        self.objective = objective
        self.config = config
        self.data = data if objective.needs_data else None
        self._n_samples = config.reverse_batch_size if objective.needs_samples else 0
        self.context = context
        self.world = Processes() if world is None else world
        self.metrics = metrics if self.world.is_first else None
        self.seed = self.world.agree(new_seed()) if config.seed is None else config.seed
        self.step = 0
        self.n_shards = self.world.size if config.shards is None else config.shards
        self.ledger = Ledger()
        # what this process has evaluated and the others do not know of yet
        self._own_ledger = Ledger()
        self.data_digests: list[str] = []
        self.n_clipped = self.n_skipped = self.n_skipped_in_a_row = 0
        self.seconds = 0.0
        self._graph: StepGraph | None = None
        self._warned = False
        self._sums: dict[str, Tensor] = {}
        self._n_summed = 0
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError(f"{type(objective).__name__}: its Generator has no parameters that require a gradient.")
        self.optimizer: torch.optim.Optimizer
        if config.natural_gradient.rows:
            if config.weight_decay:
                raise ValueError(
                    f"training.weight_decay: {config.weight_decay} is AdamW's, and the natural gradient has none; set "
                    "it to 0, or training.natural_gradient.rows to 0."
                )
            self.optimizer = NaturalGradient(objective.generator, config.natural_gradient, self.world)
        else:
            self.optimizer = torch.optim.AdamW(
                self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
            )
        self.ema = ExponentialMovingAverage(objective.generator, decay=config.ema_decay)
        self._device = self.parameters[0].device
        # `objective` may become a data-parallel wrapper of it
        self._own_objective = objective

    def _check_shards(self) -> None:
        n, natural = self.n_shards, self.config.natural_gradient
        if n % self.world.size:
            raise ValueError(
                f"training.shards: {n} cannot be shared by {self.world.size} processes; start as many as divide it, or "
                f"set it to a multiple of {self.world.size}."
            )
        sizes = {
            "batch_size": self.config.batch_size if self.data is not None else 0,
            "reverse_batch_size": self._n_samples,
            "natural_gradient.batch_size": min(natural.batch_size, natural.rows),
        }
        for name, size in sizes.items():
            if size % n:
                raise ValueError(
                    f"training.{name}: {size} rows cannot be shared by {n} shards; set it to a multiple of {n}."
                )
        parts = (m for m in self._own_objective.modules() if isinstance(m, Objective))
        whole = [type(part).__name__ for part in parts if not part.can_be_sharded]
        if n > 1 and whole:
            raise ValueError(
                f"training.shards: {whole[0]} cannot be split into {n} shards, because all rows come from one buffer; "
                "train it in one process."
            )

    def run(self, *, on_checkpoint: Callable[["Trainer"], None] | None = None, progress: bool | None = None) -> None:
        """Train to `config.steps`.

        Args:
            on_checkpoint: Called every `config.checkpoint_every` steps and at the end, by the first process.
            progress: Whether to show a bar; by default only on a terminal.

        Raises:
            ValueError: If batch, shards and processes do not divide, or a graph is asked for that cannot be.
            NonFiniteEnergyError: If loss or gradient were not finite for many steps in a row.
        """
        self._check_shards()
        if self.data is not None:
            self.data = self._own_objective.prepare(self.data, self.context, self._own_ledger)
        show = (sys.stderr.isatty() if progress is None else progress) and self.world.is_first
        compiled = _compiled(self._own_objective.generator) if self.config.compile else nullcontext()
        with compiled, tqdm(total=self.config.steps, initial=self.step, desc="train", disable=not show) as bar:
            while self.step < self.config.steps:
                started = time.perf_counter()
                logged = self.train_step()
                self.seconds += time.perf_counter() - started
                self._require_progress()
                for name, value in logged.items():
                    self._sums[name] = self._sums.get(name, 0.0) + value
                self._n_summed += bool(logged)
                bar.update()
                at_end = self.step == self.config.steps
                logs = self.step % self.config.log_every == 0 or at_end
                saves = self.step % self.config.checkpoint_every == 0 or at_end
                if logs or saves:
                    self._share_ledger()
                if logs:
                    self._log(bar)
                    self._warn_of_rejection()
                if saves and on_checkpoint is not None and self.world.is_first:
                    on_checkpoint(self)

    def _require_progress(self) -> None:
        if self.n_skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteEnergyError(
                f"training: loss or gradient were not finite for {self.n_skipped_in_a_row} steps in a row (step "
                f"{self.step}). Lower training.learning_rate, or train by likelihood first (objective.reverse_kl=0)."
            )

    def train_step(self) -> dict[str, Tensor]:
        """One step; returns the numbers to log, none if it was left out because loss or gradient were not finite."""
        config = self.config
        rate = config.learning_rate * warmup_cosine(
            self.step,
            n_steps=config.steps,
            warmup_steps=config.warmup_steps,
            final_fraction=config.final_learning_rate_fraction,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, logged = self._backward(0) if self.n_shards == 1 else self._backward_of_shards()
        if self.world.size == 1:
            self._share_ledger()
        bound = math.inf if config.clip_gradient is None else config.clip_gradient
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, bound)
        self.step += 1
        finite = bool(torch.isfinite(norm) & torch.isfinite(loss))
        if not finite:
            self.n_skipped += 1
            self.n_skipped_in_a_row += 1
            return {}
        self.n_skipped_in_a_row = 0
        self.n_clipped += int(norm > bound)
        if isinstance(self.optimizer, NaturalGradient) and self.optimizer.needs_draw(self.step - 1):
            self.optimizer.draw([self._score_rng(shard) for shard in self._own_shards()], self.context)
        self.optimizer.step()
        self.ema.update()
        if isinstance(self.optimizer, NaturalGradient):
            logged["shortened_scores"] = self.optimizer.shortened
        return {"loss": loss, "gradient_norm": norm.detach(), **logged}

    def _own_shards(self) -> range:
        """Numbers of the shards of this process."""
        n_own = self.n_shards // self.world.size
        return range(self.world.rank * n_own, (self.world.rank + 1) * n_own)

    def _score_rng(self, shard: int) -> torch.Generator:
        """Random stream of the samples of a shard whose scores make the natural gradient in the step just counted."""
        stream = (self.step - 1, _SCORES) if self.n_shards == 1 else (self.step - 1, _SCORES, shard)
        return make_rng(self.seed, *stream, device=self._device)

    def _backward(self, shard: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one shard, its gradient in the parameters, and the numbers to log."""
        stream = (self.step,) if self.n_shards == 1 else (self.step, shard)
        if self.config.cuda_graph:
            self._graph = self._graph or self._captured()
            loss, logged, ledger = self._graph.replay(make_rng(self.seed, *stream).initial_seed())
        else:
            self.optimizer.zero_grad(set_to_none=True)
            loss, logged, ledger = self._eager(make_rng(self.seed, *stream, device=self._device))
        self._own_ledger.merge(ledger)
        return loss, logged

    def _eager(self, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Ledger]:
        """Forward and backward pass with the noise of a stream."""
        step = Step(
            rng=rng,
            data=self._rows(rng),
            n_samples=self._n_samples // self.n_shards,
            context=self.context,
            index=self.step,
        )
        loss, logged = self.objective(step)
        loss.backward()
        return loss.detach(), logged, step.ledger

    def _captured(self) -> StepGraph:
        if not self._own_objective.is_static:
            raise ValueError(
                f"training.cuda_graph: a step of {type(self._own_objective).__name__} looks at its numbers to decide "
                "what to do, which a graph cannot; reverse_kl, path_forward_kl and path_reverse_kl without annealing "
                "can. Set it to false."
            )
        return StepGraph(self._eager, self.parameters, self._device)

    def _backward_of_shards(self) -> tuple[Tensor, dict[str, Tensor]]:
        """As `_backward` for the mean over all shards of all processes; numbers called n_… are sums."""
        gradients, numbers, names = [], [], []
        for shard in self._own_shards():
            loss, logged = self._backward(shard)
            names = ["loss", *logged]
            values = [loss, *logged.values(), *(p.grad is not None for p in self.parameters)]
            numbers.append(torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self._device) for v in values]))
            gradients.append(
                torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters])
            )
        total = self.world.gather(torch.stack(gradients)).unbind()
        gradient = sum(total[1:], total[0]) / self.n_shards
        gathered = self.world.gather(torch.stack(numbers))
        used = gathered[:, len(names) :].any(0).tolist()
        for p, part, has in zip(
            self.parameters, gradient.split([p.numel() for p in self.parameters]), used, strict=True
        ):
            p.grad = part.view_as(p) if has else None
        means = {
            name: column.sum() if name.startswith("n_") else column.mean()
            for name, column in zip(names, gathered.T, strict=False)
        }
        return means.pop("loss"), means

    def _rows(self, rng: torch.Generator) -> State | None:
        if self.data is None:
            return None
        n = self.config.batch_size // self.n_shards
        return self.data.index(torch.randint(len(self.data), (n,), generator=rng, device=rng.device))

    def _share_ledger(self) -> None:
        """Add what all processes have evaluated since the last time."""
        if self.world.size == 1:
            self.ledger.merge(self._own_ledger)
        else:
            for counts in self.world.gather_objects(self._own_ledger.as_dict()):
                self.ledger.merge(Ledger.from_dict(counts))
        self._own_ledger = Ledger()

    def _log(self, bar: tqdm) -> None:
        means = {name: float(value) / self._n_summed for name, value in self._sums.items()}
        self._sums, self._n_summed = {}, 0
        line = {
            "step": self.step,
            "seconds": round(self.seconds, 2),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            # JSON has no NaN
            **{name: value if math.isfinite(value) else None for name, value in means.items()},
            "n_energy": self.ledger.n_energy(),
            "n_force": self.ledger.n_force(),
            "n_clipped": self.n_clipped,
            "n_skipped": self.n_skipped,
        }
        bar.set_postfix({k: f"{v:.4g}" for k, v in means.items() if k in {"loss", "nll", "reverse_kl", "ess_fraction"}})
        if self.metrics is not None:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _warn_of_rejection(self) -> None:
        """Say once if a stochastic step of the generator has stood still since the last time."""
        transitions = self._own_objective.generator.transitions
        if self.world.is_first and not self._warned:
            self._warned = warn_of_rejection(transitions)
        reset_acceptance(transitions)

    def state(self) -> TrainingState:
        """Everything that a checkpoint needs besides the parameters."""
        return TrainingState(
            step=self.step,
            seed=self.seed,
            optimizer=self.optimizer.state_dict(),
            ema=self.ema.state_dict(),
            ledger=self.ledger.as_dict(),
            data=list(self.data_digests),
            n_clipped=self.n_clipped,
            n_skipped=self.n_skipped,
            n_skipped_in_a_row=self.n_skipped_in_a_row,
            objective=self._own_objective.memory(),
            pending={"sums": dict(self._sums), "steps": self._n_summed},
            seconds=self.seconds,
            n_shards=self.n_shards,
        )

    def load_state(self, state: TrainingState) -> None:
        """Continue from `state()`; the parameters must have been loaded before.

        Raises:
            CheckpointMismatchError: If these processes cannot share its shards.
        """
        if state.n_shards % self.world.size:
            raise CheckpointMismatchError(
                f"this training has steps of {state.n_shards} shard{'s' if state.n_shards > 1 else ''}, each with a "
                f"random stream of its own, which {self.world.size} processes cannot share: the result would be "
                f"another. Resume with a number of processes that divides {state.n_shards}, or start a new folder."
            )
        self.n_shards = state.n_shards
        self.step, self.seed = state.step, state.seed
        self.optimizer.load_state_dict(state.optimizer)
        self.ema.load_state_dict(state.ema)
        self.ledger, self.data_digests = Ledger.from_dict(state.ledger), list(state.data)
        self.n_clipped, self.n_skipped, self.seconds = state.n_clipped, state.n_skipped, state.seconds
        self.n_skipped_in_a_row = state.n_skipped_in_a_row
        self._own_objective.recall(state.objective)
        self._sums, self._n_summed = dict(state.pending.get("sums", {})), state.pending.get("steps", 0)


@contextmanager
def _compiled(generator: Generator) -> Iterator[None]:
    """Compile the fields of continuous flows, as long as training goes on."""
    fields = [m for m in generator.modules() if isinstance(m, VectorField)]
    if not fields:
        raise ValueError(
            "training.compile: the generator has no steps along a field, which alone is compiled; set it to false."
        )
    for one in fields:
        one.is_compiled = True
    try:
        yield
    finally:
        for one in fields:
            one.is_compiled = False
