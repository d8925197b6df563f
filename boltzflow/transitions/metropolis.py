"""Metropolis kernels: the accept-reject step that all of them share, and the Gaussian random walk."""

import abc
import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import Space, State
from boltzflow.transitions.step_size import Stepped, per_row, tracks
from boltzflow.transitions.transition import DetailedBalance

__all__ = [
    "MetropolisKernel",
    "RandomWalkMetropolis",
    "centred_normal",
    "log_probability_of",
    "moved_fields",
    "moves_centre",
    "squared_norm",
    "wrap",
]


def moved_fields(state: State, run: Run) -> tuple[str, ...]:
    """Names of the floating-point fields that the Targets of the run's level read.

    Raises:
        ValueError: If the run has no level, or one of those fields lives on a sphere.
    """
    if run.level is None:
        raise ValueError(
            "A Metropolis or Langevin step needs the energy of a level; run it with run.at(path.at(level))."
        )
    names = dict.fromkeys(name for _, target in run.level.terms for name in target.fields)
    moved = tuple(n for n in names if state[n].is_floating_point() and state.spaces[n].kind not in ("integer", "mask"))
    for name in moved:
        if state.spaces[name].kind == "sphere":
            raise ValueError(
                f"Field {name!r} lives on a sphere, where Cartesian steps are not reversible; expected line, interval, "
                "circle or box."
            )
    return moved


def moves_centre(space: Space) -> bool:
    """Whether steps may move the centre of particles: not where an (n, D) field, or several, has no translations."""
    if space.kind != "line" or len(space.shape) < 2:
        return True
    *several, n, d = space.shape
    return space.dimension > math.prod(several) * (n - 1) * d


def wrap(x: Tensor, space: Space) -> Tensor:
    """Bring angles back to [-pi, pi); other spaces are left as they are."""
    return torch.remainder(x + math.pi, 2 * math.pi) - math.pi if space.kind == "circle" else x


class MetropolisKernel(DetailedBalance):
    """A kernel that proposes and accepts with the Metropolis-Hastings rule; rows of non-finite energy are rejected.

    Where neither the State nor a parameter of its own requires a gradient, steps are constants to autograd. Otherwise
    proposals are differentiable, and log P of every decision to accept or reject goes to `run.decisions`: an objective
    needs both, since the derivative of the path at fixed decisions is biased. Counts stay on the device and are not
    part of a checkpoint.

    Args:
        n_steps: Trials per call.
        level: λ on the annealing path.

    Attributes:
        last_acceptance: Mean acceptance probability of every row in the latest call, shape (batch,), float64.
        target_acceptance: Acceptance that step-size adaptation aims at.
    """

    target_acceptance: ClassVar[float] = 0.3
    needs_force: ClassVar[bool] = False

    def __init__(self, *, n_steps: int = 1, level: float = 1.0) -> None:
        super().__init__(level=level)
        if n_steps < 1:
            raise ValueError(f"{type(self).__name__} n_steps: expected at least 1, got {n_steps}.")
        self.n_steps = n_steps
        self.last_acceptance: Tensor | None = None
        self.register_buffer("_accepted", torch.zeros((), dtype=torch.int64), persistent=False)
        self._trials = 0

    @abc.abstractmethod
    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Propose y for every row.

        Returns:
            The proposal with its energy evaluated, and log [p(y) q(y→x)] − log [p(x) q(x→y)], shape (batch,); NaN
            rejects.
        """

    def step(self, state: State, run: Run) -> State:
        """Make `n_steps` trials."""
        tracked = tracks(self, state, run)
        state = state if tracked else state.detach()
        total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        with torch.set_grad_enabled(tracked):
            for _ in range(self.n_steps):
                state = self._evaluated(state, run)
                proposal, log_odds = self.propose(state, run)
                odds = log_odds.detach()
                accept = torch.log(run.uniform(odds)) < odds
                state = proposal.where(accept, state)
                self._accepted = self._accepted + accept.sum()
                self._trials += len(state)
                total += torch.nan_to_num(odds, nan=-torch.inf).clamp(max=0.0).exp()
                if tracked:
                    run.decisions.append(log_probability_of(accept, log_odds))
        self.last_acceptance = total / self.n_steps
        return state

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Move; r = u_λ(y) − u_λ(x), 0 where nothing moved and where the energy is infinite."""
        with torch.set_grad_enabled(tracks(self, state, run)):
            return super().forward(self._evaluated(state, run), run)

    def acceptance_rate(self) -> float:
        """Fraction of accepted trials since construction or the last `reset_acceptance`; NaN before the first trial."""
        return int(self._accepted) / self._trials if self._trials else math.nan

    def reset_acceptance(self) -> None:
        """Forget the trials counted so far."""
        self._accepted = torch.zeros_like(self._accepted)
        self._trials = 0

    def _evaluated(self, state: State, run: Run) -> State:
        # where the kernel needs forces, energy and force come from one evaluation
        return run.energy_and_force(state)[-1] if self.needs_force else run.energy(state)[-1]


def log_probability_of(accept: Tensor, log_odds: Float64[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
    """Log P of Metropolis decisions: min(0, log odds) where accepted, log(1 − odds) where rejected.

    Args:
        accept: The decisions, (batch,) bool.
        log_odds: Of accepting; those that are not finite were decided with certainty, and have no gradient.

    Returns:
        log P, (batch,), float64, differentiable in the odds.
    """
    certain = ~torch.isfinite(log_odds.detach()) | (log_odds.detach() >= 0)
    safe = torch.where(certain, -1.0, log_odds)
    return torch.where(certain, 0.0, torch.where(accept, safe, torch.log(-torch.expm1(safe))))


class RandomWalkMetropolis(MetropolisKernel, Stepped):
    """Metropolis with a Gaussian random walk in every moved field.

    Args:
        step_size: Standard deviation of the proposal, a number or one per row.
        n_steps: Trials per call.
        learnable: Whether the step size is a parameter.
        level: λ on the annealing path.

    References:
        Metropolis et al., J. Chem. Phys. 21, 1087 (1953).
    """

    def __init__(
        self, step_size: float | Tensor, *, n_steps: int = 1, learnable: bool = False, level: float = 1.0
    ) -> None:
        super().__init__(n_steps=n_steps, level=level)
        self.register_step_size(step_size, learnable=learnable)

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Gaussian displacement; symmetric, so the odds are those of the energies."""
        before, _ = run.energy(state)
        moved = {}
        for name in moved_fields(state, run):
            x, space = state[name], state.spaces[name]
            moved[name] = wrap(x + per_row(self.current_step_size(), x) * centred_normal(x, space, run), space)
        after, proposal = run.energy(state.replace(**moved))
        return proposal, before - after


def centred_normal(like: Tensor, space: Space, run: Run) -> Tensor:
    """Standard normal noise on the space of a field: without its mean where the space excludes translations."""
    noise = run.normal(like)
    return noise if moves_centre(space) else noise - noise.mean(dim=-2, keepdim=True)


def squared_norm(values: Sequence[Tensor]) -> Float64[Tensor, " batch"]:
    """Sum of squares over all fields, shape (batch,), accumulated in float64."""
    return torch.stack([v.double().flatten(1).square().sum(1) for v in values]).sum(0)
