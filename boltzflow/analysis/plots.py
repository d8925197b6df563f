"""Plots of ensembles: every function takes and returns matplotlib Axes and shows nothing."""

import math
from collections.abc import Callable

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from boltzflow.analysis.free_energy import Profile
from boltzflow.analysis.observables import CollectiveVariable, collective_variable
from boltzflow.ensemble import Ensemble
from boltzflow.statistics.weights import pareto_tail, weighted_quantile

__all__ = [
    "energy_histogram",
    "ess_curve",
    "exact_map",
    "free_energy_map",
    "free_energy_profile",
    "line_style",
    "map_edges",
    "ramachandran",
    "ramachandran_row",
    "weight_distribution",
    "weight_tail",
]

MAP_MAX = 12.0
"""Upper end of the colour scale of maps, kT."""

# told apart by dashes as well as by colours that do not need colour vision; None = the colour of the text
LINES = {
    "generated": {"color": "#d55e00", "linestyle": "--"},
    "reweighted": {"color": "#2b83c6", "linestyle": "-"},
    "samples": {"color": "#2b83c6", "linestyle": "-"},
    "reference": {"color": None, "linestyle": ":"},
    "weight": {"color": "#2b83c6", "linestyle": "-"},
}


def line_style(label: str) -> dict[str, str]:
    """Colour and dashes of a curve by what it shows: "generated", "reweighted", "samples", "reference", "weight"."""
    style = LINES[label]
    return {**style, "color": style["color"] or rcParams["text.color"]}


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    # pyplot chooses a backend when it is imported, which only a caller without axes needs
    import matplotlib.pyplot as plt

    return plt.subplots()[1]


def _variable(ensemble: Ensemble, cv: str | CollectiveVariable) -> CollectiveVariable:
    return collective_variable(ensemble, cv) if isinstance(cv, str) else cv


def _label(variable: CollectiveVariable) -> str:
    unit = "degrees" if variable.periodic else variable.unit
    return f"{variable.name} / {unit}" if unit else variable.name


def map_edges(cv: CollectiveVariable, *, bins: int, keep: np.ndarray | None = None) -> np.ndarray:
    """Edges of the bins of a map: the circle in degrees, else the range of the values.

    Args:
        cv: What is drawn along the axis.
        bins: Their number.
        keep: Rows that count, boolean (n,); None = all.

    Returns:
        Shape (bins + 1,).
    """
    if cv.periodic:
        return np.linspace(-180, 180, bins + 1)
    values = cv.values if keep is None else cv.values[keep]
    return _edges(float(values.min()), float(values.max()), bins)


def _edges(low: float, high: float, bins: int) -> np.ndarray:
    """Edges of bins between two numbers, apart from each other also where the numbers are equal."""
    margin = 0.0 if high > low else 0.5
    return np.linspace(low - margin, high + margin, bins + 1)


def _carries(ensemble: Ensemble) -> np.ndarray:
    """Rows with a weight, also where it is so small that its share in the sum is rounded to zero."""
    return ensemble.log_weights > -np.inf


def free_energy_map(
    ensemble: Ensemble,
    *,
    x: str | CollectiveVariable,
    y: str | CollectiveVariable,
    ax: Axes | None = None,
    weighted: bool = True,
    bins: int = 72,
    edges: tuple[np.ndarray, np.ndarray] | None = None,
    colorbar: bool = True,
) -> Axes:
    """Free energy over two collective variables in kT, angles in degrees; bins without samples are left open.

    Args:
        ensemble: Weighted samples.
        x: Along the horizontal axis.
        y: Along the vertical axis.
        ax: Where to draw; None = new axes.
        weighted: False shows the samples as the generator made them.
        bins: Per axis.
        edges: Of the bins, as `map_edges` makes them, where several maps share their axes; None = by the samples.
        colorbar: Whether to add one.
    """
    ax = _axes(ax)
    variables = _variable(ensemble, x), _variable(ensemble, y)
    keep = _carries(ensemble)
    if edges is None:
        edges = tuple(map_edges(v, bins=bins, keep=keep) for v in variables)
    values = [np.degrees(v.values[keep]) if v.periodic else v.values[keep] for v in variables]
    w = ensemble.weights[keep] if weighted else None
    density, _, _ = np.histogram2d(*values, bins=edges, weights=w, density=True)
    image = _draw_map(density, edges, ax)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="free energy / kT")
    ax.set(xlabel=_label(variables[0]), ylabel=_label(variables[1]))
    ax.set_box_aspect(1)
    if variables[0].periodic:
        ax.set_xticks(range(-180, 181, 90))
    if variables[1].periodic:
        ax.set_yticks(range(-180, 181, 90))
    return ax


