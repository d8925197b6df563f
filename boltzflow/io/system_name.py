"""Names of systems: which one, with what measure of its constraints, at what temperature and λ."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from boltzflow.errors import FormatError

__all__ = ["SystemName", "read_name"]


@dataclass(frozen=True)
class SystemName:
    """What the name of a system says; its text is what `read_name` reads.

    Args:
        text: A shipped name or a folder.
        measure: Of its constraints; None for the system's own.
        temperature: In K; None for the system's own.
        lam: λ of its alchemical atoms.

    Example:
        >>> str(SystemName("alanine_dipeptide", temperature=350.0, lam=0.5))
        'alanine_dipeptide@350,lambda=0.5'
    """

    text: str
    measure: str | None = None
    temperature: float | None = None
    lam: float = 1.0

    def __str__(self) -> str:
        """``TEXT:MEASURE@TEMPERATURE,lambda=λ``, without what is the system's own."""
        measure = "" if self.measure is None else f":{self.measure}"
        state = [] if self.temperature is None else [f"{self.temperature:.10g}"]
        state += [] if self.lam == 1 else [f"lambda={self.lam:.10g}"]
        return f"{self.text}{measure}{'@' if state else ''}{','.join(state)}"


def read_name(name: str | os.PathLike, *, measures: Collection[str]) -> SystemName:
    """Read the name of a system; a file of that name is meant as it is, whatever characters are in it.

    Args:
        name: A shipped name or a folder, with ":MEASURE", and "@TEMPERATURE", "@lambda=VALUE" or both with a comma
            between them, behind it.
        measures: What may follow the ":".

    Raises:
        FormatError: If what follows the "@" is something else, or says the same twice.

    Example:
        >>> read_name("ethane:stiff@lambda=0.5", measures=["stiff"])
        SystemName(text='ethane', measure='stiff', temperature=None, lam=0.5)
    """
    text = os.fspath(name)
    if Path(text).exists():
        return SystemName(text)
    before, at, after = text.rpartition("@")
    state: dict[str, float] = {}
    if at:
        text, state = before, _read_state(before, after)
    before, _, measure = text.rpartition(":")
    if measure not in measures or Path(text).exists():
        return SystemName(text, **state)
    return SystemName(before, measure, **state)


def _read_state(text: str, state: str) -> dict[str, float]:
    """`temperature` and `lam` from what follows the "@" of a name, as far as they are given."""
    found: dict[str, float] = {}
    for part in state.split(","):
        key, equals, value = part.rpartition("=")
        field = "lam" if equals else "temperature"
        try:
            number = float(value)
            if field in found or (equals and key.strip() not in ("lambda", "λ")):
                raise ValueError
        except ValueError:
            raise FormatError(
                f"system {text}@{state}: expected NAME@TEMPERATURE in kelvin, NAME@lambda=VALUE or both with a comma "
                f"between them; got {part!r}."
            ) from None
        found[field] = number
    return found
