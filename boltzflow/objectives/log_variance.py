"""Log-variance of the weights of paths that are held fixed, wherever these come from."""

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.objective import Objective, Step, ess_fraction
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.transitions.transition import Bijection, DetailedBalance

__all__ = ["LogVariance"]


class LogVariance(Objective):
    """½ Var(log w) over paths held fixed: zero if and only if model and target agree wherever the paths lie.

    The paths are the model's own ("model") or lead from data back to the base ("data"); the loss is right for either,
    without weights. The mean of log w is the log Z that minimises the loss of trajectory balance, ½ mean((log w − log
    Z)²), on the batch. Only log w at fixed paths is differentiated: no gradient runs through samples, the target's
    energies need no force, and decisions to accept or reject need no term of their own. On the model's own samples a
    bijective Generator has the mean gradient of KL(q‖p).

    A bijective Generator has its end held fixed, and so has one whose last steps drop auxiliary variables: with these.
    Any other has all states of the path held fixed, and every stochastic
    step gives the log-ratio of the pair before and after it: by energies where it is in detailed balance, else by its
    own `log_ratio`, which takes single steps. Bijections among them must have no parameters in training: states on both
    sides of one cannot stay where they are as it changes.

    Args:
        generator: What is trained; without BatchSteps.
        target: Whose energy gives the weights; kept out of the module tree.
        paths: "model", or "data" for what is also called log-dispersion.
        max_deviation: Largest deviation of log w from its median that counts, in nats; clashes count as this.

    Raises:
        TypeError: If a step has no log-ratio for a pair of states, or a Bijection among stochastic steps is trained.
        ValueError: If `paths` is neither of the two.

    References:
        VarGrad (Richter et al., 2020), https://arxiv.org/abs/2010.10436; Improved off-policy training of diffusion
        samplers (Sendera et al., 2024), for trajectory balance with the mean as log Z.
    """

    def __init__(
        self, generator: Generator, target: Target, *, paths: str = "model", max_deviation: float = 10.0
    ) -> None:
        super().__init__(generator)
        if paths not in ("model", "data"):
            raise ValueError(f"LogVariance paths: expected 'model' or 'data', got {paths!r}.")
        if not generator.joint()[0].is_bijective:
            _require_fixed_paths(generator)
        self._target = (target,)
        self.needs_samples, self.needs_data = paths == "model", paths == "data"
        self.max_deviation = max_deviation

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """½ Var(log w) with its gradient, and the sampling efficiency of the batch."""
        states = self.record(step)
        log_w = self.log_weights(states, step)
        value = log_w.detach()
        median = torch.where(torch.isfinite(value), value, torch.nan).nanmedian()
        usable = ~torch.isnan(value) & (value < torch.inf)
        n = usable.sum()
        deviation = torch.where(usable, (value - median).clamp(-self.max_deviation, self.max_deviation), 0.0)
        centred = torch.where(usable, deviation - deviation.sum() / n, 0.0) / (n - 1).clamp(min=1)
        # infinite energies are constants: their rows have a density, which should fall
        finite = torch.isfinite(value)
        change = torch.where(finite, log_w, 0.0) if bool(finite.any()) else log_w
        slope, variance = (centred * change).sum(), 0.5 * (n - 1) * centred.square().sum()
        return variance + slope - slope.detach(), {
            "log_variance": variance,
            "ess_fraction": ess_fraction(torch.where(usable, value, -torch.inf)),
            "n_masked": (~finite).sum(),
        }

    @torch.no_grad()
    def record(self, step: Step) -> list[State]:
        """States of paths from base to target, before and after every step."""
        generator, run = self.generator, self._run(step)
        joint, dropped = generator.joint()
        if self.needs_data and joint.is_bijective:
            states = [step.data]
            for drop in reversed(dropped):
                states.insert(0, drop.reverse(states[0], run)[0])
            return states
        path = generator.path(generator.base, self._target[0])
        levels = [None if t.level is None else path.at(t.level) for t in generator.transitions]
        steps = list(zip(generator.transitions, levels, strict=True))
        if self.needs_data:
            states = [step.data]
            for transition, level in reversed(steps):
                states.insert(0, transition.reverse(states[0], run.at(level))[0])
            return states
        states = [generator.base.sample(step.n_samples, step.rng, step.context)]
        for transition, level in steps:
            states.append(transition(states[-1], run.at(level))[0])
        return states

    def log_weights(self, states: list[State], step: Step) -> Float64[Tensor, " batch"]:
        """Log w of paths held fixed, differentiable in the parameters alone; −inf where the energy is infinite."""
        generator, run = self.generator, self._run(step)
        u, _ = run.evaluate(self._target[0], states[-1])
        joint, dropped = generator.joint()
        if joint.is_bijective:
            ends = states[len(states) - 1 - len(dropped) :]
            log_w = -u - joint.log_prob(ends[0], context=step.context)
            for drop, before, after in zip(dropped, ends[:-1], ends[1:], strict=True):
                log_w = log_w + drop.log_ratio(before, after, run)
            return log_w
        path = generator.path(generator.base, self._target[0])
        total, _ = run.evaluate(generator.base, states[0])
        for transition, before, after in zip(generator.transitions, states[:-1], states[1:], strict=True):
            here = run.at(None if transition.level is None else path.at(transition.level))
            if isinstance(transition, Bijection):
                ratio = transition(before, here)[1]
            elif isinstance(transition, DetailedBalance):
                ratio = here.energy(after)[0] - here.energy(before)[0]
            else:
                ratio = transition.log_ratio(before, after, here)
            total = total + ratio
        return total - u

    def _run(self, step: Step) -> Run:
        base = self.generator.base
        return Run(step.rng, step.context, ledger=step.ledger, free=() if base.log_z is None else (base,))


def _require_fixed_paths(generator: Generator) -> None:
    for transition in generator.transitions:
        name = type(transition).__name__
        if isinstance(transition, Bijection):
            if any(p.requires_grad for p in transition.parameters()):
                raise TypeError(
                    f"LogVariance: {name} is trained and stands among stochastic steps, so that paths cannot "
                    "be held fixed; fix its parameters, or use ReverseKL or PathLikelihood."
                )
        elif not isinstance(transition, DetailedBalance) and not hasattr(transition, "log_ratio"):
            raise TypeError(f"LogVariance: {name} has neither detailed balance nor log_ratio(before, after, run).")
