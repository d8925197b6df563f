"""Free-energy differences and profiles of a Gaussian with known populations: values, coverage, states, units."""

import json

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import norm

from boltzflow.analysis.free_energy import delta_f, free_energy_report, profile
from boltzflow.analysis.observables import CollectiveVariable
from boltzflow.analysis.states import parse_state
from boltzflow.ensemble import Ensemble
from boltzflow.errors import LowOverlapError, UnitError

ABOVE_ONE = -np.log(norm.sf(1.0) / norm.cdf(1.0))


def test_one_state_is_against_the_rest_and_two_are_against_each_other(gaussian):
    e = gaussian(50_000, 0)
    rest = delta_f(e, "x", states=[(1.0, np.inf)])
    assert abs(rest.z_score(ABOVE_ONE)) < 4
    both = delta_f(e, "x", states=[(1.0, np.inf), (-np.inf, 1.0)])
    assert both.value == pytest.approx(rest.value)
    swapped = delta_f(e, "x", states=[(-np.inf, 1.0), (1.0, np.inf)])
    assert swapped.value == pytest.approx(-rest.value)
    assert swapped.error == pytest.approx(rest.error)
    inner = delta_f(e, "x", states=[(0.5, 1.5), (-3.0, -1.0)])
    exact = -np.log((norm.cdf(1.5) - norm.cdf(0.5)) / (norm.cdf(-1) - norm.cdf(-3)))
    assert abs(inner.z_score(exact)) < 4


@pytest.mark.parametrize("error", ["linear", "bootstrap"])
def test_interval_covers_the_exact_difference(gaussian, error):
    repeats = 400 if error == "linear" else 150
    found = [delta_f(gaussian(400, s), "x", states=[(1.0, np.inf)], error=error) for s in range(repeats)]
    intervals = np.array([e.interval() for e in found])
    coverage = np.mean((intervals[:, 0] < ABOVE_ONE) & (intervals[:, 1] > ABOVE_ONE))
    assert abs(coverage - 0.95) < 3.5 * np.sqrt(0.95 * 0.05 / repeats)


def test_copies_do_not_make_it_certain(gaussian):
    e = gaussian(300, 1)
    copies = Ensemble(
        samples={"x": np.repeat(e.samples["x"], 10, axis=0)},
        log_weights=np.repeat(e.log_weights, 10),
        reduced_energies=np.repeat(e.reduced_energies, 10),
        target="harmonic",
        groups=np.repeat(np.arange(300), 10),
    )
    kwargs = {"states": [(1.0, np.inf)], "error": "linear"}
    assert delta_f(copies, "x", **kwargs).error == pytest.approx(delta_f(e, "x", **kwargs).error)
    kwargs["error"] = "bootstrap"
    assert delta_f(copies, "x", **kwargs).error == pytest.approx(delta_f(e, "x", **kwargs).error)


def test_chains_count_visits_not_frames():
    """Frames of an AR(1) chain: coverage holds with their chain ids and fails without."""
    repeats, n, a = 300, 3000, 0.95
    rng = np.random.default_rng(3)
    x = lfilter([1.0], [1.0, -a], rng.normal(size=(repeats, n + 200)) * np.sqrt(1 - a**2), axis=1)[:, 200:]

    def covered(chain):
        hits = 0
        for row in x:
            e = Ensemble(
                samples={"x": row}, log_weights=np.zeros(n), reduced_energies=row**2 / 2, target="md", chain=chain
            )
            low, high = delta_f(e, "x", states=[(1.0, np.inf)]).interval()
            hits += low < ABOVE_ONE < high
        return hits / repeats

    assert covered(np.zeros(n, dtype=int)) > 0.9
    assert covered(None) < 0.6


def circle(n=20_000):
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, size=n)
    e = Ensemble(samples={"a": angles}, log_weights=np.zeros(n), reduced_energies=np.zeros(n), target="uniform")
    return e, CollectiveVariable("a", angles, "rad", periodic=True)


@pytest.mark.parametrize(
    ("state", "fraction"),
    [("0:90", 1 / 4), ("170:-170", 1 / 18), ("-170:170", 17 / 18), ("90:270", 1 / 2), ("350:10", 1 / 18)],
)
def test_states_on_a_circle_may_cross_the_cut(state, fraction):
    e, cv = circle()
    found = delta_f(e, cv, states=[parse_state(state, degrees=True)])
    assert abs(found.z_score(-np.log(fraction / (1 - fraction)))) < 4


@pytest.mark.parametrize("state", ["0:", ":90", "0:360", "0:0", "-200:300"])
def test_a_circle_needs_two_cuts(state):
    e, cv = circle(100)
    with pytest.raises(ValueError, match="two"):
        delta_f(e, cv, states=[parse_state(state, degrees=True)])


