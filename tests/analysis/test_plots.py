"""Plots draw on the axes that they are given, show the data, and never call show."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boltzflow.analysis import plots
from boltzflow.analysis.free_energy import profile


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
