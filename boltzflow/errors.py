"""Errors of this package: each names the thing, what was expected, what was found and the remedy."""

import difflib
from collections.abc import Iterable

__all__ = [
    "AnnealingError",
    "BoltzflowError",
    "CheckpointMismatchError",
    "FormatError",
    "LowOverlapError",
    "NonFiniteEnergyError",
    "NormalisationError",
    "NotAMoleculeError",
    "UnitError",
    "UnknownNameError",
    "UnsupportedForceError",
    "nearest",
]


class BoltzflowError(Exception):
    """Base class of the errors of this package."""


class UnitError(BoltzflowError, ValueError):
    """A physical value came without its unit, or with the wrong one."""


class UnsupportedForceError(BoltzflowError, ValueError):
    """A System holds a force that a back-end cannot evaluate."""


class NonFiniteEnergyError(BoltzflowError, ValueError):
    """More energies, log-weights or model outputs are non-finite than an estimate can bear."""


class LowOverlapError(BoltzflowError, ValueError):
    """Two ensembles overlap too little for the estimate that was asked for."""


class AnnealingError(BoltzflowError, ValueError):
    """An annealing schedule does not lead from the base to the target, or its moves stand still."""


class CheckpointMismatchError(BoltzflowError, ValueError):
    """A checkpoint or a run folder belongs to another system, configuration or version, or is damaged."""


class FormatError(BoltzflowError, ValueError):
    """A file is not what this package wrote, or is damaged."""


class NormalisationError(BoltzflowError, ValueError):
    """An ensemble does not carry the normalisation that the estimate needs."""


class NotAMoleculeError(BoltzflowError, AttributeError):
    """A system with atoms was needed, and this one is an analytic energy."""


class UnknownNameError(BoltzflowError, KeyError):
    """A system, recipe, key or field of that name does not exist."""

    def __str__(self) -> str:
        """The message as written (KeyError would print its repr)."""
        return str(self.args[0]) if self.args else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the valid choices nearest to a mistyped name, nearest first."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(known) if known else 'none'}"
