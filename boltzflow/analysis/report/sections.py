"""The sections of a report that hold figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boltzflow.analysis import plots
from boltzflow.analysis.free_energy import profile
from boltzflow.analysis.observables import CollectiveVariable
from boltzflow.analysis.report.basins import find_basins, state_rows
from boltzflow.analysis.report.conformers import draw_conformers, pick_conformers
from boltzflow.analysis.report.pictures import Picture, as_png, as_svg, colour_bar
from boltzflow.analysis.report.tables import state_cells
from boltzflow.analysis.report.variables import Selection
from boltzflow.ensemble import Ensemble

__all__ = ["conformer_section", "has_equal_weights", "map_section", "profile_section", "weight_section"]

UNRESOLVED = 0.7
"""Standard error in kT, of two visits or so, from which on the height of a bin is unknown."""

Variables = Mapping[str, CollectiveVariable]


@dataclass(frozen=True)
class MapRow:
    """Maps of one pair of variables side by side."""

    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class ProfileBlock:
    """A profile and the states along it."""

    title: str
    spec: str
    picture: Picture
    rows: list[dict[str, str]]
    found: bool
    remark: str


def has_equal_weights(ensemble: Ensemble) -> bool:
    """Whether all rows with a weight have the same."""
    return bool(np.ptp(ensemble.log_weights[ensemble.log_weights > -np.inf]) == 0)


def map_section(
    ensemble: Ensemble,
    reference: Ensemble | None,
    selection: Selection,
    variables: Variables,
    theirs: Variables,
    *,
    energy: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Maps as generated, reweighted and of the reference, for every pair of variables.

    Args:
        ensemble: Weighted samples.
        reference: Reference ensemble, or None.
        selection: What is shown.
        variables: By title, measured on the ensemble.
        theirs: The same on the reference.
        energy: Of the only two coordinates that there are, for a map of the exact density where they are shown.
    """
    bins = int(np.clip(2 * round(np.sqrt(len(ensemble)) / 2), 12, 72))
    panels: list[tuple[str, Ensemble, Variables, bool]]
    if has_equal_weights(ensemble):
        panels = [("samples", ensemble, variables, False)]
    else:
        panels = [("as generated", ensemble, variables, False), ("reweighted", ensemble, variables, True)]
    if reference is not None:
        panels.append(("reference", reference, theirs, True))
    rows = []
    for number, (title, a, b) in enumerate(selection.pairs):
        edges = []
        for shown in (a, b):
            values = [v[shown.name].values[e.log_weights > -np.inf] for _, e, v, _ in panels]
            edges.append(plots.map_edges(_with_values(variables[shown.name], np.concatenate(values)), bins=bins))
        pictures = []
        for label, source, measured, weighted in panels:

            def draw(ax: Any, source=source, measured=measured, weighted=weighted, edges=edges, a=a, b=b) -> None:
                x, y = measured[a.name], measured[b.name]
                plots.free_energy_map(source, x=x, y=y, ax=ax, weighted=weighted, edges=tuple(edges), colorbar=False)

            alt = f"Map of the free energy over {a.name} and {b.name}, {label}"
            name = f"map-{number}-{label}"
            pictures.append(as_svg(draw, alt=alt, caption=label, size=(3.1, 2.9), name=name))
        if energy is not None and (a.spec[-2:], b.spec[-2:]) == (":0", ":1"):

            def draw_exact(ax: Any, edges=edges, a=a, b=b) -> None:
                plots.exact_map(energy, edges=tuple(edges), ax=ax).set(xlabel=a.name, ylabel=b.name)

            alt = f"Map of the exact free energy over {a.name} and {b.name}"
            pictures.append(
                as_svg(draw_exact, alt=alt, caption="exact density", size=(3.1, 2.9), name=f"map-{number}-exact")
            )
        rows.append(MapRow(title, tuple(pictures)))
    return {"rows": rows, "bar": colour_bar("free energy / kT", name="colours")}


def _with_values(variable: CollectiveVariable, values: np.ndarray) -> CollectiveVariable:
    return CollectiveVariable(variable.name, values, variable.unit, periodic=variable.periodic)


def weight_section(ensemble: Ensemble, reference: Ensemble | None) -> dict[str, list[Picture]]:
    """Histograms of the energy, and of unequal weights their distribution, tail and effective number.

    Args:
        ensemble: Weighted samples.
        reference: Reference ensemble, or None.
    """
    energies = as_svg(
        lambda ax: plots.energy_histogram(ensemble, reference, ax=ax, bins=_bins(len(ensemble))),
        alt="Histograms of the reduced energy of the samples, with their weights, and of the reference if there is one",
        caption="The axis leaves out the upper 1 % of the generated energies.",
        size=(6.4, 3.2),
        name="energies",
    )
    if has_equal_weights(ensemble):
        return {"energies": [energies], "weights": []}
    weights = [
        as_svg(
            lambda ax: plots.weight_distribution(ensemble, ax=ax, bins=_bins(len(ensemble))).set_title(""),
            alt="Histogram of the logarithm of the weights over samples and over weight",
            caption="Where the two curves lie far apart, few samples carry the weight.",
            name="weights",
            size=(3.5, 2.9),
        ),
        as_svg(
            lambda ax: plots.weight_tail(ensemble, ax=ax),
            alt="Fraction of samples above a weight, with the fitted tail, on logarithmic axes",
            caption="Tail of the weights with the fitted generalised Pareto distribution; the dotted line is where it "
            "begins.",
            name="tail",
            size=(3.5, 2.9),
        ),
        as_svg(
            lambda ax: plots.ess_curve(ensemble, ax=ax),
            alt="Effective sample size per sample over the number of samples",
            caption="Effective share of the first n samples. A fall by steps shows single samples that take over.",
            name="ess",
            size=(3.5, 2.9),
        ),
    ]
    return {"energies": [energies], "weights": weights}