@pytest.mark.parametrize("text", ["90", "a:b", "", "1:2:3"])
def test_states_that_are_no_intervals_are_named(text):
    with pytest.raises(ValueError, match="expected 'lo:hi'"):
        parse_state(text, degrees=False)


def test_states_are_checked(gaussian):
    e = gaussian(200, 0)
    with pytest.raises(LowOverlapError, match="holds 0 of 200 samples and no weight"):
        delta_f(e, "x", states=[(50.0, 60.0)])
    with pytest.raises(LowOverlapError, match="state rest"):
        delta_f(e, "x", states=[(-100.0, 100.0)])
    with pytest.raises(ValueError, match="overlap"):
        delta_f(e, "x", states=[(0.0, 1.0), (0.5, 2.0)])
    with pytest.raises(ValueError, match="lo < hi"):
        delta_f(e, "x", states=[(1.0, 0.0)])
    for states in ([], [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]):
        with pytest.raises(ValueError, match="one state"):
            delta_f(e, "x", states=states)
    with pytest.raises(ValueError, match="periodic=True or False"):
        delta_f(e, e.samples["x"][:, 0], states=[(0.0, 1.0)])


def test_few_visits_are_said(gaussian):
    found = delta_f(gaussian(2000, 2), "x", states=[(3.6, np.inf)])
    assert any("effective samples" in w for w in found.warnings)


def test_units_need_a_temperature(gaussian):
    e = gaussian(2000, 0)
    states = [(1.0, np.inf)]
    kt = delta_f(e, "x", states=states)
    kj = delta_f(e, "x", states=states, unit="kJ/mol", temperature=300.0)
    assert kj.value / kt.value == pytest.approx(2.494338785445972)
    kcal = delta_f(gaussian(2000, 0, context={"temperature": 300.0}), "x", states=states, unit="kcal/mol")
    assert kcal.error / kt.error == pytest.approx(2.494338785445972 / 4.184)
    assert kcal.unit == "kcal/mol"
    with pytest.raises(UnitError, match="needs a temperature"):
        delta_f(e, "x", states=states, unit="kJ/mol")


def test_report_has_the_stable_keys(gaussian):
    report = json.loads(json.dumps(free_energy_report(gaussian(2000, 0), "x", states=[(1.0, np.inf)])))
    assert {"delta_f", "error", "unit", "method", "n_effective", "states"} <= set(report)
    assert [s["state"] for s in report["states"]] == ["1:inf", "rest"]
    assert sum(s["n"] for s in report["states"]) == 2000
    assert sum(s["population"] for s in report["states"]) == pytest.approx(1.0)


def test_profile_of_a_gaussian_is_a_parabola(gaussian):
    found = profile(gaussian(100_000, 0), "x", bins=np.linspace(-2.5, 2.5, 26))
    mass = np.diff(norm.cdf(found.edges))
    exact = -np.log(mass / np.diff(found.edges))
    z = (found.free_energy - found.free_energy[12] - exact + exact[12]) / np.hypot(found.error, found.error[12])
    assert np.abs(z).max() < 4
    assert found.free_energy.min() == 0
    assert found.centers[0] == pytest.approx(-2.4)


def test_profile_error_is_that_of_repeated_runs(gaussian):
    runs = [profile(gaussian(500, s), "x", bins=np.linspace(-2.0, 2.0, 9)) for s in range(200)]
    # shift each to its population, as its smallest bin changes from run to run
    populations = np.array([np.exp(-r.free_energy) for r in runs])
    spread = np.std(np.log(populations / populations.sum(axis=1, keepdims=True)), axis=0)
    assert np.mean([r.error for r in runs], axis=0) == pytest.approx(spread, rel=0.2)


def test_profile_leaves_empty_bins_open_and_counts_the_ends(gaussian):
    e = gaussian(500, 0)
    found = profile(e, "x", bins=[-50.0, -40.0, 0.0, 60.0])
    assert np.isnan(found.free_energy[0])
    assert np.isnan(found.error[0])
    assert np.isfinite(found.free_energy[1:]).all()
    whole = profile(e, "x", bins=10)
    assert np.exp(-whole.free_energy).sum() > 0
    assert whole.edges[-1] == e.samples["x"].max()
    with pytest.raises(LowOverlapError, match="no sample"):
        profile(e, "x", bins=[40.0, 50.0])
    with pytest.raises(ValueError, match="increasing"):
        profile(e, "x", bins=[1.0, 0.0])


def test_profile_of_an_angle_spans_the_circle():
    e, cv = circle()
    found = profile(e, cv, bins=36)
    assert (found.edges[0], found.edges[-1]) == pytest.approx((-np.pi, np.pi))
    assert found.periodic
    # a uniform density: all bins within their errors
    z = (found.free_energy - found.free_energy.mean()) / found.error
    assert np.abs(z).max() < 4.5
