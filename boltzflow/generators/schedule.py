"""Annealing schedules: levels of constant conditional effective sample size and step sizes, found once and frozen."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.errors import AnnealingError, NonFiniteEnergyError
from boltzflow.paths import GeometricPath, Path
from boltzflow.run import Context, Ledger, Run, make_rng, new_seed
from boltzflow.state import State
from boltzflow.targets.target import Base, Target
from boltzflow.transitions.acceptance import FEWEST_ACCEPTED, rejects_everything
from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.resampling import SystematicResampling
from boltzflow.transitions.transition import Bijection, Transition

__all__ = ["Schedule", "as_levels", "conditional_ess", "find_schedule"]

_log = logging.getLogger(__name__)

SMALLEST_STEP = 1e-9
"""In units of λ itself: a schedule that needs smaller ones does not end. From 0 the first may be as small as it must,
as where particles of the base overlap."""

_HALVINGS = 200


@dataclass(frozen=True, eq=False)
class Schedule:
    """Levels of an annealed sampler, and the step size of every kernel at every level.

    Args:
        levels: λ, rising, in (0, 1], the last exactly 1.
        step_sizes: By level, one number per kernel (NaN for a kernel without a step size); None = the kernels' own.
        acceptance: By level, mean acceptance of every kernel in the last round of the pilot.
        cess: By level, conditional effective fraction of the pilot's population when it came from the level before.
        seed: Of the pilot.
        ledger: Evaluations of the pilot, which the cost of a sampler includes.

    Raises:
        AnnealingError: If the levels do not rise, or do not end at 1.
    """

    levels: tuple[float, ...]
    step_sizes: tuple[tuple[float, ...], ...] | None = None
    acceptance: tuple[tuple[float, ...], ...] = ()
    cess: tuple[float, ...] = ()
    seed: int | None = None
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        """Check the levels."""
        object.__setattr__(self, "levels", as_levels(self.levels))

    def __len__(self) -> int:
        """Number of levels."""
        return len(self.levels)


def as_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The levels of an annealing schedule as they must be.

    Raises:
        AnnealingError: If they do not rise strictly within (0, 1], or the last is not exactly 1.
    """
    values = tuple(float(level) for level in levels)
    rising = all(a < b for a, b in zip((0.0, *values), values, strict=False))
    if not values or not rising:
        raise AnnealingError(f"levels: expected λ rising strictly from above 0 to 1, got {_shown(values)}.")
    if values[-1] != 1.0:
        raise AnnealingError(
            f"levels: the schedule ends at λ = {values[-1]:.6g}, which is not the target; the last level must be "
            "exactly 1.0. Add it, or divide all levels by the last one."
        )
    return values


def _shown(values: tuple[float, ...]) -> str:
    return f"{list(values)}" if len(values) <= 8 else f"{list(values[:4])} … {list(values[-2:])}"


def conditional_ess(log_weights: Float64[Tensor, " n"], increments: Float64[Tensor, " n"]) -> float:
    """Conditional effective fraction (Σ W v)² / Σ W v² of a weighted population under incremental weights v.

    It measures the distance of two successive levels, whatever the weights have become before; for equal W it is the
    Kish effective sample size of v per row. Rows where W or v is zero are left out: no level would save them.

    Args:
        log_weights: Log W up to a constant, shape (n,).
        increments: log v, shape (n,).

    Returns:
        In (0, 1]; NaN if no row is left.

    References:
        Zhou, Johansen and Aston, J. Comput. Graph. Stat. 25, 701 (2016): the CESS.
    """
    keep = torch.isfinite(log_weights) & torch.isfinite(increments)
    log_w, log_v = log_weights[keep], increments[keep]
    log_w = log_w - torch.logsumexp(log_w, 0)
    return float(torch.exp(2 * torch.logsumexp(log_w + log_v, 0) - torch.logsumexp(log_w + 2 * log_v, 0)))