def _bins(n: int) -> int:
    return int(np.clip(round(1.5 * n ** (1 / 2.2)), 12, 80))


def profile_section(
    ensemble: Ensemble,
    reference: Ensemble | None,
    selection: Selection,
    variables: Variables,
    theirs: Variables,
    *,
    states: Sequence[tuple[float, float]],
) -> list[ProfileBlock]:
    """Profiles with error bands, and free energies of states along them.

    Args:
        ensemble: Weighted samples.
        reference: Reference ensemble, or None.
        selection: What is shown.
        variables: By title, measured on the ensemble.
        theirs: The same on the reference.
        states: Of the first variable; none = the basins of every profile.
    """
    blocks = []
    bins = _bins(len(ensemble))
    for number, shown in enumerate(selection.singles):
        variable = variables[shown.name]
        other = None if reference is None else (reference, theirs[shown.name])
        carried = variable.values[ensemble.weights > 0]
        if np.ptp(carried) == 0:
            value = f"{math.degrees(carried[0]):.0f}°" if variable.periodic else f"{carried[0]:.5g}"
            remark = f"Every sample that carries weight has the value {value}, so that there is no profile."
            blocks.append(ProfileBlock(shown.name, shown.spec, Picture(""), [], found=False, remark=remark))
            continue
        try:
            own = profile(ensemble, variable, bins=min(bins, 60))
        except ValueError as error:
            blocks.append(ProfileBlock(shown.name, shown.spec, Picture(""), [], found=False, remark=str(error)))
            continue
        curves = [("samples" if has_equal_weights(ensemble) else "reweighted", own)]
        if other is not None:
            edges = np.radians(np.linspace(-180, 180, own.edges.size)) if variable.periodic else own.edges
            inside = (other[1].values >= edges[0]) & (other[1].values < edges[-1]) & (reference.weights > 0)
            if inside.any():
                curves.append(("reference", profile(*other, bins=edges)))

        def draw(ax: Any, curves=curves) -> None:
            for label, curve in curves:
                plots.free_energy_profile(curve, ax=ax, label=label, **plots.line_style(label))
            # single samples of tiny weight may be very high, and would press everything else to the floor
            known = [curve.free_energy[curve.error < UNRESOLVED] for _, curve in curves]
            ax.set_ylim(-0.3, 1.1 * max((float(f.max()) for f in known if f.size), default=10.0) + 1.0)

        picture = as_svg(
            draw,
            alt=f"Free-energy profile along {shown.name} with its error band",
            caption=f"Free energy along {shown.name}; bands are 95 %.",
            size=(4.4, 3.0),
            name=f"profile-{number}",
        )
        given = list(states) if number == 0 else []
        rows, remark = [], ""
        if given:
            rows = state_rows(ensemble, variable, given, reference=other)
        elif not states:
            basins = find_basins(own)
            if basins:
                rows = state_rows(ensemble, variable, basins, reference=other, relative_to=None)
            else:
                remark = "One basin only: no barrier of 1 kT or more that is told from noise."
        cells = state_cells(rows, variable)
        blocks.append(ProfileBlock(shown.name, shown.spec, picture, cells, found=not given, remark=remark))
    return blocks


def conformer_section(ensemble: Ensemble, selection: Selection, variables: Variables) -> dict[str, Any] | None:
    """Structures drawn by weight with a line on each, and their still picture; None without a molecule.

    Args:
        ensemble: Weighted samples.
        selection: What is shown.
        variables: By title, measured on the ensemble.
    """
    chosen = pick_conformers(ensemble)
    if chosen is None:
        return None
    labels = []
    for row, count in zip(chosen.rows, chosen.counts, strict=True):
        parts = [f"sample {row}", f"u = {ensemble.reduced_energies[row]:.1f} kT"]
        for shown in selection.singles[:4]:
            variable = variables[shown.name]
            value = variable.values[row]
            parts.append(
                f"{shown.name} {math.degrees(value):.0f}°"
                if variable.periodic
                else f"{shown.name} {value:.3g} {variable.unit}".rstrip()
            )
        labels.append(", ".join(parts) + (f" (drawn {count} times)" if count > 1 else ""))
    still = as_png(
        lambda ax: draw_conformers(chosen, ax=ax),
        alt=f"{len(chosen.rows)} structures drawn by weight, superposed, seen from one side",
        size=(6.0, 4.2),
        dpi=130,
    )
    return {
        "data": chosen.as_dict(labels),
        "still": still,
        "n": len(chosen.rows),
        "draws": int(chosen.counts.sum()),
        "superposed_on": chosen.superposed_on,
        "labels": labels,
    }
