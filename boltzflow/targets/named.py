"""Targets by the name that a system's definition gives them."""

from collections.abc import Mapping
from typing import Any

from boltzflow import targets
from boltzflow.errors import FormatError, UnknownNameError, nearest
from boltzflow.targets.target import Target

__all__ = ["named_target"]


def named_target(name: str, arguments: Mapping[str, Any], *, system: str) -> Target:
    """A Target of `boltzflow.targets`.

    Args:
        name: Of a class, or of a function that makes one.
        arguments: Its keyword arguments.
        system: Whose energy it is, for messages.

    Raises:
        UnknownNameError: If there is none of that name.
        FormatError: If it does not take the arguments.
    """
    abstract = {targets.Base, targets.Target, targets.MoleculeTarget}
    made = {n: getattr(targets, n) for n in targets.__all__}
    known = [n for n, thing in made.items() if callable(thing) and thing not in abstract]
    if name not in known:
        raise UnknownNameError(f"system {system}: unknown target {name!r}; {nearest(name, known)}")
    try:
        return made[name](**arguments)
    except (TypeError, ValueError) as error:
        raise FormatError(f"system {system}: {name} does not take the arguments {arguments}: {error}") from None
