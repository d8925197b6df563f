"""Free energies along a collective variable: differences between states, profiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.constants import R as GAS_CONSTANT
from scipy.constants import calorie

from boltzflow.analysis.observables import CollectiveVariable, collective_variable
from boltzflow.ensemble import Ensemble
from boltzflow.errors import LowOverlapError, UnitError
from boltzflow.estimate import Estimate
from boltzflow.statistics.means import bootstrap_error, weight_warnings

__all__ = ["Profile", "delta_f", "free_energy_report", "parse_state", "profile", "unit_factor"]

Interval = tuple[float, float]
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


def parse_state(text: str, *, degrees: bool) -> Interval:
    """An interval "lo:hi" from the command line; a missing end is infinite.

    Args:
        text: E.g. "0:130", ":0.5" or "170:-170" (across the cut of a circle).
        degrees: Whether the numbers are degrees, to be turned into rad.
    """
    low, colon, high = text.partition(":")
    try:
        ends = float(low) if low.strip() else -math.inf, float(high) if high.strip() else math.inf
    except ValueError:
        colon = ""
    if not colon:
        raise ValueError(f"state {text!r}: expected 'lo:hi' with numbers, e.g. '0:130'.")
    return (math.radians(ends[0]), math.radians(ends[1])) if degrees else ends


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
        LowOverlapError: If a state has no weight.
        ValueError: If the intervals overlap, are empty, or leave one end of a circle open.
    """
    variable = _variable(ensemble, cv, periodic=periodic)
    first, second = _members(variable, states)
    w = ensemble.weights
    factor = unit_factor(unit, temperature=ensemble.temperature if temperature is None else temperature)
    names = _names(states)
    p = [float(w[rows].sum()) for rows in (first, second)]
    for name, rows, weight in zip(names, (first, second), p, strict=True):
        if weight == 0:
            raise LowOverlapError(
                f"delta_f: state {name} of {variable.name} ({variable.unit or 'no unit'}) holds {int(rows.sum())} of "
                f"{len(ensemble)} "
                "samples and no weight, so its free energy is unknown: check the interval and its unit, draw more "
                "samples, or train a "
                "generator that visits it."
            )
    terms = w * (second / p[1] - first / p[0])
    found = ensemble.grouping.error(terms)
    std, method = found.error, f"linear {found.method}"
    if error == "bootstrap":
        blocks = ensemble.grouping.blocks(terms)
        std = bootstrap_error(lambda s: np.log(s[1] / s[0]), [blocks.totals(w * first), blocks.totals(w * second)])
        method = f"bootstrap over {len(blocks)} groups"
    warnings = list(weight_warnings(ensemble.log_weights))
    for name, rows, weight in zip(names, (first, second), p, strict=True):
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
    found = delta_f(ensemble, variable, states=states, unit=unit, temperature=temperature, error=error)
    rows = _members(variable, states)
    return {
        "delta_f": found.value,
        "error": found.error,
        "unit": found.unit,
        "method": found.method,
        "n_effective": found.n_effective,
        "states": [
            {"state": name, "population": float(ensemble.weights[r].sum()), "n": int(r.sum())}
            for name, r in zip(_names(states), rows, strict=True)
        ],
        "cv": variable.name,
        "cv_unit": variable.unit,
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


def _members(variable: CollectiveVariable, states: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the first state, and of the second or of the rest."""
    if not 1 <= len(states) <= 2:
        raise ValueError(f"delta_f: expected one state (against the rest) or two, got {len(states)}.")
    rows = [_inside(variable, low, high) for low, high in states]
    if len(rows) == 1:
        return rows[0], ~rows[0] & np.isfinite(variable.values)
    if np.any(rows[0] & rows[1]):
        raise ValueError(f"delta_f: the states {' and '.join(_names(states))} overlap; give disjoint intervals.")
    return rows[0], rows[1]


def _inside(variable: CollectiveVariable, low: float, high: float) -> np.ndarray:
    if not variable.periodic:
        if not low < high:
            raise ValueError(f"state {low:.4g}:{high:.4g} of {variable.name}: expected lo < hi.")
        return (variable.values >= low) & (variable.values < high)
    width = high - low
    if not math.isfinite(width):
        raise ValueError(f"state of the angle {variable.name}: a circle needs two cuts, give both ends.")
    if width == 0 or abs(width) >= 2 * math.pi:
        raise ValueError(
            f"state {low:.4g}:{high:.4g} of the angle {variable.name}: expected two different cuts less than 2π "
            "apart (rad)."
        )
    return (variable.values - low) % (2 * math.pi) < width % (2 * math.pi)


def _names(states: Sequence[Interval]) -> list[str]:
    names = [f"{low:.6g}:{high:.6g}" for low, high in states]
    return names if len(names) == 2 else [*names, "rest"]
