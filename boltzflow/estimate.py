"""Estimate: a number with its standard error, how the error was found, and what to distrust."""

import math
from dataclasses import dataclass, replace

from scipy.special import stdtrit

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error.

    Args:
        value: The estimate.
        error: Its standard error, in the same unit; finite and positive.
        method: How the error was found, e.g. "delta method between 400 groups".
        n_effective: Number of independent unweighted samples that would have given this error.
        unit: "kT", "kJ/mol", "nm", ...; empty for a pure number.
        note: Printed after the number, e.g. "relative to gaussian".
        degrees: Degrees of freedom of the error (Student's t); infinite where the error is as good as known.
        warnings: Reasons to distrust the number, printed with it.

    Raises:
        ValueError: If the value or the error is not finite, or the error is not positive.

    Example:
        >>> print(Estimate(-3.2123, 0.0421, method="delta method", n_effective=900.0))
        -3.21 ± 0.04 kT
    """

    value: float
    error: float
    method: str
    n_effective: float
    unit: str = "kT"
    note: str = ""
    degrees: float = math.inf
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that would print as certain or mean nothing."""
        for name in ("value", "error", "n_effective", "degrees"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if not math.isfinite(self.value):
            raise ValueError(
                f"Estimate: expected a finite value, got {self.value}; look for non-finite energies or weights."
            )
        if not (math.isfinite(self.error) and self.error > 0):
            raise ValueError(
                f"Estimate: expected a finite error > 0 for the value {self.value:.6g}, got {self.error}; the "
                "samples do not "
                "vary, so they cannot show how uncertain the value is: use more independent samples or populations."
            )
        object.__setattr__(self, "warnings", tuple(self.warnings))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided confidence interval from Student's t with `degrees` degrees of freedom."""
        if not 0 < level < 1:
            raise ValueError(f"Estimate.interval: expected 0 < level < 1, got {level}.")
        # above 1e9 degrees the normal quantile is the same to all digits, and stdtrit is not defined at infinity
        half = float(stdtrit(min(self.degrees, 1e9), 0.5 + level / 2)) * self.error
        return self.value - half, self.value + half

    def z_score(self, other: "Estimate | float") -> float:
        """Difference to a known number or to an independent Estimate, in combined standard errors."""
        if isinstance(other, Estimate):
            if other.unit != self.unit:
                raise ValueError(
                    f"Estimate.z_score: units differ, {self.unit!r} and {other.unit!r}; convert one with `scaled`."
                )
            return (self.value - other.value) / math.hypot(self.error, other.error)
        return (self.value - float(other)) / self.error

    def scaled(self, factor: float, unit: str) -> "Estimate":
        """The same estimate in another unit: value times factor, error times |factor|."""
        return replace(self, value=self.value * factor, error=self.error * abs(factor), unit=unit)

    def with_warnings(self, *warnings: str) -> "Estimate":
        """The same estimate with more warnings; repeated ones are kept once."""
        return replace(self, warnings=tuple(dict.fromkeys((*self.warnings, *warnings))))

    def __str__(self) -> str:
        """Value and error with the digits that the error allows, unit, note and warnings."""
        text = _format(self.value, self.error)
        if self.unit:
            text = f"{text} {self.unit}"
        if self.note:
            text = f"{text} ({self.note})"
        return f"{text} [{'; '.join(self.warnings)}]" if self.warnings else text

    def __repr__(self) -> str:
        """What `print` shows, with the method and the effective number of samples."""
        return f"Estimate({self}, {self.method}, n_effective={self.n_effective:.4g})"


def _format(value: float, error: float) -> str:
    """Round the error as the Particle Data Group does (two digits below 355, one above), the value to its place."""
    exponent = math.floor(math.log10(error))
    # 355..949 keep one digit, 950..999 round up to 1000, which again shows two
    leading = round(error / 10.0**exponent, 2)
    if leading < 3.55:
        place = exponent - 1
    elif leading < 9.5:
        place = exponent
    else:
        error, place = 10.0 ** (exponent + 1), exponent
    if place > -7 and max(abs(value), error) < 1e7:
        decimals = max(0, -place)
        # adding zero turns -0.0 into 0.0
        return f"{round(value, -place) + 0.0:.{decimals}f} ± {round(error, -place):.{decimals}f}"
    scale = math.floor(math.log10(max(abs(value), error)))
    decimals = max(0, scale - place)
    return f"({value / 10.0**scale:.{decimals}f} ± {error / 10.0**scale:.{decimals}f})e{scale:+03d}"