def exact_map(
    energy: Callable[[np.ndarray], np.ndarray],
    *,
    edges: tuple[np.ndarray, np.ndarray],
    ax: Axes | None = None,
    fine: int = 4,
) -> Axes:
    """The map of `free_energy_map` that exact samples without end would give, of a density in two dimensions.

    Args:
        energy: Coordinates, shape (n, 2), to minus the log-density in kT, shape (n,); +inf where there is none.
        edges: Of the bins, as `map_edges` makes them.
        ax: Where to draw; None = new axes.
        fine: Points per bin and axis over which the density is averaged.
    """
    ax = _axes(ax)
    fractions = (np.arange(fine) + 0.5) / fine
    points = [(e[:-1, None] + np.diff(e)[:, None] * fractions).ravel() for e in edges]
    u = energy(np.stack(np.meshgrid(*points, indexing="ij"), -1).reshape(-1, 2))
    shape = (len(edges[0]) - 1, fine, len(edges[1]) - 1, fine)
    _draw_map(np.exp(u.min() - u).reshape(shape).mean((1, 3)), edges, ax)
    ax.set_box_aspect(1)
    return ax


def _draw_map(density: np.ndarray, edges: tuple[np.ndarray, np.ndarray], ax: Axes) -> AxesImage:
    """Minus the logarithm of a density, bins without any left open."""
    with np.errstate(divide="ignore"):
        energy = -np.log(density.T)
    return ax.imshow(
        np.where(np.isfinite(energy), energy - energy.min(), np.nan),
        origin="lower",
        extent=(edges[0][0], edges[0][-1], edges[1][0], edges[1][-1]),
        interpolation="none",
        vmin=0,
        vmax=MAP_MAX,
        aspect="auto",
    )


def ramachandran(
    ensemble: Ensemble,
    *,
    ax: Axes | None = None,
    x: str | CollectiveVariable = "phi",
    y: str | CollectiveVariable = "psi",
    weighted: bool = True,
    bins: int = 72,
) -> Axes:
    """Free energy over two torsions in kT, as a map in degrees.

    Args:
        ensemble: Weighted samples.
        ax: Where to draw; None = new axes.
        x: Angle of the horizontal axis.
        y: Angle of the vertical axis.
        weighted: False shows the samples as the generator made them.
        bins: Per axis.
    """
    angles = _variable(ensemble, x), _variable(ensemble, y)
    for variable in angles:
        if not variable.periodic:
            raise ValueError(f"ramachandran: expected an angle, got {variable.name!r}.")
    return free_energy_map(ensemble, x=angles[0], y=angles[1], ax=ax, weighted=weighted, bins=bins)


def ramachandran_row(
    ensemble: Ensemble, reference: Ensemble | None = None, *, x: str = "phi", y: str = "psi"
) -> np.ndarray:
    """Maps of the proposal, the reweighted ensemble and, if given, the reference, side by side.

    Returns:
        The Axes, an array of 2 or 3.
    """
    import matplotlib.pyplot as plt

    count = 2 if reference is None else 3
    _, axes = plt.subplots(1, count, figsize=(4.6 * count, 3.8), layout="constrained")
    ramachandran(ensemble, ax=axes[0], x=x, y=y, weighted=False).set_title("generated")
    ramachandran(ensemble, ax=axes[1], x=x, y=y).set_title("reweighted")
    if reference is not None:
        ramachandran(reference, ax=axes[2], x=x, y=y).set_title("reference")
    return axes


def energy_histogram(
    ensemble: Ensemble, reference: Ensemble | None = None, *, ax: Axes | None = None, bins: int = 80
) -> Axes:
    """Distributions of the reduced energy: generated, reweighted and reference.

    The axis spans what carries weight, with the upper 1 % of the generated energies left out, since a generator may
    give a few that are enormous.
    """
    ax = _axes(ax)
    keep = _carries(ensemble)
    u = ensemble.reduced_energies[keep]
    log_w = ensemble.log_weights[keep]
    equal = np.ptp(log_w) == 0
    parts = [("samples", u, None)] if equal else [("generated", u, None), ("reweighted", u, log_w)]
    if reference is not None:
        own = _carries(reference)
        parts.append(("reference", reference.reduced_energies[own], reference.log_weights[own]))
    low = min(float(values.min()) for _, values, _ in parts)
    high = max(float(weighted_quantile(values, 0.99, log_weights=log_w)) for _, values, log_w in parts)
    edges = _edges(low, high, bins)
    for label, values, log_w in parts:
        weights = np.full(values.size, 1 / values.size) if log_w is None else np.exp(log_w - np.logaddexp.reduce(log_w))
        height = np.histogram(values, edges, weights=weights)[0] / np.diff(edges)
        ax.stairs(height, edges, label=label, **line_style(label), linewidth=1.5)
    ax.set(xlabel="reduced energy / kT", ylabel="density")
    ax.legend()
    return ax