@torch.no_grad()
def find_schedule(
    base: Base,
    target: Target,
    kernels: Transition | Sequence[Transition],
    *,
    path: Callable[[Target, Target], Path] = GeometricPath,
    levels: Sequence[float] | None = None,
    maps: Sequence[Bijection] | None = None,
    cess: float = 0.9,
    n: int = 1000,
    n_rounds: int = 8,
    threshold: float = 0.5,
    max_levels: int = 2000,
    seed: int | None = None,
    context: Context | None = None,
) -> Schedule:
    """Run one population from the base to the target, choosing levels and step sizes on the way, and return them.

    The next level is the one at which the conditional effective fraction of the population falls to `cess`; the last is
    exactly 1. At every level the step sizes of Metropolis kernels follow their acceptance towards `target_acceptance`,
    from those of the level before. An adaptive population is biased, so its weights are thrown away: only levels and
    steps are kept, and a sampler made of them is exact.

    Args:
        base: Where paths start.
        target: At λ = 1.
        kernels: Moves at every level; copied.
        path: As for the Generator that will use the schedule.
        levels: Given levels, where only the step sizes are wanted.
        maps: One Bijection for every level of `levels`, which carries the population to it.
        cess: Conditional effective fraction of neighbouring levels, in (0, 1).
        n: Rows of the population.
        n_rounds: Calls of the kernels at every level, during which steps adapt.
        threshold: The population is resampled when its effective fraction falls below.
        max_levels: More are refused.
        seed: Random by default; recorded.
        context: Passed on to every Target and Transition.

    Raises:
        AnnealingError: If levels or settings make no schedule, it needs more than `max_levels`, or a kernel rejects
            nearly everything.
        NonFiniteEnergyError: If no row has a finite energy at the next level.

    References:
        Zhou, Johansen and Aston, J. Comput. Graph. Stat. 25, 701 (2016); Robbins and Monro, Ann. Math.
        Stat. 22, 400 (1951).

    Example:
        >>> from boltzflow.targets import DoubleWell, Gaussian
        >>> from boltzflow.transitions import HMC
        >>> schedule = find_schedule(Gaussian(2, scale=2.0), DoubleWell(), HMC(0.1, n_leapfrog=3), n=200, seed=1)
        >>> schedule.levels[-1]
        1.0
    """
    if not 0.0 < cess < 1.0:
        raise AnnealingError(f"find_schedule cess: expected a fraction in (0, 1), got {cess}.")
    given = None if levels is None else as_levels(levels)
    if maps is not None and (given is None or len(maps) != len(given)):
        raise AnnealingError("find_schedule maps: expected one Bijection for every given level.")
    seed = new_seed() if seed is None else seed
    pilot = _Pilot(base, target, kernels, path, n, threshold, seed, context)
    found: list[float] = []
    rows: list[tuple[float, tuple[float, ...], tuple[float, ...]]] = []
    while not found or found[-1] < 1.0:
        if len(found) >= max_levels:
            raise AnnealingError(
                f"find_schedule: {max_levels} levels reach only λ = {found[-1]:.3g} from {base.name} to {target.name}. "
                "Start from a base nearer to the target, lower cess, or raise max_levels."
            )
        if maps is not None:
            pilot.carry(maps[len(found)])
        level = pilot.next_level(found[-1] if found else 0.0, cess) if given is None else given[len(found)]
        fraction = pilot.advance(level)
        rows.append((fraction, *pilot.adapt(level, n_rounds)))
        found.append(level)
    _log.info("annealing schedule from %s to %s: %d levels", base.name, target.name, len(found))
    fractions, steps, acceptance = zip(*rows, strict=True)
    return Schedule(tuple(found), steps, acceptance, fractions, seed, pilot.run.ledger)


