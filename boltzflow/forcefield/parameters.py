"""The physical parameters of a force field by name: to read them, to replace them, and to have many states at once."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from boltzflow._typing import Tensor
from boltzflow.errors import UnknownNameError, nearest
from boltzflow.forcefield.term import Term

__all__ = ["parameter_owners", "replaced_terms", "term_names"]


def term_names(terms: Sequence[Term]) -> list[str]:
    """Return the class of each term, with its place among terms of that class where there are several."""
    kinds = [type(term).__name__ for term in terms]
    total, seen, names = Counter(kinds), Counter(), []
    for kind in kinds:
        names.append(kind if total[kind] == 1 else f"{kind}[{seen[kind]}]")
        seen[kind] += 1
    return names


def parameter_owners(terms: Sequence[Term]) -> dict[str, list[tuple[int, str]]]:
    """Return name -> the terms (by index) that have the parameter, and what it is called there."""
    owners: dict[str, list[tuple[int, str]]] = {}
    for index, (term, prefix) in enumerate(zip(terms, term_names(terms), strict=True)):
        for name, tensor in term.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                full = name if name in term.shared_parameters else f"{prefix}.{name}"
                owners.setdefault(full, []).append((index, name))
    return owners


def replaced_terms(terms: Sequence[Term], parameters: Mapping[str, Tensor]) -> tuple[list[dict[int, Term]], bool]:
    """Return, for each state, the terms that the parameters change: index -> the new term.

    Args:
        terms: of a force field.
        parameters: name -> tensor of the parameter's shape, or with one more dimension in front, the states.

    Returns:
        One entry, or one for each of the states; and whether the parameters have a dimension of states.

    Raises:
        UnknownNameError: a name that is no parameter; the nearest are named.
        ValueError: a shape that is neither, or different numbers of states, or none.
    """
    owners = parameter_owners(terms)
    count: int | None = None
    given: dict[int, dict[str, tuple[Tensor, bool]]] = {}
    for name, value in parameters.items():
        if name not in owners:
            raise UnknownNameError(f"unknown parameter {name!r}; {nearest(name, owners)}")
        for index, own in owners[name]:
            now = terms[index].state_dict(keep_vars=True)[own]
            new = torch.as_tensor(value, device=now.device).to(now.dtype)
            batched = new.ndim == now.ndim + 1 and new.shape[1:] == now.shape
            if not batched and new.shape != now.shape:
                raise ValueError(
                    f"parameter {name!r} must be {tuple(now.shape)}, or with the number of states in front; found "
                    f"{tuple(new.shape)}"
                )
            if batched and (len(new) == 0 or count not in (None, len(new))):
                raise ValueError(f"parameter {name!r} has {len(new)} states; expected {count or 'at least one'}")
            count = len(new) if batched else count
            given.setdefault(index, {})[own] = (new, batched)
    fixed = {
        index: terms[index].with_tensors({own: new for own, (new, _) in values.items()})
        for index, values in given.items()
        if not any(batched for _, batched in values.values())
    }
    states = []
    for k in range(1 if count is None else count):
        changed = dict(fixed)
        for index, values in given.items():
            if index not in fixed:
                own = {name: new[k] if batched else new for name, (new, batched) in values.items()}
                changed[index] = terms[index].with_tensors(own)
        states.append(changed)
    return states, count is not None
