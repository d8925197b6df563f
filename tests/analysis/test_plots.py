"""Plots draw on the axes that they are given, show the data, and never call show."""

import math

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boltzflow.analysis import plots
from boltzflow.analysis.free_energy import profile
from boltzflow.ensemble import Ensemble
from boltzflow.statistics.weights import pareto_tail


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    mpl.use("agg")
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("show was called"))
    yield
    plt.close("all")


FUNCTIONS = {
    "ramachandran": lambda e, ax: plots.ramachandran(e, ax=ax),
    "unweighted ramachandran": lambda e, ax: plots.ramachandran(e, ax=ax, weighted=False, x="psi", y="torsion:1,4,6,8"),
    "energy histogram": lambda e, ax: plots.energy_histogram(e, e, ax=ax),
    "weights": lambda e, ax: plots.weight_distribution(e, ax=ax),
    "ess": lambda e, ax: plots.ess_curve(e, ax=ax),
    "tail": lambda e, ax: plots.weight_tail(e, ax=ax),
    "map": lambda e, ax: plots.free_energy_map(e, x="rg", y="phi", ax=ax),
    "profile": lambda e, ax: plots.free_energy_profile(profile(e, "phi", bins=12), ax=ax),
}


@pytest.mark.parametrize("draw", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_plots_draw_on_the_given_axes(dipeptide, draw):
    ax = Figure().subplots()
    assert draw(dipeptide, ax) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.has_data()
    ax.figure.canvas.draw()


def test_plots_make_axes_if_none_are_given(dipeptide):
    assert isinstance(plots.energy_histogram(dipeptide), Axes)
    assert len(plots.ramachandran_row(dipeptide)) == 2
    row = plots.ramachandran_row(dipeptide, dipeptide)
    assert [ax.get_title() for ax in row] == ["generated", "reweighted", "reference"]


def test_histograms_integrate_to_one(gaussian):
    ax = plots.energy_histogram(gaussian(5000, 0), bins=200)
    for patch in ax.patches:
        values, edges, _ = patch.get_data()
        assert np.sum(values * np.diff(edges)) == pytest.approx(1.0, abs=0.03)


def test_ess_curve_ends_at_the_ess(gaussian):
    e = gaussian(3000, 0)
    (line,) = plots.ess_curve(e).lines
    assert line.get_ydata()[-1] == pytest.approx(100 * e.ess_fraction())


def test_a_length_is_no_ramachandran_axis(dipeptide):
    with pytest.raises(ValueError, match="expected an angle"):
        plots.ramachandran(dipeptide, x="rg")


def test_equal_weights_are_one_curve(dipeptide):
    ensemble = dipeptide._like(log_weights=np.zeros(200))
    labels = [text.get_text() for text in plots.energy_histogram(ensemble, dipeptide).get_legend().get_texts()]
    assert labels == ["samples", "reference"]


def test_a_weight_that_rounds_to_zero_is_drawn_as_generated(gaussian):
    ensemble = gaussian(300, 0)
    log_w = np.where(np.arange(300) == 4, 900.0, ensemble.log_weights)
    edges = (np.linspace(-6, 6, 7), np.array([0.0, 1e3]))
    ax = plots.free_energy_map(
        ensemble._like(log_weights=log_w), x="x", y="reduced_energy", weighted=False, edges=edges
    )
    (image,) = ax.images
    assert np.isfinite(image.get_array()).sum() > 3


def test_an_exact_map_is_that_of_the_probabilities_of_bins():
    edges = (np.linspace(-2, 1, 13), np.linspace(-1, 2, 7))

    def energy(x):
        return np.where(x[:, 1] < 1.5, 0.5 * (x**2).sum(1), np.inf)

    (image,) = plots.exact_map(energy, edges=edges, fine=16).images
    shown = np.ma.filled(image.get_array(), np.nan)
    p = [np.diff([0.5 * math.erf(e / math.sqrt(2)) for e in one]) for one in edges]
    expected = -np.log(p[1][:, None] * p[0][None])
    expected -= expected.min()
    assert np.allclose(shown[:-1], expected[:-1], atol=1e-3)
    assert np.isnan(shown[-1]).all()


def test_the_fitted_tail_goes_through_the_largest_weights():
    rng = np.random.default_rng(0)
    ensemble = Ensemble(
        samples={"x": np.zeros((20_000, 1))},
        log_weights=-0.4 * np.log(rng.random(20_000)),
        reduced_energies=np.zeros(20_000),
        target="pareto",
        base="pareto",
    )
    tail = pareto_tail(ensemble.log_weights)
    assert tail.k == pytest.approx(ensemble.pareto_k())
    # the survival of a Pareto distribution of shape k is w^(−1/k), here in units of the mean weight 1/(1 − k)
    w = np.geomspace(tail.threshold, tail.weights[-1], 20)
    assert np.allclose(np.log(tail.survival(w)), np.log((w / 0.6) ** (-1 / 0.4)), atol=0.35)
    assert tail.survival(np.array([tail.threshold]))[0] == pytest.approx(tail.weights.size / 20_000)
    fitted = plots.weight_tail(ensemble).get_lines()[1]
    assert np.all(np.diff(fitted.get_ydata()) < 0)
    assert pareto_tail(np.zeros(500)) is None
