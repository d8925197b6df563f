"""Flow annealed importance sampling bootstrap: samples of p²/q, found by annealing from the flow, kept and replayed."""

from collections.abc import Mapping
from typing import Any

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.objective import Objective, Step, ess_fraction, finite_log_prob
from boltzflow.objectives.replay import ReplayBuffer
from boltzflow.paths import SquaredPath
from boltzflow.paths.pullback import PullbackTarget
from boltzflow.run import Context, Run, make_rng
from boltzflow.state import State
from boltzflow.targets.target import Base, Target
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.transition import Bijection

__all__ = ["AnnealedBootstrap"]


class AnnealedBootstrap(Objective):
    """Minimises ∫ p²/q from weighted samples of p²/q: modes that the model misses are found by the annealing.

    Every `updates` steps a batch of the model's own samples is annealed by HMC from q to p²/q, along q^(1−2λ) p^(2λ),
    and goes to a buffer with its importance weights w. All steps draw rows from the buffer in proportion to w and train
    on

        −mean(c log q(x)),   c = min(q_old(x)/q(x), max_correction),

    the minimum of which is at q = p. q_old is the density for which w was made: as q changes, so does p²/q, and c is
    that change. Both w and q_old of the rows drawn are then brought up to date.

    The chains move in the coordinates after the last Bijection with parameters in training; fixed maps that follow,
    such as that of internal coordinates to positions, are part of the target's energy. Every step of HMC costs
    `n_leapfrog` energies with forces of the target, which are counted.

    Args:
        generator: What is trained; bijective, with a base of known log Z.
        target: Whose energy and force train it; kept out of the module tree.
        n_levels: HMC steps of the annealing, at λ = k/n_levels; the last one is at p²/q.
        n_leapfrog: Leapfrog steps of each.
        step_size: Of the leapfrog at first, in the coordinates of the chains; it is adapted to the acceptance.
        updates: Steps for each batch that is annealed.
        buffer_batches: Batches that the buffer holds; the oldest leave it.
        max_correction: Largest c.

    Raises:
        TypeError: If the Generator is not bijective.
        ValueError: If a number is not positive.

    References:
        Flow Annealed Importance Sampling Bootstrap (Midgley et al., 2023), algorithm 1 and section 3.2,
        https://arxiv.org/abs/2208.01893
    """

    needs_samples = True

    def __init__(
        self,
        generator: Generator,
        target: Target,
        *,
        n_levels: int = 8,
        n_leapfrog: int = 4,
        step_size: float = 0.1,
        updates: int = 8,
        buffer_batches: int = 64,
        max_correction: float = 10.0,
    ) -> None:
        super().__init__(generator)
        if not generator.is_bijective:
            raise TypeError("AnnealedBootstrap: needs a Generator of Bijections, whose density is known.")
        if min(n_levels, updates, buffer_batches) < 1:
            raise ValueError(
                f"AnnealedBootstrap: expected n_levels, updates and buffer_batches of at least 1, got {n_levels}, "
                f"{updates} and {buffer_batches}."
            )
        trained = [k for k, t in enumerate(generator.transitions) if any(p.requires_grad for p in t.parameters())]
        n_trained = trained[-1] + 1 if trained else 0
        # tuples, so that the parameters stay those of one submodule
        flow = FlowBase(generator.base, list(generator.transitions[:n_trained]), device=generator.device)
        fixed = list(generator.transitions[n_trained:])
        self._parts = (flow, PullbackTarget(target, fixed, flow) if fixed else target)
        levels = [(k + 1) / n_levels for k in range(n_levels)]
        self._kernels = tuple(HMC(step_size, n_leapfrog=n_leapfrog, level=level) for level in levels)
        self.updates, self.buffer_batches, self.max_correction = updates, buffer_batches, max_correction
        self.buffer = ReplayBuffer()
        self._logged: dict[str, Tensor] = {}

    @property
    def step_size(self) -> float:
        """Of the leapfrog, as adapted so far."""
        return float(self._kernels[0].step_size)

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A loss whose gradient is the estimate (its value is that of the rows drawn), and numbers on the annealing."""
        if step.index % self.updates == 0 or not len(self.buffer):
            self._anneal(step)
        rows = self.buffer.draw(step.n_samples, step.rng)
        log_q, finite = finite_log_prob(self._parts[0].flow, self.buffer.states(rows), step.context)
        if not bool(finite.any()):
            return log_q.mean(), dict(self._logged)
        rows = rows[finite.to(rows.device)]
        correction = self.buffer.correct(rows, log_q.detach()).clamp(max=self.max_correction)
        return -(correction * log_q).mean(), {**self._logged, "correction": correction.mean()}

    @torch.no_grad()
    def _anneal(self, step: Step) -> None:
        flow, target = self._parts
        sampler = Generator(flow, self._kernels, path=SquaredPath)
        trajectory = sampler.rollout(step.n_samples, target, step.rng, context=step.context)
        step.ledger.merge(trajectory.ledger)
        end = State({name: trajectory.end[name] for name in flow.fields}, flow.fields)
        log_q = -flow.reduced_energy(end, step.context)
        # the weights of the paths are for p at their end; these are for p²/q
        log_weights = trajectory.log_weights - trajectory.target_energy - log_q
        usable = trajectory.finite & torch.isfinite(log_weights)
        self.buffer.add(end.index(usable), log_weights[usable], log_q[usable])
        self.buffer.keep(self.buffer_batches * step.n_samples)
        acceptance = torch.stack([kernel.last_acceptance.mean() for kernel in self._kernels]).mean()
        for kernel in self._kernels:
            kernel.step_size.mul_(torch.exp(0.2 * (acceptance - kernel.target_acceptance)))
        self._logged = {
            "ess_fraction": ess_fraction(trajectory.log_weights),
            "annealed_ess_fraction": ess_fraction(torch.where(usable, log_weights, -torch.inf)),
            "acceptance": acceptance,
            "n_masked": (~usable).sum(),
        }

    def memory(self) -> dict:
        """The buffer and the adapted step size."""
        return {"buffer": self.buffer.as_dict(), "step_size": self.step_size, "logged": dict(self._logged)}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Continue from `memory()`."""
        if not memory:
            return
        flow = self._parts[0]
        self.buffer = ReplayBuffer.from_dict(memory["buffer"], flow.fields, device=self.generator.device)
        for kernel in self._kernels:
            kernel.step_size.fill_(memory["step_size"])
        self._logged = dict(memory["logged"])


class FlowBase(Base):
    """The density of a flow with its present parameters, where chains start.

    Args:
        base: Where the flow starts.
        transitions: Its Bijections; kept out of the module tree.
        device: Where it runs.
    """

    def __init__(self, base: Base, transitions: list[Bijection], *, device: torch.device) -> None:
        flow = Generator(base, transitions)
        with torch.no_grad():
            state = _through(flow, 1, make_rng(0, device=device), None)
        super().__init__(state.spaces, name="flow", log_z=0.0)
        self.measure = base.measure
        self._flow = (flow,)

    @property
    def flow(self) -> Generator:
        """Base and Bijections, with the parameters in training."""
        return self._flow[0]

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """−log q, float64."""
        return -self.flow.log_prob(State({k: state[k] for k in self.fields}, self.fields), context=context)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Exact samples."""
        with torch.no_grad():
            return _through(self.flow, n, rng, context)


def _through(flow: Generator, n: int, rng: torch.Generator, context: Context | None) -> State:
    state, run = flow.base.sample(n, rng, context), Run(rng, context)
    for transition in flow.transitions:
        state, _ = transition(state, run)
    return State(state.fields, state.spaces)
