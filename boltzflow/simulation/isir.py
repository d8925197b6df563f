"""i-SIR: iterated sampling importance resampling, the choice among several configurations that a generator draws."""

from typing import TYPE_CHECKING

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.simulation.flow_training import FlowTraining
from boltzflow.simulation.learned_move import LearnedKernel
from boltzflow.state import State
from boltzflow.targets.target import Target

if TYPE_CHECKING:
    from boltzflow.generators.generator import Generator

__all__ = ["ISIR"]


class ISIR(LearnedKernel):
    """Draw n proposals y_k ~ q for every row, and move to one of x, y_1 … y_n with probability ∝ w = exp(−u)/q.

    Exact for any q and any n, and the more proposals the less a single heavy weight holds a row. The acceptance is the
    probability to leave x, Σ w(y_k) / (w(x) + Σ w(y_k)). A step costs n energies for every row, which are evaluated in
    one batch where the Targets allow it, after one pass of all proposals through the generator. With n = 1 this is
    Barker's rule, which accepts less often than the `LearnedMove` of the same cost: use it where the weights of the
    generator are uneven. In turn with a local kernel (`MALA`, `HMC`) it is Ex²MCMC. See `LearnedKernel` for what a
    vanishing q means.

    Args:
        generator: See `LearnedKernel`.
        n_proposals: Fresh draws per row and step.
        every: Sweeps of a simulation between calls.
        n_rungs: Coldest rungs of every ladder that a simulation applies it to.
        n_steps: Trials per call.
        training: How the generator learns in a burn-in; None = not at all.
        level: λ on the annealing path.

    Raises:
        ValueError: If n_proposals is below 1.
        TypeError: If the generator has a step that is not a Bijection, so that its density is unknown.

    References:
        Tjelmeland, NTNU preprint Statistics 4 (2004); Andrieu, Lee, Vihola, Bernoulli 24, 842 (2018); Local-Global MCMC
        kernels: the best of both worlds (Samsonov et al., 2022), section 2, https://arxiv.org/abs/2111.02702
    """

    def __init__(
        self,
        generator: "Generator",
        *,
        n_proposals: int,
        every: int = 1,
        n_rungs: int = 1,
        n_steps: int = 1,
        training: FlowTraining | None = None,
        level: float = 1.0,
    ) -> None:
        super().__init__(generator, every=every, n_rungs=n_rungs, n_steps=n_steps, training=training, level=level)
        if n_proposals < 1:
            raise ValueError(f"ISIR n_proposals: expected at least 1, got {n_proposals}.")
        self.n_proposals = n_proposals

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """One of the proposals, chosen by weight, and the logarithm of the probability to move to any of them."""
        n, batch = self.n_proposals, len(state)
        before, _ = run.energy(state)
        trials, log_q, log_q_own = self._proposals(state, n, run)
        # one evaluation of all proposals: the energy of a row's own level then follows from what is known
        for _, target in run.level.terms:
            if isinstance(target, Target):
                _, trials = run.evaluate(target, trials)
        parts = [run.energy(trials.index(slice(k * batch, (k + 1) * batch))) for k in range(n)]
        log_w = torch.stack([-u for u, _ in parts]) - log_q.unflatten(0, (n, batch))
        log_w = torch.where(torch.isfinite(log_q).unflatten(0, (n, batch)), log_w, -torch.inf)
        gumbel = -torch.log(-torch.log(run.uniform(log_w.detach())))
        chosen = (log_w.detach() + gumbel).argmax(0)
        trial = parts[0][1]
        for k in range(1, n):
            trial = parts[k][1].where(chosen == k, trial)
        total = torch.logsumexp(log_w, 0)
        if torch.is_grad_enabled():  # the choice among the proposals; that to move is recorded by the step
            run.decisions.append(log_w.gather(0, chosen[None])[0] - total)
        return trial, total - torch.logaddexp(total, log_q_own.neg() - before)
