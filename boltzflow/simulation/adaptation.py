"""What a burn-in adapts before it is frozen: step sizes by dual averaging, masses from the variances of windows."""

from collections.abc import Mapping
from typing import Any

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.state import State

__all__ = ["Adaptation", "DualAveraging", "RunningVariance", "slow_windows"]


class DualAveraging:
    """Step sizes whose acceptance approaches a target, and their average over the iterates.

    log ε_t = log ε_0 − √t/γ · Σ (a* − a_s)/(t + t0), and log ε̄ its average with weights t^−κ; t0 = 10 and κ = 0.75 as
    published. The published centre log 10 ε_0 and γ = 0.05 are for single chains and long burn-ins: here a step size
    that is right stays right in a short one, and the acceptance of several chains, a mean, allows γ = 0.1. For HMC of
    16 chains the acceptance is off by 0.02, 0.11 and 0.04 (root mean square) after 50 trials from a step that is right,
    100 times too small and 100 times too large; the Robbins-Monro rule with steps t^−½ leaves 0.02, 0.25 and 0.01.

    Args:
        step_size: ε_0, any shape; each is adapted on its own.
        target: Acceptance a* that is aimed at.

    References:
        Hoffman and Gelman, J. Mach. Learn. Res. 15, 1593 (2014), section 3.2; Nesterov, Math. Program. 120, 221 (2009).
    """

    gamma, t0, kappa = 0.1, 10.0, 0.75

    def __init__(self, step_size: Tensor, target: float) -> None:
        self.target = target
        self.restart(step_size)

    def restart(self, step_size: Tensor) -> None:
        """Begin anew around other step sizes."""
        self.log_step = self.centre = step_size.log()
        self.log_mean, self.error, self.count = self.log_step, torch.zeros_like(self.log_step), 0

    def update(self, acceptance: Tensor) -> Tensor:
        """The next step sizes, given the mean acceptance of the last ones."""
        self.count += 1
        weight = 1.0 / (self.count + self.t0)
        self.error = (1 - weight) * self.error + weight * (self.target - acceptance)
        self.log_step = self.centre - self.count**0.5 / self.gamma * self.error
        weight = self.count**-self.kappa
        self.log_mean = weight * self.log_step + (1 - weight) * self.log_mean
        return self.log_step.exp()

    @property
    def mean(self) -> Tensor:
        """ε̄, by which the adapted step sizes are replaced in the end."""
        return self.log_mean.exp()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers to go on from."""
        return {name: getattr(self, name) for name in ("log_step", "centre", "log_mean", "error", "count")}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for name, value in saved.items():
            setattr(self, name, value.to(self.log_step) if isinstance(value, Tensor) else value)


class RunningVariance:
    """Mean and variance of every coordinate over batches that come one after the other, without cancellation.

    References:
        Welford, Technometrics 4, 419 (1962); of batches by Chan, Golub, LeVeque, Am. Stat. 37, 242 (1983), Eq. 2.1.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def update(self, state: State) -> None:
        """Add the rows of the fields on lines."""
        n = len(state)
        for name, space in state.spaces.items():
            if space.kind != "line" or not state[name].is_floating_point():
                continue
            x = state[name].double()
            mean, squares = x.mean(0), x.var(0, correction=0) * n
            if self.count:
                shift = mean - self.mean[name]
                squares = self._squares[name] + squares + shift.square() * (self.count * n / (self.count + n))
                mean = self.mean[name] + shift * (n / (self.count + n))
            self.mean[name], self._squares[name] = mean, squares
        self.count += n

    def variances(self) -> dict[str, Float64[Tensor, "..."]]:
        """Variance of every coordinate by field, shrunk towards a thousandth of their mean as by five more samples."""
        found = {}
        for name, squares in self._squares.items():
            variance = squares / max(self.count - 1, 1)
            found[name] = (self.count * variance + 5 * 1e-3 * variance.mean()) / (self.count + 5)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers to go on from."""
        return {"count": self.count, "mean": dict(self.mean), "squares": dict(self._squares)}

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a `state_dict`."""
        self.count = saved["count"]
        self.mean = {name: value.to(device) for name, value in saved["mean"].items()}
        self._squares = {name: value.to(device) for name, value in saved["squares"].items()}


def slow_windows(n: int) -> list[tuple[int, int]]:
    """Windows of a burn-in from whose frames masses are estimated: after 75 of n sweeps, doubling from 25, 50 before
    the end.

    Below 150 sweeps one window leaves out 15 % at the beginning and, for the step sizes that follow, 25 % at the end
    (Stan: 10 %); below 40 there is none.

    Args:
        n: Sweeps of the burn-in.

    Returns:
        First sweep and the one after the last of every window.

    References:
        Carpenter et al., J. Stat. Softw. 76 (1), 1 (2017); Stan Reference Manual, "Adaptation".
    """
    if n < 40:
        return []
    start, last, width = (75, 50, 25) if n >= 150 else (int(0.15 * n), int(0.25 * n), n)
    windows, end = [], n - last
    while start < end:
        stop = start + width
        # a window after which the next one has no room takes what is left
        stop = end if stop + 2 * width > end else stop
        windows.append((start, stop))
        start, width = stop, 2 * width
    return windows


class Adaptation:
    """Step sizes, and if wanted masses, in the course of a burn-in.

    Args:
        step_sizes: By number of the kernel, one per rung.
        targets: Acceptance that each aims at.
        masses: Whether masses are adapted.
    """

    def __init__(self, step_sizes: Mapping[int, Tensor], targets: Mapping[int, float], *, masses: bool) -> None:
        self.done = 0
        self.steps = {i: DualAveraging(s, targets[i]) for i, s in step_sizes.items()}
        self.masses = masses
        self.variance = RunningVariance()

    def update(self, acceptance: Tensor, state: State, n_sweeps: int) -> dict[str, Tensor] | None:
        """Take account of a sweep.

        Args:
            acceptance: Mean by kernel and rung.
            state: The walkers of the lowest rung.
            n_sweeps: Of the burn-in.

        Returns:
            At the end of a window the masses that follow from it, by field on a line; None otherwise.
        """
        for i, step in self.steps.items():
            step.update(acceptance[i])
        window = next((w for w in slow_windows(n_sweeps) if w[0] <= self.done < w[1]), None) if self.masses else None
        self.done += 1
        if window is None:
            return None
        self.variance.update(state)
        if self.done < window[1]:
            return None
        found = {name: variance.reciprocal() for name, variance in self.variance.variances().items()}
        self.variance = RunningVariance()
        return found or None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers to go on from."""
        return {
            "done": self.done,
            "masses": self.masses,
            "steps": {i: step.state_dict() for i, step in self.steps.items()},
            "variance": self.variance.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a `state_dict`."""
        self.done, self.masses = saved["done"], saved["masses"]
        for i, step in saved["steps"].items():
            self.steps[i].load_state_dict(step)
        self.variance.load_state_dict(saved["variance"], device)
