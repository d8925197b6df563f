"""Free energies along a collective variable: differences between states, profiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.constants import R as GAS_CONSTANT
from scipy.constants import calorie

from boltzflow.analysis.observables import CollectiveVariable, collective_variable
from boltzflow.analysis.states import Interval, States, interval_states
from boltzflow.ensemble import Ensemble
from boltzflow.errors import LowOverlapError, UnitError
from boltzflow.estimate import Estimate
from boltzflow.statistics.means import bootstrap_error, weight_warnings

__all__ = [
    "Profile",
    "delta_f",
    "free_energy_report",
    "profile",
    "state_difference",
    "states_report",
    "unit_factor",
]

Unit = Literal["kT", "kJ/mol", "kcal/mol"]
# fewer effective visits than this make even the error bar of a rare state unreliable
FEW_VISITS = 10


def unit_factor(unit: Unit, *, temperature: float | None) -> float:
    """What one kT is in a unit.

    Raises:
        UnitError: If the unit is unknown or needs a temperature that is not given.
    """
    if unit == "kT":
        return 1.0
    if unit not in ("kJ/mol", "kcal/mol"):
        raise UnitError(f"unit {unit!r} is unknown; expected 'kT', 'kJ/mol' or 'kcal/mol'.")
    if temperature is None:
        raise UnitError(
            f"unit {unit!r} needs a temperature in K, which the ensemble does not know: give temperature=…."
        )
    return GAS_CONSTANT / 1000 * temperature / (calorie if unit == "kcal/mol" else 1.0)


def delta_f(
    ensemble: Ensemble,
    cv: CollectiveVariable | str | np.ndarray,
    *,
    states: Sequence[Interval],
    periodic: bool | None = None,
    unit: Unit = "kT",
    temperature: float | None = None,
    error: Literal["linear", "bootstrap"] = "linear",
) -> Estimate:
    """Free energy of the first state minus that of the second, −log(P₁/P₂); of one state against the rest.

    Args:
        ensemble: Weighted samples.
        cv: A collective variable, its text (see `collective_variable`), or its values (n,).
        states: One or two intervals [lo, hi); on a circle in rad, across ±π where lo > hi. A circle needs two cuts.
        periodic: Whether the values are angles; needed only for an array.
        unit: Of the answer.
        temperature: In K, for units other than kT; None = the ensemble's.
        error: "linear" or "bootstrap", both between groups.

    Returns:
        An Estimate whose n_effective is 1/error² (in kT): the number of independent visits to the rarer state, about.

    Raises:
        LowOverlapError: If a state has no weight, or no chain of a simulation was ever in both.
        ValueError: If the intervals overlap, are empty, or leave one end of a circle open.
    """
    variable = _variable(ensemble, cv, periodic=periodic)
    found = interval_states(variable, states)
    return state_difference(ensemble, found, unit=unit, temperature=temperature, error=error)


def state_difference(
    ensemble: Ensemble,
    states: States,
    *,
    unit: Unit = "kT",
    temperature: float | None = None,
    error: Literal["linear", "bootstrap"] = "linear",
) -> Estimate:
    """Free energy of the first of two states minus that of the second, −log(P₁/P₂).

    Args:
        ensemble: Weighted samples.
        states: From `interval_states` or `structure_states`.
        unit: Of the answer.
        temperature: In K, for units other than kT; None = the ensemble's.
        error: "linear" or "bootstrap", both between groups.

    Raises:
        LowOverlapError: If a state has no weight, or no chain of a simulation was ever in both.
    """
    first, second = states.members
    w = ensemble.weights
    factor = unit_factor(unit, temperature=ensemble.temperature if temperature is None else temperature)
    p = [float(w[rows].sum()) for rows in (first, second)]
    for name, rows, weight in zip(states.names, (first, second), p, strict=True):
        if weight == 0:
            raise LowOverlapError(
                f"delta_f: state {name} of {states.variable} ({states.unit or 'no unit'}) holds {int(rows.sum())} of "
                f"{len(ensemble)} "
                "samples and no weight, so its free energy is unknown: check the interval and its unit, draw more "
                "samples, or train a "
                "generator that visits it."
            )
    warnings = [*weight_warnings(ensemble.log_weights), *_crossings(ensemble, states)]
    terms = w * (second / p[1] - first / p[0])
    found = ensemble.grouping.error(terms)
    std, method = found.error, f"linear {found.method}"
    if error == "bootstrap":
        blocks = ensemble.grouping.blocks(terms)
        std = bootstrap_error(lambda s: np.log(s[1] / s[0]), [blocks.totals(w * first), blocks.totals(w * second)])
        method = f"bootstrap over {len(blocks)} groups"
    for name, rows, weight in zip(states.names, (first, second), p, strict=True):
        visits = float(weight**2 / np.sum(w[rows] ** 2))
        if visits < FEW_VISITS:
            warnings.append(f"state {name}: {visits:.1f} effective samples")
    estimate = Estimate(
        float(np.log(p[1] / p[0])),
        std,
        method=method,
        n_effective=1.0 / std**2 if std > 0 else math.inf,
        degrees=found.degrees,
        warnings=tuple(warnings),
    )
    return estimate.scaled(factor, unit)


def _crossings(ensemble: Ensemble, states: States) -> list[str]:
    """For samples of chains: a warning if few of them were in both states; if none was, the ratio means nothing.

    Raises:
        LowOverlapError: If no chain was in both states.
    """
    if ensemble.chain is None:
        return []
    chains = [np.unique(ensemble.chain[rows & (ensemble.weights > 0)]) for rows in states.members]
    both = len(np.intersect1d(*chains))
    n_chains = len(np.unique(ensemble.chain))
    if both == 0:
        raise LowOverlapError(
            f"delta_f: the states {' and '.join(states.names)} of {states.variable} are disconnected: of {n_chains} "
            f"chains {len(chains[0])} were in the first and {len(chains[1])} in the second, none in both, so that "
            "their ratio only reflects where the chains started. Simulate longer, hotter (a ladder with a higher "
            "maximal temperature) or with larger torsion moves, or use the weighted samples of a generator."
        )
    rarer = min(len(c) for c in chains)
    if both < rarer / 2:
        return [f"of {rarer} chains in the less visited state only {both} were in the other, too"]
    return []


def free_energy_report(
    ensemble: Ensemble,
    cv: CollectiveVariable | str,
    *,
    states: Sequence[Interval],
    unit: Unit = "kT",
    temperature: float | None = None,
    error: Literal["linear", "bootstrap"] = "linear",
) -> dict[str, Any]:
    """What `free-energy --json` prints: delta_f, error, unit, method, n_effective, states, cv, warnings.

    `states` lists for each state its interval (rad or nm), population and number of samples.
    """
    variable = _variable(ensemble, cv, periodic=None)
    return states_report(ensemble, interval_states(variable, states), unit=unit, temperature=temperature, error=error)


def states_report(
    ensemble: Ensemble,
    states: States,
    *,
    unit: Unit = "kT",
    temperature: float | None = None,
    error: Literal["linear", "bootstrap"] = "linear",
) -> dict[str, Any]:
    """`free_energy_report` of any two states; arguments as for `state_difference`."""
    found = state_difference(ensemble, states, unit=unit, temperature=temperature, error=error)
    return {
        "delta_f": found.value,
        "error": found.error,
        "unit": found.unit,
        "method": found.method,
        "n_effective": found.n_effective,
        "states": [
            {"state": name, "population": float(ensemble.weights[r].sum()), "n": int(r.sum())}
            for name, r in zip(states.names, states.members, strict=True)
        ],
        "cv": states.variable,
        "cv_unit": states.unit,
        "warnings": list(found.warnings),
    }


@dataclass(frozen=True, eq=False)
class Profile:
    """Free energy along a collective variable.

    Args:
        name: Of the variable.
        edges: Of the bins, shape (n_bins + 1,).
        free_energy: −log density, its smallest value 0, shape (n_bins,); NaN where a bin has no weight.
        error: Standard error of −log of the bin's population, shape (n_bins,); NaN likewise.
        unit: Of the free energy.
        cv_unit: Of the variable.
        periodic: Whether the ends meet.
    """

    name: str
    edges: np.ndarray
    free_energy: np.ndarray
    error: np.ndarray
    unit: str
    cv_unit: str
    periodic: bool

    @property
    def centers(self) -> np.ndarray:
        """Middles of the bins, shape (n_bins,)."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])


