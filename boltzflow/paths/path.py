"""Annealing paths between a base and a Target, each giving the energy at a level λ in [0, 1]."""

import abc
from dataclasses import dataclass

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.targets.target import Target

__all__ = ["EnergyPath", "GeometricPath", "MixtureLevel", "Path", "SquaredPath", "TemperedPath"]


@dataclass(frozen=True)
class MixtureLevel:
    """Energy Σ c_k u_k over leaf Targets; those with c_k = 0 are never evaluated (0·inf). A learned c_k is a tensor."""

    terms: tuple[tuple[float | Tensor, Target], ...]

    def energy(self, state: State, run: Run) -> tuple[Float64[Tensor, " batch"], State]:
        """Energy of shape (batch,), float64, and the State that carries the leaf evaluations."""
        total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for weight, target in self.terms:
            u, state = run.evaluate(target, state)
            total = total + weight * u
        return total, state

    def energy_and_force(self, state: State, run: Run) -> tuple[Float64[Tensor, " batch"], dict[str, Tensor], State]:
        """Energy, force by field, and the State that carries the leaf evaluations."""
        total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        force: dict[str, Tensor] = {}
        for weight, target in self.terms:
            u, leaf, state = run.evaluate_with_force(target, state)
            total = total + weight * u
            for name, value in leaf.items():
                force[name] = force[name] + weight * value if name in force else weight * value
        return total, force, state


class Path(abc.ABC):
    """A family of energies u_λ that ends at the target, u_1 = u; paths may start from samples of something else."""

    @abc.abstractmethod
    def at(self, level: float | Tensor) -> MixtureLevel:
        """The energy at λ in [0, 1], a tensor () where it is learned.

        Raises:
            ValueError: If λ is outside [0, 1].
        """


def _check(level: float | Tensor) -> float | Tensor:
    if isinstance(level, Tensor):
        return level  # learned, inside by construction
    if not 0.0 <= level <= 1.0:
        raise ValueError(f"Annealing level: expected λ in [0, 1], got {level}.")
    return float(level)


def _terms(*terms: tuple[float | Tensor, Target]) -> MixtureLevel:
    return MixtureLevel(tuple((c, t) for c, t in terms if isinstance(c, Tensor) or c != 0.0))


class GeometricPath(Path):
    """u_λ = (1−λ) u_base + λ u_target; the ends never evaluate the other end.

    Args:
        base: Target at λ = 0.
        target: Target at λ = 1.
    """

    def __init__(self, base: Target, target: Target) -> None:
        self.base, self.target = base, target

    def at(self, level: float | Tensor) -> MixtureLevel:
        """The energy at λ in [0, 1]."""
        level = _check(level)
        return _terms((1.0 - level, self.base), (level, self.target))


class EnergyPath(GeometricPath):
    """u_λ = (1−λ) u_start + λ u_target between two energies, from samples of something else that is like the start.

    The density of the base, which may be dear to evaluate elsewhere than at its own samples, enters the weights once:
    with the step from it to the start.

    Args:
        base: Where paths start; taken so that all paths are made in the same way.
        target: Target at λ = 1.
        start: Target at λ = 0.

    Example:
        >>> from functools import partial
        >>> from boltzflow.generators import annealed_importance
        >>> from boltzflow.targets import DoubleWell, Gaussian
        >>> from boltzflow.transitions import HMC
        >>> path = partial(EnergyPath, start=DoubleWell(b=-3.0))
        >>> kernel = HMC(0.1, n_leapfrog=3)
        >>> generator = annealed_importance(Gaussian(2, scale=2.0), kernel, [0.5, 1.0], path=path)
    """

    def __init__(self, base: Target, target: Target, *, start: Target) -> None:
        super().__init__(start, target)


class SquaredPath(Path):
    """u_λ = (1−2λ) u_base + 2λ u_target, from q = base at λ = 0 through the target p at λ = ½ to p²/q at λ = 1.

    The density p²/q is the proposal under which the mean of the weights p/q has the smallest variance: paths that end
    there lie where the base has too little, and their weights are still for the target. Where the base is +inf, or the
    target falls off less than half as fast as the base, p²/q cannot be normalised.

    Args:
        base: Target at λ = 0.
        target: Target at λ = ½.

    References:
        Flow Annealed Importance Sampling Bootstrap (Midgley et al., 2023), section 3.
    """

    def __init__(self, base: Target, target: Target) -> None:
        self.base, self.target = base, target

    def at(self, level: float | Tensor) -> MixtureLevel:
        """The energy at λ in [0, 1]."""
        level = _check(level)
        return _terms((1.0 - 2.0 * level, self.base), (2.0 * level, self.target))


class TemperedPath(Path):
    """u_λ = β_λ u_target with β_λ geometric between β_0 and 1; the base is never evaluated.

    Args:
        base: Where paths start; taken so that all paths are made in the same way.
        target: Target at λ = 1.
        beta_0: Inverse temperature at λ = 0 relative to the target's, in (0, 1].

    Example:
        >>> from functools import partial
        >>> from boltzflow.generators import Generator
        >>> from boltzflow.targets import Gaussian
        >>> generator = Generator(Gaussian(2), [], path=partial(TemperedPath, beta_0=0.1))
    """

    def __init__(self, base: Target, target: Target, *, beta_0: float) -> None:
        if not 0.0 < beta_0 <= 1.0:
            raise ValueError(f"TemperedPath beta_0: expected a value in (0, 1], got {beta_0}.")
        self.target, self.beta_0 = target, beta_0

    def at(self, level: float | Tensor) -> MixtureLevel:
        """The energy at λ in [0, 1]."""
        return MixtureLevel(((self.beta_0 ** (1.0 - _check(level)), self.target),))
