"""A learned schedule: where on the path the levels of a Generator lie."""

from collections.abc import Callable, Sequence

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.paths.path import GeometricPath, MixtureLevel, Path
from boltzflow.targets.target import Target

__all__ = ["LearnedSchedule"]


class LearnedSchedule(torch.nn.Module):
    """Moves the levels 0 < λ_1 < … < λ_K < 1 of a Generator monotonically; 0 and 1 stay, so that paths end as before.

    The given levels are knots whose increments are a softmax of parameters, at first those of the knots themselves. It
    takes the place of a Generator's `path` and is saved with it.

    Args:
        levels: Levels at which Transitions stand; 0 and 1 may be among them.
        path: Makes the path on which they are moved.

    Raises:
        ValueError: If no level lies between 0 and 1, or one lies outside.

    Example:
        >>> from boltzflow.generators import Generator
        >>> from boltzflow.targets import Gaussian
        >>> from boltzflow.transitions import MALA
        >>> steps = [MALA(0.1, level=level) for level in (0.25, 0.5, 1.0)]
        >>> generator = Generator(Gaussian(2), steps, path=LearnedSchedule([0.25, 0.5]))
        >>> generator.path.values().tolist()
        [0.0, 0.25, 0.5, 1.0]
    """

    def __init__(self, levels: Sequence[float], *, path: Callable[[Target, Target], Path] = GeometricPath) -> None:
        super().__init__()
        inside = sorted({float(level) for level in levels} - {0.0, 1.0})
        if not inside or inside[0] < 0.0 or inside[-1] > 1.0:
            raise ValueError(f"LearnedSchedule levels: expected some between 0 and 1 and none outside, got {levels}.")
        self._knots = [0.0, *inside, 1.0]
        self._path = path
        increments = torch.tensor(self._knots, dtype=torch.float64).diff()
        self.log_increments = torch.nn.Parameter(increments.log())

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of the path."""
        return (getattr(self._path, "func", self._path).__name__,)

    def values(self) -> Float[Tensor, " knots"]:
        """Where the knots lie, ascending from 0 to 1."""
        return torch.nn.functional.pad(torch.softmax(self.log_increments, 0).cumsum(0), (1, 0))

    def forward(self, base: Target, target: Target) -> Path:
        """The path on which levels are moved."""
        return _Moved(self._path(base, target), self._knots, self.values())


class _Moved(Path):
    """A path whose levels between knots are interpolated linearly."""

    def __init__(self, path: Path, knots: Sequence[float], values: Tensor) -> None:
        self._path, self._knots, self._values = path, knots, values

    def at(self, level: float | Tensor) -> MixtureLevel:
        """The energy at the moved λ; the ends are the path's own."""
        if level <= 0.0 or level >= 1.0:
            return self._path.at(level)
        right = next(i for i, knot in enumerate(self._knots) if knot >= level)
        left = right - 1
        share = (level - self._knots[left]) / (self._knots[right] - self._knots[left])
        return self._path.at(self._values[left] + share * (self._values[right] - self._values[left]))