def weight_distribution(ensemble: Ensemble, *, ax: Axes | None = None, bins: int = 80) -> Axes:
    """Distribution of log(w/⟨w⟩) over samples and over weight, its tail marked, with ESS and k-hat in the title.

    Where the two curves lie far apart, few samples carry the weight.
    """
    ax = _axes(ax)
    keep = _carries(ensemble)
    n = len(ensemble)
    log_w = ensemble.log_weights[keep]
    relative = log_w - np.logaddexp.reduce(log_w) + math.log(n)
    # a weight that is e⁻⁴⁰ of the largest is nothing, and would press all others into one bin
    lowest = max(float(weighted_quantile(relative, 0.001)), relative.max() - 40.0)
    edges = np.linspace(lowest - 1e-9, relative.max() + 1e-9, bins + 1)
    ax.stairs(np.histogram(relative, edges)[0] / n / np.diff(edges), edges, label="samples", **line_style("generated"))
    by_weight = np.histogram(relative, edges, weights=ensemble.weights[keep])[0] / np.diff(edges)
    ax.stairs(by_weight, edges, label="weight", **line_style("weight"))
    tail = np.sort(relative)[-max(1, int(min(0.2 * n, 3 * math.sqrt(n)))) :]
    ax.axvspan(tail[0], tail[-1], alpha=0.15, label="tail of the Pareto fit")
    ax.set(xlabel="log(w/⟨w⟩)", ylabel="density")
    ax.set_title(f"ESS {100 * ensemble.ess_fraction():.1f} %, k-hat {ensemble.pareto_k():.2f}")
    # room for the legend above the curves
    ax.set_ylim(top=1.4 * ax.get_ylim()[1])
    ax.legend(loc="upper left")
    return ax


def ess_curve(ensemble: Ensemble, *, ax: Axes | None = None, points: int = 60) -> Axes:
    """Kish ESS per sample over the first n rows: a fall by steps shows weights whose variance is not finite."""
    ax = _axes(ax)
    w = ensemble.weights
    counts = np.unique(np.geomspace(min(10, w.size), w.size, points).astype(int))
    first, second = np.cumsum(w)[counts - 1], np.cumsum(w**2)[counts - 1]
    fraction = np.divide(first**2, second * counts, out=np.zeros(counts.size), where=second > 0)
    ax.semilogx(counts, 100 * fraction)
    ax.set(xlabel="samples", ylabel="ESS / samples, %", ylim=(0, 100))
    return ax


def weight_tail(ensemble: Ensemble, *, ax: Axes | None = None) -> Axes:
    """Fraction of samples above a weight w/⟨w⟩, on two logarithmic axes, with the fitted generalised Pareto tail.

    A tail that falls more slowly than the line of slope −2 has no finite variance: there k > 0.5.
    """
    ax = _axes(ax)
    w = np.sort(ensemble.weights[ensemble.weights > 0]) * len(ensemble)
    above = np.arange(w.size, 0, -1) / len(ensemble)
    # of the bulk, a few hundred points show the same curve
    rows = np.unique(
        np.concatenate([np.linspace(0, w.size - 1, 300).astype(int), np.arange(max(0, w.size - 300), w.size)])
    )
    ax.plot(
        w[rows],
        above[rows],
        label="samples",
        marker=".",
        markersize=3,
        linewidth=0,
        color=line_style("weight")["color"],
    )
    tail = pareto_tail(ensemble.log_weights)
    if tail is not None:
        grid = np.geomspace(tail.weights[0], 4 * tail.weights[-1], 100)
        fitted = tail.survival(grid)
        shown = fitted > 0.1 / len(ensemble)
        style = line_style("generated")
        ax.plot(grid[shown], fitted[shown], label=f"Pareto fit, k-hat {tail.k:.2f}", linewidth=1.8, **style)
        ax.axvline(tail.threshold, linewidth=0.8, linestyle=":", color=rcParams["text.color"])
    ax.set(xscale="log", yscale="log", xlabel="w/⟨w⟩", ylabel="fraction of samples above")
    ax.set_xlim(left=0.7 * w[w.size // 50], right=4 * w[-1])
    ax.legend(loc="lower left")
    return ax


def free_energy_profile(
    profile: Profile,
    *,
    ax: Axes | None = None,
    label: str | None = None,
    level: float = 1.96,
    color: str | None = None,
    linestyle: str = "-",
) -> Axes:
    """A profile with its error band of ± `level` standard errors; angles in degrees."""
    ax = _axes(ax)
    angle = profile.cv_unit == "rad"
    x = np.degrees(profile.centers) if angle else profile.centers
    (line,) = ax.plot(x, profile.free_energy, label=label or profile.name, color=color, linestyle=linestyle)
    band = level * profile.error
    ax.fill_between(x, profile.free_energy - band, profile.free_energy + band, alpha=0.25, color=line.get_color())
    unit = "degrees" if angle else profile.cv_unit
    ax.set(xlabel=f"{profile.name} / {unit}" if unit else profile.name, ylabel=f"free energy / {profile.unit}")
    ax.legend()
    return ax
