"""States for the table of free-energy differences: those that were asked for, or the basins of a profile."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from boltzflow.analysis.free_energy import Profile, delta_f
from boltzflow.analysis.observables import CollectiveVariable
from boltzflow.ensemble import Ensemble
from boltzflow.estimate import Estimate

__all__ = ["StateRow", "find_basins", "state_rows"]

Interval = tuple[float, float]

BARRIER = 1.0
"""Smallest barrier, kT, that makes two basins of one."""
SIGMAS = 3.0
"""Barriers must be this many standard errors high as well."""


@dataclass(frozen=True)
class StateRow:
    """One row of the table of free-energy differences.

    Args:
        interval: Of the variable, rad or its unit; None for the rest.
        population: Its weight, with error where one can be found.
        n: Samples in it.
        delta_f: Free energy minus that of the state it is compared with; None for that one, or if it has none.
        reference: The same from the reference ensemble.
        reason: Why there is no number.
    """

    interval: Interval | None
    population: float
    n: int
    delta_f: Estimate | None = None
    reference: Estimate | None = None
    reason: str = ""


def find_basins(profile: Profile) -> list[Interval]:
    """Basins of a profile: its minima that are separated by a barrier of 1 kT and of three standard errors.

    Bins are joined from the lowest upwards; where two basins meet, the shallower one is merged into the other unless
    the barrier is high enough seen from it (the persistence of the basin).

    Args:
        profile: In kT.

    Returns:
        The intervals between the cuts, at most as many as there are basins; on a circle they may cross ±π. One basin
        is no state: the list is then empty.
    """
    known = np.isfinite(profile.free_energy)
    # a bin without weight is at least as high as the highest that has some, and as uncertain as one sample
    f = np.where(known, profile.free_energy, np.max(profile.free_energy[known]) + 1.0)
    error = np.where(known & np.isfinite(profile.error), profile.error, 1.0)
    n = f.size
    owner = np.full(n, -1)

    def bottom(k: int) -> int:
        """The lowest bin of the basin that a bin belongs to."""
        while owner[k] != k:
            k = owner[k]
        return int(k)

    for k in np.argsort(f, kind="stable"):
        sides = [(k - 1) % n, (k + 1) % n] if profile.periodic else [j for j in (k - 1, k + 1) if 0 <= j < n]
        basins = sorted({bottom(j) for j in sides if owner[j] >= 0}, key=lambda b: (f[b], b))
        owner[k] = basins[0] if basins else k
        if len(basins) == 2:
            low, high = basins
            if f[k] - f[high] < max(BARRIER, SIGMAS * math.hypot(error[k], error[high])):
                owner[high] = low
    label = [bottom(k) for k in range(n)]
    cuts = [k for k in range(0 if profile.periodic else 1, n) if label[k] != label[k - 1]]
    if not cuts:
        return []
    edges = [float(profile.edges[k]) for k in cuts]
    ends = [edges[-1], *edges] if profile.periodic else [-math.inf, *edges, math.inf]
    return list(pairwise(ends))


def state_rows(
    ensemble: Ensemble,
    variable: CollectiveVariable,
    states: Sequence[Interval],
    *,
    reference: tuple[Ensemble, CollectiveVariable] | None = None,
    relative_to: int | None = -1,
) -> list[StateRow]:
    """Populations and free energies of states relative to one of them; a single state is compared with the rest.

    Args:
        ensemble: Weighted samples.
        variable: Measured on it.
        states: Disjoint intervals, as for `delta_f`.
        reference: Reference ensemble and the variable measured on it.
        relative_to: Index of the state that the others are compared with; None = the one with most weight.

    Raises:
        ValueError: If an interval is no interval, or two overlap.
    """
    inside = [_members(variable, state) for state in states]
    if sum(rows.astype(int) for rows in inside).max() > 1:
        raise ValueError(f"the states of {variable.name} overlap; give disjoint intervals.")
    intervals: list[Interval | None] = list(states)
    if len(states) == 1:
        intervals, inside = [*states, None], [*inside, ~inside[0]]
    weights = [float(ensemble.weights[rows].sum()) for rows in inside]
    zero = int(np.argmax(weights)) if relative_to is None else range(len(intervals))[relative_to]
    found = []
    for k, (interval, rows) in enumerate(zip(intervals, inside, strict=True)):
        if k == zero:
            found.append(StateRow(interval, weights[k], int(rows.sum())))
            continue
        pair = [interval] if intervals[zero] is None else [interval, intervals[zero]]
        try:
            estimate, reason = delta_f(ensemble, variable, states=pair), ""
        except ValueError as error:
            estimate, reason = None, str(error)
        theirs = None
        if reference is not None:
            try:
                theirs = delta_f(reference[0], reference[1], states=pair)
            except ValueError as error:
                reason = reason or f"reference: {error}"
        found.append(StateRow(interval, weights[k], int(rows.sum()), estimate, theirs, reason))
    return found


def _members(variable: CollectiveVariable, state: Interval) -> np.ndarray:
    from boltzflow.analysis.free_energy import _inside

    return _inside(variable, *state)
