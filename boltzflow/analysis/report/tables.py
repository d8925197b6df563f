"""The tables of a report: what was run, what it cost, and the free energies of states."""

import math
from collections.abc import Mapping
from typing import Any

from boltzflow.analysis.observables import CollectiveVariable
from boltzflow.analysis.report.basins import StateRow
from boltzflow.ensemble import Ensemble
from boltzflow.estimate import Estimate

__all__ = ["cost_rows", "duration", "number", "run_rows", "state_cells"]

NORMALISATIONS = {
    "absolute": "absolute: the base is normalised, so that log Z is that of the target",
    "none": "none: samples of chains carry no normalisation, so that there is no log Z",
}


def number(value: float | int) -> str:
    """A count with thin spaces between thousands; above ten millions in powers of ten."""
    if abs(value) >= 1e7:
        exponent = math.floor(math.log10(abs(value)))
        superscript = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{value / 10**exponent:.2f} · 10{superscript}"
    return f"{value:,}".replace(",", "\u202f")


def duration(seconds: float | int) -> str:
    """Seconds in the unit that reads best."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def run_rows(ensemble: Ensemble, *, details: Mapping[str, str]) -> list[tuple[str, str]]:
    """What was run: name and text of every row.

    Args:
        ensemble: Whose provenance is shown.
        details: More rows, for what the ensemble does not know of its system.
    """
    provenance = ensemble.provenance
    extra = provenance.extra
    seed = provenance.seed if not isinstance(provenance.seed, list) else ", ".join(map(str, provenance.seed))
    temperature = ensemble.temperature
    rows: list[tuple[str, Any]] = [
        ("system", extra.get("system", ensemble.target)),
        *details.items(),
        ("temperature", None if temperature is None else f"{temperature:g} K"),
        ("target", ensemble.target if ensemble.target != extra.get("system", ensemble.target) else None),
        ("base", ensemble.base),
        ("normalisation", NORMALISATIONS.get(ensemble.normalisation, ensemble.normalisation)),
        ("context", ", ".join(f"{k} = {v}" for k, v in (ensemble.context or {}).items())),
        ("samples", number(len(ensemble))),
        ("command", provenance.command),
        ("made", provenance.created.replace("T", " ").replace("+00:00", " UTC")),
        ("seed", seed),
        ("device", " ".join(part for part in (provenance.device, provenance.dtype) if part)),
        ("versions", ", ".join(f"{name} {version}" for name, version in provenance.versions.items())),
        ("checkpoint", extra.get("checkpoint")),
        ("SHA-256 of the checkpoint", extra.get("checkpoint_sha256")),
        ("reweighted from", extra.get("reweighted_from")),
        ("resampled from", f"{number(extra['resampled_from'])} rows" if "resampled_from" in extra else None),
        *_simulation_rows(extra),
    ]
    return [(name, str(text)) for name, text in rows if text not in (None, "")]


def _simulation_rows(extra: Mapping[str, Any]) -> list[tuple[str, Any]]:
    simulation = extra.get("simulation") or {}
    temperatures, rates = simulation.get("temperatures"), simulation.get("swap_rates")
    methods = {"pt": "parallel tempering", "md": "molecular dynamics"}
    return [
        ("method", methods.get(extra.get("method"), extra.get("method"))),
        ("temperatures", f"{', '.join(f'{t:.0f}' for t in temperatures)} K" if temperatures else None),
        ("sweeps", number(simulation["n_sweeps"]) if "n_sweeps" in simulation else None),
        ("swap rates", ", ".join(f"{rate:.2f}" for rate in rates) if rates else None),
        ("frames relabelled into the sector", number(extra["n_relabelled"]) if extra.get("n_relabelled") else None),
    ]


def cost_rows(
    ensemble: Ensemble, *, reference: Ensemble | None, training: Mapping[str, Any] | None
) -> list[tuple[str, str, str, str]]:
    """What it cost: for the run, the training behind it and the reference, energies, forces and time.

    Args:
        ensemble: Whose provenance is shown.
        reference: Reference ensemble.
        training: `Checkpoint.cost` of the generator: `ledger` and `seconds`.
    """
    rows = []
    if training:
        ledger = training.get("ledger", {})
        counts = [sum(ledger.get(kind, {}).values()) for kind in ("energy", "force")]
        name = "training of the generator, with the data it learnt from"
        seconds = duration(training["seconds"]) if "seconds" in training else "–"
        rows.append((name, *(number(count) for count in counts), seconds))
    for name, part in (("these samples", ensemble), ("the reference", reference)):
        if part is not None:
            p = part.provenance
            rows.append((name, number(p.n_energy), number(p.n_force), duration(p.seconds) if p.seconds else "–"))
    return rows


def state_cells(rows: list[StateRow], variable: CollectiveVariable) -> list[dict[str, str]]:
    """Texts of the rows of a table of states.

    Args:
        rows: As `state_rows` finds them.
        variable: Which they are intervals of.
    """
    return [
        {
            "state": _interval(row.interval, variable),
            "population": f"{row.population:.3g}",
            "n": number(row.n),
            "delta_f": "0 (compared with)" if _is_zero(row) else _estimate(row.delta_f),
            "n_effective": "" if row.delta_f is None else _few_digits(row.delta_f.n_effective),
            "reference": "" if row.reference is None else _estimate(row.reference),
            "z": _z(row),
            "note": row.reason or "; ".join(row.delta_f.warnings if row.delta_f else ()),
        }
        for row in rows
    ]


def _is_zero(row: StateRow) -> bool:
    return row.delta_f is None and not row.reason


def _few_digits(value: float) -> str:
    return number(round(value)) if value >= 10 else f"{value:.1f}"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "unknown"
    return str(Estimate(estimate.value, estimate.error, method="", n_effective=1.0, unit=""))


def _z(row: StateRow) -> str:
    return "" if row.delta_f is None or row.reference is None else f"{row.delta_f.z_score(row.reference):+.1f}"


def _interval(interval: tuple[float, float] | None, variable: CollectiveVariable) -> str:
    if interval is None:
        return "the rest"
    low, high = (math.degrees(end) if variable.periodic else end for end in interval)
    if variable.periodic:
        low, high = ((end + 180) % 360 - 180 if abs(end) > 180.0001 else end for end in (low, high))
        across = "\n(through 180°)" if low > high else ""
        return f"{low:.0f}° to {high:.0f}°{across}"
    unit = f" {variable.unit}" if variable.unit else ""
    if math.isinf(low):
        return f"below {high:.4g}{unit}"
    return f"above {low:.4g}{unit}" if math.isinf(high) else f"{low:.4g} to {high:.4g}{unit}"
