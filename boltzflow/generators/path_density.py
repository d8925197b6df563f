"""Density of samples as a function of the samples alone, carried along the flow that makes them."""

from collections.abc import Mapping, Sequence

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.targets.target import Base
from boltzflow.transitions.transition import Bijection, Transition

__all__ = ["PathDensity"]


class PathDensity:
    """The score ∂_x log q at fixed parameters, pushed through one Bijection after the other.

    With it the path gradient of log q(x(θ)), which is that through x alone, takes no second pass through the flow. The
    score is needed only up to the last Bijection with parameters in training: let h be the sample there. What follows
    is a function of h alone, with the log-ratio r(h), so that log q(x) = log q(h) − r(h).

    Args:
        base: Where the samples start.
        transitions: All of the Generator.
        start: Samples of the base.
        run: As the Generator hands it over.

    Raises:
        TypeError: If a step is not a Bijection.
        ValueError: If log Z of the base is unknown.
    """

    def __init__(self, base: Base, transitions: Sequence[Transition], start: State, run: Run) -> None:
        if not all(isinstance(t, Bijection) for t in transitions):
            raise TypeError("path_density: needs a Generator of Bijections, whose density is known.")
        if base.log_z is None:
            raise ValueError(f"path_density: log Z of {base.name} is unknown, so there is no normalised density.")
        trained = [k for k, t in enumerate(transitions) if any(p.requires_grad for p in t.parameters())]
        self._n_left = trained[-1] + 1 if trained else 0
        energy, force, _ = run.evaluate_with_force(base, start)
        self._score: Mapping[str, Tensor] = force  # −∂u is ∂ log q
        self._log_prob = -energy.detach() - base.log_z
        self._last = start
        self._ratio_after: Tensor | float = 0.0

    def step(self, transition: Bijection, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Take the step, with the score as long as it is needed."""
        if self._n_left:
            self._n_left -= 1
            state, ratio, self._score = transition.forward_with_score(state, run, self._score)
            self._log_prob = self._log_prob - ratio.detach()
            self._last = state
        else:
            state, ratio = transition(state, run)
            self._ratio_after = self._ratio_after + ratio
        return state, ratio

    @property
    def needs_steps(self) -> bool:
        """Whether a Bijection in training is still to come."""
        return self._n_left > 0

    @property
    def score(self) -> Mapping[str, Tensor]:
        """∂_x log q of the samples behind the last Bijection in training, by field."""
        return self._score

    @property
    def point(self) -> State:
        """The samples behind the last Bijection in training, through which `log_prob` has its derivative."""
        return self._last

    def log_prob(self) -> Float64[Tensor, " batch"]:
        """Log q of the samples, with the derivative through them alone; NaN in rows whose score is not finite."""
        value, linear = self._log_prob, 0.0
        for name, score in self._score.items():
            score, point = score.flatten(1), self._last[name].flatten(1)
            finite = torch.isfinite(score).all(1)
            # a mask on the result alone would leave 0·NaN in the gradients of the parameters
            term = (torch.where(finite[:, None], score, 0.0) * point).sum(1, dtype=torch.float64)
            value, linear = torch.where(finite, value, torch.nan), linear + term - term.detach()
        return value + linear - self._ratio_after
