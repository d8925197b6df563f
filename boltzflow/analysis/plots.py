"""Plots of ensembles: every function takes and returns matplotlib Axes and shows nothing."""

import math

import numpy as np
from matplotlib.axes import Axes

from boltzflow.analysis.free_energy import Profile
from boltzflow.analysis.observables import CollectiveVariable, collective_variable
from boltzflow.ensemble import Ensemble
from boltzflow.statistics.weights import weighted_quantile

__all__ = [
    "energy_histogram",
    "ess_curve",
    "free_energy_profile",
    "ramachandran",
    "ramachandran_row",
    "weight_distribution",
]

# free energies of empty bins are left white
RAMACHANDRAN_MAX = 12.0


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    # pyplot chooses a backend when it is imported, which only a caller without axes needs
    import matplotlib.pyplot as plt

    return plt.subplots()[1]


def _angle(ensemble: Ensemble, cv: str | CollectiveVariable) -> CollectiveVariable:
    variable = collective_variable(ensemble, cv) if isinstance(cv, str) else cv
    if not variable.periodic:
        raise ValueError(f"ramachandran: expected an angle, got {variable.name!r}.")
    return variable


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
    ax = _axes(ax)
    a, b = _angle(ensemble, x), _angle(ensemble, y)
    keep = ensemble.weights > 0
    w = ensemble.weights[keep] if weighted else None
    edges = np.linspace(-180, 180, bins + 1)
    density, _, _ = np.histogram2d(
        np.degrees(a.values[keep]), np.degrees(b.values[keep]), bins=(edges, edges), weights=w, density=True
    )
    with np.errstate(divide="ignore"):
        energy = -np.log(density.T)
    energy -= energy.min()
    mesh = ax.pcolormesh(edges, edges, np.where(np.isfinite(energy), energy, np.nan), vmin=0, vmax=RAMACHANDRAN_MAX)
    ax.figure.colorbar(mesh, ax=ax, label="free energy / kT")
    ax.set(xlabel=f"{a.name} / degrees", ylabel=f"{b.name} / degrees", aspect="equal")
    ax.set_xticks(range(-180, 181, 90))
    ax.set_yticks(range(-180, 181, 90))
    return ax


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
    keep = ensemble.weights > 0
    u = ensemble.reduced_energies[keep]
    parts = [("generated", u, None), ("reweighted", u, ensemble.log_weights[keep])]
    if reference is not None:
        own = reference.weights > 0
        parts.append(("reference", reference.reduced_energies[own], reference.log_weights[own]))
    low = min(float(values.min()) for _, values, _ in parts)
    high = max(float(weighted_quantile(values, 0.99, log_weights=log_w)) for _, values, log_w in parts)
    edges = np.linspace(low, high, bins + 1)
    for label, values, log_w in parts:
        weights = np.full(values.size, 1 / values.size) if log_w is None else np.exp(log_w - np.logaddexp.reduce(log_w))
        ax.stairs(np.histogram(values, edges, weights=weights)[0] / np.diff(edges), edges, label=label)
    ax.set(xlabel="reduced energy / kT", ylabel="density")
    ax.legend()
    return ax


def weight_distribution(ensemble: Ensemble, *, ax: Axes | None = None, bins: int = 80) -> Axes:
    """Distribution of log(w/⟨w⟩) over samples and over weight, its tail marked, with ESS and k-hat in the title.

    Where the two curves lie far apart, few samples carry the weight.
    """
    ax = _axes(ax)
    keep = ensemble.weights > 0
    n = len(ensemble)
    relative = np.log(ensemble.weights[keep] * n)
    edges = np.linspace(float(weighted_quantile(relative, 0.001)) - 1e-9, relative.max() + 1e-9, bins + 1)
    ax.stairs(np.histogram(relative, edges)[0] / n / np.diff(edges), edges, label="samples")
    ax.stairs(np.histogram(relative, edges, weights=ensemble.weights[keep])[0] / np.diff(edges), edges, label="weight")
    tail = np.sort(relative)[-max(1, int(min(0.2 * n, 3 * math.sqrt(n)))) :]
    ax.axvspan(tail[0], tail[-1], alpha=0.15, label="tail of the Pareto fit")
    ax.set(xlabel="log(w/⟨w⟩)", ylabel="density")
    ax.set_title(f"ESS {100 * ensemble.ess_fraction():.1f} %, k-hat {ensemble.pareto_k():.2f}")
    ax.legend()
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


def free_energy_profile(
    profile: Profile, *, ax: Axes | None = None, label: str | None = None, level: float = 1.96
) -> Axes:
    """A profile with its error band of ± `level` standard errors; angles in degrees."""
    ax = _axes(ax)
    angle = profile.cv_unit == "rad"
    x = np.degrees(profile.centers) if angle else profile.centers
    (line,) = ax.plot(x, profile.free_energy, label=label or profile.name)
    band = level * profile.error
    ax.fill_between(x, profile.free_energy - band, profile.free_energy + band, alpha=0.25, color=line.get_color())
    unit = "degrees" if angle else profile.cv_unit
    ax.set(xlabel=f"{profile.name} / {unit}" if unit else profile.name, ylabel=f"free energy / {profile.unit}")
    ax.legend()
    return ax