class _Pilot:
    """The population of a pilot: log-weights, energies at its level, and kernels whose steps adapt."""

    def __init__(
        self,
        base: Base,
        target: Target,
        kernels: Transition | Sequence[Transition],
        path: Callable[[Target, Target], Path],
        n: int,
        threshold: float,
        seed: int,
        context: Context | None,
    ) -> None:
        self.kernels = [copy.deepcopy(k) for k in ([kernels] if isinstance(kernels, Transition) else kernels)]
        self.target, self.path, self.threshold = target, path(base, target), threshold
        device = next((b.device for b in base.buffers()), torch.device("cpu"))
        rng = make_rng(seed, device=device)
        self.run = Run(rng, context, free=(base,) if base.log_z is not None and base is not target else ())
        self.state: State = base.sample(n, rng, context)
        self.u, self.state = self.run.evaluate(base, self.state)
        self.log_w = torch.zeros(n, dtype=torch.float64, device=device)
        # a path need not start at the base
        self.advance(0.0)

    def carry(self, bijection: Bijection) -> None:
        """Move the population by a map; its log-ratio enters the weights."""
        self.state, ratio = bijection(self.state, self.run)
        # what the energy at the next level is compared with
        self.u = self.u + ratio

    def _energies(self, level: float) -> Tensor:
        u, self.state = self.run.at(self.path.at(level)).energy(self.state)
        return u

    def next_level(self, here: float, cess: float) -> float:
        """The level at which the conditional effective fraction is `cess`; 1 if it never falls so low."""

        def fraction(level: float) -> float:
            return conditional_ess(self.log_w, self.u - self._energies(level))

        end = fraction(1.0)
        if math.isnan(end):
            raise NonFiniteEnergyError(
                f"find_schedule: no row of the population at λ = {here:.3g} has a finite energy of {self.target.name}. "
                "Start from a base inside its support."
            )
        if end >= cess:
            return 1.0
        low, high = here, 1.0
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if fraction(middle) >= cess else (low, middle)
            if high - low < 1e-12 * (high - here):
                break
        if high - here < SMALLEST_STEP * high:
            raise AnnealingError(
                f"find_schedule: from λ = {here:.3g} to {self.target.name} the next level is closer than "
                f"{SMALLEST_STEP:g} of that: energies of the samples are too high. Use a base nearer to the "
                "target, or lower cess."
            )
        return high

    def advance(self, level: float) -> float:
        """Weigh the population for a level, resample it if it is due; returns the conditional effective fraction."""
        u = self._energies(level)
        fraction = conditional_ess(self.log_w, self.u - u)
        self.log_w = torch.nan_to_num(self.log_w + self.u - u, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        self.u = u
        ancestors = SystematicResampling(threshold=self.threshold, level=level).choose(self.log_w, self.run.rng)
        if ancestors is not None:
            self.state, self.u = self.state.index(ancestors), self.u[ancestors]
            self.log_w = torch.zeros_like(self.log_w)
        return fraction

    def adapt(self, level: float, n_rounds: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Move at a level; returns the step sizes that were found and the acceptance of the last round."""
        run = self.run.at(self.path.at(level))
        metropolis = [isinstance(k, MetropolisKernel) for k in self.kernels]
        acceptance = [math.nan] * len(self.kernels)
        for round_ in range(n_rounds if any(metropolis) else 1):
            for i, kernel in enumerate(self.kernels):
                if kernel.level is not None:
                    kernel.level = level
                if not metropolis[i]:
                    if round_ == 0:
                        self._step(kernel, run)
                    continue
                self.state = kernel.step(self.state, run)
                acceptance[i] = float((torch.softmax(self.log_w, 0) * kernel.last_acceptance).sum())
                if round_ < n_rounds - 1 and hasattr(kernel, "step_size"):
                    change = 2.0 * (acceptance[i] - kernel.target_acceptance) / math.sqrt(1 + round_)
                    kernel.step_size = kernel.step_size * math.exp(change)
        self.u = self._energies(level)
        stepped = any(hasattr(kernel, "step_size") for kernel in self.kernels)
        for kernel, rate in zip(self.kernels, acceptance, strict=True):
            # swaps and rotations may be rare beside moves that have a step to adapt
            if rate < FEWEST_ACCEPTED and (hasattr(kernel, "step_size") or not stepped):
                raise AnnealingError(f"find_schedule: {rejects_everything(kernel, rate)}, or adapt it in more rounds.")
        adapted = [m and hasattr(k, "step_size") for m, k in zip(metropolis, self.kernels, strict=True)]
        steps = [float(k.step_size) if a else math.nan for a, k in zip(adapted, self.kernels, strict=True)]
        return tuple(steps), tuple(acceptance)

    def _step(self, kernel: Transition, run: Run) -> None:
        """A step that is not in detailed balance: what it dissipates enters the weights."""
        before, self.state = run.energy(self.state)
        self.state, ratio = kernel(self.state, run)
        after, self.state = run.energy(self.state)
        self.log_w = torch.nan_to_num(self.log_w + ratio - (after - before), nan=-torch.inf, neginf=-torch.inf)
