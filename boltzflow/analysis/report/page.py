"""`report`: the numbers, figures and structures of an ensemble on one HTML page that needs nothing else."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from boltzflow.analysis.summary import chain_series, summary
from boltzflow.analysis.verdict import HEADLINES, verdict
from boltzflow.ensemble import Ensemble
from boltzflow.estimate import Estimate
from boltzflow.io.atomic import atomic_path
from boltzflow.io.provenance import Provenance
from boltzflow.statistics.chains import split_rhat
from boltzflow.statistics.weights import ArrayLike, checked_log_weights

__all__ = ["report"]

FOLDER = resources.files(__package__)


def report(
    ensemble: Ensemble,
    output: str | os.PathLike[str] = "report.html",
    *,
    reference: Ensemble | None = None,
    path_log_weights: ArrayLike | None = None,
    cvs: Sequence[str] = (),
    states: Sequence[tuple[float, float]] = (),
    title: str | None = None,
    details: Mapping[str, str] | None = None,
    training: Mapping[str, Any] | None = None,
    energy: Callable[[np.ndarray], np.ndarray] | None = None,
    bibtex: str = "",
) -> Path:
    """Write one self-contained HTML page on an ensemble: verdict, cost, maps, energies, weights, profiles, structures.

    Args:
        ensemble: Weighted samples, or frames of chains.
        output: File that is written.
        reference: Independent samples of the same target, shown side by side.
        path_log_weights: log w of the reference traced back through the generator, shape (n_reference,), for the
            forward ESS; None = unknown.
        cvs: Collective variables as for `collective_variable`; none = backbone angles, or what moves most.
        states: Intervals [lo, hi) of the first variable, disjoint, rad for angles; free energies are relative to the
            last, of a single one to the rest. None = the basins of every profile.
        title: Of the page; None = the name of the system.
        details: More rows of what was run, name to text (force field, sector, …).
        training: What the generator cost, as `Checkpoint.cost`.
        energy: Of a density in two dimensions: coordinates (n, 2) to minus its logarithm in kT (n,), for an exact map.
        bibtex: Of the methods used.

    Returns:
        The file.

    Raises:
        ValueError: If the reference is of another target, states are given without a variable, or they overlap.
        NonFiniteEnergyError: If no sample has a weight.
        UnknownNameError: If a collective variable is unknown.
    """
    # matplotlib and jinja2 are needed by nothing else that the command line imports
    from boltzflow.analysis.report.sections import (
        conformer_section,
        has_equal_weights,
        map_section,
        profile_section,
        weight_section,
    )
    from boltzflow.analysis.report.tables import cost_rows, number, run_rows
    from boltzflow.analysis.report.variables import chosen_variables, default_variables

    if states and not cvs:
        raise ValueError("report: states are intervals of the first collective variable; name it with cvs (--cv).")
    if reference is not None and (reference.target, reference.context) != (ensemble.target, ensemble.context):
        raise ValueError(
            f"report: the ensemble is of {ensemble.target!r} at {ensemble.context}, the reference of "
            f"{reference.target!r} at {reference.context}; reweight one of them."
        )
    if path_log_weights is not None and reference is None:
        raise ValueError("report: path_log_weights are those of a reference; give it as well.")
    checked_log_weights(ensemble.log_weights)
    selection = chosen_variables(cvs) if cvs else default_variables(ensemble)
    variables = {shown.name: shown.of(ensemble) for shown in _all_shown(selection)}
    theirs = {} if reference is None else {shown.name: shown.of(reference) for shown in _all_shown(selection)}

    found = summary(ensemble, reference if path_log_weights is not None else None, path_log_weights=path_log_weights)
    found["mean_energy_z"] = None if reference is None else _energy_z(ensemble, reference)
    if ensemble.chain is not None:
        found["r_hat"] = _worst_r_hat(ensemble, found["r_hat"], variables.values())
    judged = verdict(found)

    system = found["system"]
    heading = title or (system if ensemble.temperature is None else f"{system}, {ensemble.temperature:g} K")
    context = {
        "title": heading,
        "system": system,
        "made": Provenance().created.replace("T", " ").replace("+00:00", " UTC"),
        "verdict": judged,
        "headline": HEADLINES[judged.level],
        "numbers": _numbers(found),
        "warnings": _warnings(found),
        "found": found,
        "number": number,
        "run": run_rows(ensemble, details=details or {}),
        "cost": cost_rows(ensemble, reference=reference, training=training),
        "has_reference": reference is not None,
        "traced": path_log_weights is not None,
        "equal": has_equal_weights(ensemble),
        "chains": ensemble.chain is not None,
        "maps": map_section(ensemble, reference, selection, variables, theirs, energy=energy),
        "energies_and_weights": weight_section(ensemble, reference),
        "profiles": profile_section(ensemble, reference, selection, variables, theirs, states=states),
        "note": selection.note,
        "conformers": conformer_section(ensemble, selection, variables),
        "bibtex": bibtex,
    }
    page = _render(context)
    output = Path(output)
    with atomic_path(output) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")
    return output


def _all_shown(selection: Any) -> list[Any]:
    paired = [shown for _, *two in selection.pairs for shown in two]
    return list({shown.name: shown for shown in [*paired, *selection.singles]}.values())


def _energy_z(ensemble: Ensemble, reference: Ensemble) -> float | None:
    """Standard errors between the mean energies; None if one of them has none."""
    try:
        return ensemble.mean_reduced_energy().z_score(reference.mean_reduced_energy())
    except ValueError:
        return None


def _worst_r_hat(ensemble: Ensemble, of_energy: float | None, variables: Any) -> float | None:
    """The largest R-hat of the energy and of the variables, of an angle that of its cosine and sine."""
    found = [] if of_energy is None else [of_energy]
    for variable in variables:
        x = variable.values
        for series in (np.cos(x), np.sin(x)) if variable.periodic else (x,):
            chains = chain_series(ensemble, series)
            length = min(len(chain) for chain in chains)
            if length >= 4:
                found.append(split_rhat([chain[:length] for chain in chains]))
    return max(found, default=None)


def _numbers(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    names = (("log_z", "log Z", ""), ("mean_reduced_energy", "mean energy", " kT"), ("elbo", "ELBO", ""))
    for key, name, unit in (*names, ("eubo", "EUBO", "")):
        if found.get(key) is not None:
            text = str(Estimate(found[key], found[f"{key}_error"], method="", n_effective=1.0, unit=""))
            note = ""
            if key != "mean_reduced_energy" and found["normalisation"] != "absolute":
                note = f" ({found['normalisation']})"
            rows.append((name, f"{text}{unit}{note}"))
    return rows


def _warnings(found: Mapping[str, Any]) -> list[str]:
    """Reasons to distrust numbers, each once; that chains have no log Z is no warning."""
    if found["normalisation"] == "none":
        kept = [text for text in found["warnings"] if not text.startswith(("log_z", "elbo"))]
    else:
        kept = found["warnings"]
    return list(dict.fromkeys(text.partition(": ")[2] for text in kept))


def _render(context: Mapping[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    # a template may not close the element that it stands in
    environment.filters["inert"] = lambda value: json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    environment.filters["minus"] = lambda text: str(text).replace("-", "−")
    parts = {"style": "style.css", "viewer": "viewer.js"}
    if context["conformers"] is not None:
        parts["library"] = "static/3Dmol-min.js"
    texts = {name: FOLDER.joinpath(file).read_text(encoding="utf-8") for name, file in parts.items()}
    template = environment.from_string(FOLDER.joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render({**context, "library": "", **texts})