def profile(
    ensemble: Ensemble,
    cv: CollectiveVariable | str | np.ndarray,
    *,
    bins: int | Sequence[float] | np.ndarray = 60,
    periodic: bool | None = None,
    unit: Unit = "kT",
    temperature: float | None = None,
) -> Profile:
    """Free-energy profile −log ρ(cv) with a standard error for every bin.

    Args:
        ensemble: Weighted samples.
        cv: A collective variable, its text, or its values (n,).
        bins: Number of bins over [−π, π) or over the range of the samples with a weight, or the edges.
        periodic: Whether the values are angles; needed only for an array.
        unit: Of the free energy.
        temperature: In K, for units other than kT; None = the ensemble's.
    """
    variable = _variable(ensemble, cv, periodic=periodic)
    factor = unit_factor(unit, temperature=ensemble.temperature if temperature is None else temperature)
    carries = ensemble.weights > 0
    if isinstance(bins, int):
        x = variable.values[carries]
        low, high = (-math.pi, math.pi) if variable.periodic else (float(x.min()), float(x.max()))
        if bins < 1 or high <= low:
            raise ValueError(f"profile: expected bins >= 1 and values that vary, got {bins} bins over [{low}, {high}].")
        edges = np.linspace(low, high, bins + 1)
    else:
        edges = np.asarray(bins, dtype=np.float64)
        if edges.ndim != 1 or edges.size < 2 or np.any(np.diff(edges) <= 0):
            raise ValueError("profile: expected increasing bin edges, at least two.")
    values = np.where(carries, variable.values, edges[0])
    index = np.searchsorted(edges, values, side="right") - 1
    # the last bin includes its upper edge
    index[values == edges[-1]] = edges.size - 2
    w = np.where(carries & (index >= 0) & (index < edges.size - 1), ensemble.weights, 0.0)
    n_bins = edges.size - 1
    population = np.bincount(index.clip(0, n_bins - 1), weights=w, minlength=n_bins)
    error = np.full(n_bins, np.nan)
    for k in np.flatnonzero(population > 0):
        terms = np.where(index == k, w / population[k], 0.0) - ensemble.weights
        error[k] = ensemble.grouping.error(terms).error
    with np.errstate(divide="ignore"):
        energy = -np.log(population / np.diff(edges))
    energy = np.where(population > 0, energy, np.nan)
    if not np.any(population > 0):
        raise LowOverlapError(f"profile: no sample with a weight lies between {edges[0]:.4g} and {edges[-1]:.4g}.")
    energy -= np.nanmin(energy)
    return Profile(variable.name, edges, factor * energy, factor * error, unit, variable.unit, variable.periodic)


def _variable(
    ensemble: Ensemble, cv: CollectiveVariable | str | np.ndarray, *, periodic: bool | None
) -> CollectiveVariable:
    if isinstance(cv, str):
        return collective_variable(ensemble, cv)
    if isinstance(cv, CollectiveVariable):
        return cv
    if periodic is None:
        raise ValueError("Say whether the values of the collective variable are angles: periodic=True or False.")
    return CollectiveVariable("cv", ensemble.values(cv), "rad" if periodic else "", periodic=periodic)
