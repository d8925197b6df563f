"""States for the table of free-energy differences: those that were asked for, or the basins of a profile."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from boltzflow.analysis.free_energy import Profile, delta_f
from boltzflow.analysis.observables import CollectiveVariable
from boltzflow.analysis.states import inside
from boltzflow.ensemble import Ensemble
from boltzflow.errors import LowOverlapError
from boltzflow.estimate import Estimate

__all__ = ["StateRow", "find_basins", "state_rows"]

Interval = tuple[float, float]

BARRIER = 1.0
"""Smallest barrier, kT, that makes two basins of one."""
SIGMAS = 1.5
"""Barriers must lie this many standard errors below the mean population of the basin as well."""


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
    """Basins of a profile: its minima that are separated by a barrier of 1 kT and of 1.5 standard errors.

    Bins are joined from the lowest upwards; where two basins meet, the shallower one is merged into the other unless
    the barrier is high enough seen from it (the persistence of the basin). Whether it is more than noise is judged by
    the mean population of all bins of the basin, so that rare states with some ten visits are found.

    Args:
        profile: In kT, over bins of equal width.

    Returns:
        The intervals between the cuts, at most as many as there are basins; on a circle they may cross ±π. One basin
        is no state: the list is then empty.
    """
    known = np.isfinite(profile.free_energy) & np.isfinite(profile.error) & (profile.error > 0)
    if known.sum() < 2:
        return []
    p = np.where(np.isfinite(profile.free_energy), np.exp(-profile.free_energy), 0.0)
    p /= p.sum()
    # the relative variance of a bin is one over its visits; no bin is known better than to one visit
    one = float(np.median(p[known] * profile.error[known] ** 2))
    variance = np.maximum(np.where(known, p * profile.error, 0.0), one) ** 2
    height = -np.log(np.maximum(p, one))
    n = p.size
    owner = np.full(n, -1)
    members: dict[int, list[int]] = {}

    def bottom(k: int) -> int:
        """The lowest bin of the basin that a bin belongs to."""
        while owner[k] != k:
            k = owner[k]
        return int(k)

    def is_basin(basin: int, barrier: int) -> bool:
        rows = members[basin]
        # one bin more on either side, since a single one is empty by chance too often
        top = [j % n if profile.periodic else min(max(j, 0), n - 1) for j in range(barrier - 1, barrier + 2)]
        drop = p[rows].mean() - p[top].mean()
        noise = math.sqrt(variance[rows].sum() / len(rows) ** 2 + variance[top].sum() / len(top) ** 2)
        return bool(height[barrier] - height[basin] >= BARRIER and drop >= SIGMAS * noise)

    for k in np.argsort(height, kind="stable"):
        k = int(k)
        sides = [(k - 1) % n, (k + 1) % n] if profile.periodic else [j for j in (k - 1, k + 1) if 0 <= j < n]
        basins = sorted({bottom(j) for j in sides if owner[j] >= 0}, key=lambda b: (height[b], b))
        for shallow in basins[1:]:
            if not is_basin(shallow, k):
                owner[shallow] = basins[0]
                members[basins[0]] += members.pop(shallow)
        owner[k] = basins[0] if basins else k
        members.setdefault(int(owner[k]), []).append(k)
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
    members = [inside(variable, *state) for state in states]
    if sum(rows.astype(int) for rows in members).max() > 1:
        raise ValueError(f"the states of {variable.name} overlap; give disjoint intervals.")
    intervals: list[Interval | None] = list(states)
    if len(states) == 1:
        intervals, members = [*states, None], [*members, ~members[0] & np.isfinite(variable.values)]
    weights = [float(ensemble.weights[rows].sum()) for rows in members]
    zero = int(np.argmax(weights)) if relative_to is None else range(len(intervals))[relative_to]
    found = []
    for k, (interval, rows) in enumerate(zip(intervals, members, strict=True)):
        if k == zero:
            found.append(StateRow(interval, weights[k], int(rows.sum())))
            continue
        pair = [interval] if intervals[zero] is None else [interval, intervals[zero]]
        estimate, reason = _delta_f(ensemble, variable, pair)
        theirs, why = (None, "") if reference is None else _delta_f(*reference, pair)
        reason = "; ".join(text for text in (reason, f"reference: {why}" if why else "") if text)
        found.append(StateRow(interval, weights[k], int(rows.sum()), estimate, theirs, reason))
    return found


def _delta_f(
    ensemble: Ensemble, variable: CollectiveVariable, states: Sequence[Interval]
) -> tuple[Estimate | None, str]:
    """The estimate, or None and why there is none."""
    try:
        return delta_f(ensemble, variable, states=states), ""
    except LowOverlapError as error:
        if "no weight" in str(error):
            return None, "no sample with a weight is in one of the states"
        return None, str(error).partition(": ")[2]
    except ValueError as error:
        return None, str(error)
