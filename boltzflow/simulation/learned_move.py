"""Learned moves: configurations drawn by a trained generator, Metropolis-tested in a chain."""

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.io.provenance import method_names
from boltzflow.run import Run
from boltzflow.simulation.flow_training import FlowTrainer, FlowTraining
from boltzflow.state import State
from boltzflow.transitions.metropolis import MetropolisKernel, moves_centre

if TYPE_CHECKING:
    from boltzflow.generators.generator import Generator

__all__ = ["LearnedKernel", "LearnedMove"]


class LearnedKernel(MetropolisKernel, abc.ABC):
    """A kernel whose proposals are drawn by a trained Generator whatever x is; exact for any density q of it.

    A row where q vanishes stays (other kernels move it); a proposal outside the generator's chart, or of which it gives
    no finite density, is rejected. Both follow from detailed balance with the part of q that has a density. Where q is
    zero in a mode, such a kernel neither enters nor leaves it, so it belongs beside kernels that do.

    In `ParallelTempering` it acts on the coldest rung by default. The generator was trained at one temperature; with q
    exact there, the log-odds at T are about −(1 − T0/T)(T/T0 − 1) d/2 in d dimensions, so that few moves are accepted
    at higher ones. The other rungs receive by exchange what the coldest accepts.

    With `training` the generator learns from the coldest walkers while a simulation is burnt in, and is frozen before
    the burn-in ends, so that every frame that is kept comes from one fixed kernel and the chain is exact. Simulations
    copy their kernels: what has learned is `simulation.kernels[i].generator`.

    Args:
        generator: Bijective, of the dtype of the walkers (float64: its density enters the odds), and on the fields
            and the measure of the Target that is sampled. Its density must not depend on what the Target's energy
            does not depend on, such as the orientation of a molecule.
        every: Sweeps of a simulation between calls.
        n_rungs: Coldest rungs of every ladder that a simulation applies it to.
        n_steps: Trials per call.
        training: How the generator learns in a burn-in; None = not at all.
        level: λ on the annealing path.

    Raises:
        TypeError: If the generator has a step that is not a Bijection, so that its density is unknown.
    """

    def __init__(
        self,
        generator: "Generator",
        *,
        every: int = 1,
        n_rungs: int = 1,
        n_steps: int = 1,
        training: FlowTraining | None = None,
        level: float = 1.0,
    ) -> None:
        super().__init__(n_steps=n_steps, level=level)
        name = type(self).__name__
        if not generator.is_bijective:
            raise TypeError(f"{name}: the generator has a step that is not a Bijection, so its density is unknown.")
        if every < 1 or n_rungs < 1:
            raise ValueError(f"{name}: expected every >= 1 and n_rungs >= 1, got {every} and {n_rungs}.")
        self.generator = generator
        self.every, self.n_rungs, self.training = every, n_rungs, training
        self._trainer: FlowTrainer | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of the move and of its generator."""
        adaptive = () if self.training is None else ("flow-MCMC",)
        return tuple(method_names(type(self).__name__, *adaptive, self.generator))

    def learn(self, state: State, run: Run, *, progress: float) -> None:
        """Train the generator after a sweep of a burn-in, as far as `training` says so.

        Args:
            state: The coldest walkers.
            run: Its random stream chooses the states.
            progress: Fraction of the burn-in that is done.
        """
        if self.training is None or not self.training.steps:
            return
        if progress >= self.training.until:
            self._trainer = None
            return
        self._trainer = self._trainer or FlowTrainer(self.generator, self.training)
        self._trainer.step(state, run)

    def memory(self) -> dict[str, Any]:
        """What has been learned, and what it takes to learn on: tensors and plain values."""
        if self.training is None:
            return {}
        trainer = None if self._trainer is None else self._trainer.state_dict()
        return {"generator": self.generator.state_dict(), "trainer": trainer}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Continue from `memory()`."""
        if not memory:
            return
        self.generator.load_state_dict(memory["generator"])
        self._trainer = None
        if memory["trainer"] is not None:
            self._trainer = FlowTrainer(self.generator, self.training)
            self._trainer.load_state_dict(memory["trainer"], self.generator.device)

    def _proposals(
        self, state: State, n: int, run: Run
    ) -> tuple[State, Float64[Tensor, " n_batch"], Float64[Tensor, " batch"]]:
        """Draw n proposals for every row, in one pass through the generator; no energy is evaluated.

        Returns:
            The proposals, (n · batch) rows of which the first batch are one for every row; their log-densities, which
            are not finite where there is none; and that of the rows themselves.
        """
        if self.generator.dtype != state.dtype:
            raise ValueError(
                f"{type(self).__name__}: the generator computes in {self.generator.dtype}, the walkers in "
                f"{state.dtype}; load it with the dtype of the walkers."
            )
        drawn, log_q_drawn = self._draw(n * len(state), run)
        rows = state if n == 1 else state.index(torch.arange(n * len(state), device=state.device) % len(state))
        moved = {}
        for name, y in drawn.items():
            x = rows[name]
            # to the place of x, since some spaces have no translations and kernels leave the centre where it is
            moved[name] = y if moves_centre(state.spaces[name]) else y + (x - y).mean(-2, keepdim=True)
        own = State({name: state[name] for name in drawn}, {name: state.spaces[name] for name in drawn})
        return rows.replace(**moved), log_q_drawn, self.generator.log_prob(own, context=run.context)

    def _draw(self, n: int, run: Run) -> tuple[dict[str, Tensor], Float64[Tensor, " batch"]]:
        """Fields of n samples, and their log-density from the way forward: infinite for those without an image."""
        here = run.at(None)
        drawn = self.generator.base.sample(n, run.rng, run.context)
        log_q = self.generator.base.log_prob(drawn, run.context)
        for transition in self.generator.transitions:
            drawn, ratio = transition(drawn, here)
            log_q = log_q - ratio
        return dict(drawn.fields), log_q


class LearnedMove(LearnedKernel):
    """Propose y ~ q from a trained Generator whatever x is, and accept with min(1, exp(u(x) − u(y)) q(x) / q(y)).

    Exact for any q: u is the energy of the row's own level, and a poor q costs acceptance only. See `LearnedKernel` for
    the arguments and for what a vanishing q means.

    References:
        Hastings, Biometrika 57, 97 (1970); Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119, e2109420119 (2022).
    """

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw every row anew."""
        before, _ = run.energy(state)
        trial, log_q_drawn, log_q_own = self._proposals(state, 1, run)
        # with the force where the State carries one, so that a following gradient step needs no evaluation of its own
        if any(e.force is not None for e in state.evaluations.values()):
            after, _, trial = run.energy_and_force(trial)
        else:
            after, trial = run.energy(trial)
        odds = before - after + log_q_own - log_q_drawn
        return trial, torch.where(torch.isfinite(log_q_drawn), odds, -torch.inf)
