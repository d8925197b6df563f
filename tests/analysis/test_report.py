"""The HTML report: self-contained, valid, small, complete, and not silent about bad ensembles."""

import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import matplotlib as mpl
import mdtraj
import numpy as np
import pytest

from boltzflow.analysis import delta_f, profile, report
from boltzflow.analysis.report.basins import find_basins, state_rows
from boltzflow.analysis.report.conformers import pick_conformers
from boltzflow.analysis.report.tables import duration, number
from boltzflow.analysis.report.variables import chosen_variables, default_variables
from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.errors import NonFiniteEnergyError, UnknownNameError
from boltzflow.state import Space

VOID = {"meta", "img", "input", "br", "hr", "link"}
SECTIONS = ["verdict", "run", "maps", "energies", "weights", "profiles", "structures", "methods", "glossary"]


class Page(HTMLParser):
    """Elements, attributes, and whether every element that is opened is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def page(tmp_path):
    """Report an ensemble and parse the page; settings of matplotlib must be untouched."""

    def make(ensemble, **options):
        before = dict(mpl.rcParams)
        path = report(ensemble, tmp_path / "report.html", **options)
        assert dict(mpl.rcParams) == before
        text = path.read_text(encoding="utf-8")
        return Page(text), text

    return make


NAME = "</script><script>alert(1)</script><b>"


@pytest.fixture(scope="module")
def full(dipeptide, tmp_path_factory):
    """A page with everything, and names that would like to be code."""
    path = report(
        dipeptide,
        tmp_path_factory.mktemp("report") / "report.html",
        reference=dipeptide.select(slice(0, 150)),
        bibtex="@misc{x} " + NAME,
        details={"sector": "L", NAME: NAME},
    )
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def test_everything_is_there_in_order(full):
    found, text = full
    sections = [attrs["id"] for attrs in found.all("section")]
    assert sections == SECTIONS
    anchors = [attrs["href"] for attrs in found.all("a")]
    assert set(anchors) == {f"#{name}" for name in SECTIONS}
    for words in ("alanine_dipeptide, 300 K", "effective samples (ESS)", "Pareto k-hat", "as generated", "reweighted"):
        assert words in found.text
    for words in ("reference", "ALA2", "@misc{x}", "sector", "energy evaluations", "normalisation", "seed"):
        assert words in found.text
    assert found.text.index("Can these weights be trusted") < found.text.index("What was run")
    assert found.all("title")
    assert len(text) < 1.5e6


def test_it_loads_nothing_from_elsewhere(full):
    found, text = full
    for tag, attrs in found.elements:
        for name, value in attrs.items():
            if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
                assert value.startswith(("#", "data:")), (tag, name, value[:80])
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert styles
    for style in styles:
        assert "@import" not in style
        assert all(url.startswith(("#", "data:")) for url in re.findall(r"url\(['\"]?([^)]*)", style))
    assert all(not re.search(r"url\((?!#)", attrs.get("style", "")) for _, attrs in found.elements)
    (policy,) = [a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_figures_have_texts_and_identifiers_of_their_own(full):
    found, text = full
    figures = [attrs["aria-label"] for attrs in found.all("svg")] + [attrs["alt"] for attrs in found.all("img")]
    assert len(figures) >= 8
    assert all(len(words) > 10 for words in figures)
    identifiers = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    clip_paths = [i for i in identifiers if re.fullmatch(r"p[0-9a-f]{10}", i)]
    assert clip_paths
    assert len(set(clip_paths)) == len(clip_paths)
    # the ink of the figures is the colour of the text, which the dark scheme changes
    assert "currentColor" in text
    assert "#010203" not in text


def test_the_viewer_is_the_released_file_and_gets_its_data(full):
    folder = resources.files("boltzflow.analysis.report") / "static"
    library = folder.joinpath("3Dmol-min.js").read_bytes()
    assert hashlib.sha256(library).hexdigest() in folder.joinpath("README.md").read_text()
    assert b"</script" not in library.lower()
    assert b"<!--" not in library
    _, text = full
    assert library.decode() in text
    data = json.loads(re.search(r'id="conformers">(.*?)</script>', text, re.DOTALL).group(1))
    assert len(data["atoms"]) == 22
    assert len(data["frames"]) == len(data["labels"]) <= 20
    assert all(len(frame) == 66 for frame in data["frames"])
    assert len(data["bonds"]) == 21


def test_hostile_names_stay_text(full):
    found, text = full
    assert "<script>alert" not in text
    assert "".join(found.texts).count(NAME) == 3


@pytest.mark.parametrize(
    ("log_weights", "level", "words"),
    [
        (lambda rng: 0.3 * rng.normal(size=400), "caution", "modes that the generator misses"),
        (lambda rng: 3.0 * rng.normal(size=400), "bad", "a few samples carry the weight"),
        (lambda rng: np.where(np.arange(400) == 7, 900.0, rng.normal(size=400)), "bad", "fewer than 10 effective"),
        (lambda rng: np.where(np.arange(400) == 7, 0.0, -np.inf), "bad", "fewer than 10 effective"),
        (lambda rng: np.zeros(400), "caution", "equal weights"),
    ],
    ids=["good", "heavy tail", "one sample", "one weight", "equal"],
)
def test_the_verdict_comes_first_also_where_it_is_bad(page, log_weights, level, words):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    ensemble = Ensemble(
        samples={"x": x},
        log_weights=log_weights(rng),
        reduced_energies=0.5 * (x**2).sum(1),
        target="toy",
        base="wide",
        log_z_base=0.0,
    )
    found, _ = page(ensemble)
    (box,) = [attrs for attrs in found.all("div") if attrs.get("class", "").startswith("verdict")]
    assert box["class"] == f"verdict {level}"
    start = found.text.index("Can these weights be trusted")
    assert words in found.text[start : start + 250].lower()
    assert "x:0" in found.text
    assert not [attrs for attrs in found.all("section") if attrs["id"] == "structures"]


@pytest.mark.parametrize("n", [1, 2, 50])
def test_tiny_ensembles_are_reported(page, dipeptide, n):
    found, _ = page(dipeptide.select(slice(0, n)))
    assert "Not reliable" in found.text or "Usable with care" in found.text


def test_chains_are_reported_as_chains(page, dipeptide):
    rng = np.random.default_rng(0)
    chains = Ensemble(
        samples=dipeptide.samples,
        log_weights=np.zeros(200),
        reduced_energies=rng.normal(size=200),
        target="alanine_dipeptide",
        topology=dipeptide.topology,
        chain=np.repeat(np.arange(4), 50),
        frame=np.tile(np.arange(50), 4),
        provenance=Provenance(
            interrupted=True,
            extra={
                "method": "pt",
                "simulation": {"temperatures": [300.0, 400.0], "round_trips": 40, "swap_rates": [0.4]},
            },
        ),
    )
    found, _ = page(chains)
    for words in (
        "Can these averages be trusted",
        "R-hat over 4 chains",
        "round trips",
        "300, 400 K",
        "stopped before",
    ):
        assert words in found.text
    assert "weights" not in [attrs["id"] for attrs in found.all("section")]
    assert "log Z −" not in found.text


def test_states_are_those_that_were_asked_for(page, dipeptide):
    found, _ = page(dipeptide, cvs=["phi", "rg"], states=[(-1.5, 0.0), (0.0, 1.5)], reference=dipeptide)
    assert "States as asked for" in found.text
    assert "−86° to 0°" in found.text
    value = delta_f(dipeptide, "phi", states=[(-1.5, 0.0), (0.0, 1.5)])
    text = str(value).partition(" kT")[0].replace("-", "−")
    assert text in found.text
    # against itself there is no difference
    assert "+0.0" in found.text


def test_wrong_arguments_are_named(dipeptide, gaussian, tmp_path):
    output = tmp_path / "report.html"
    with pytest.raises(UnknownNameError, match="phy"):
        report(dipeptide, output, cvs=["phy"])
    with pytest.raises(ValueError, match="name it with cvs"):
        report(dipeptide, output, states=[(0.0, 1.0)])
    with pytest.raises(ValueError, match="overlap"):
        report(dipeptide, output, cvs=["rg"], states=[(0.0, 0.5), (0.1, 1.0)])
    with pytest.raises(ValueError, match="reweight one of them"):
        report(dipeptide, output, reference=gaussian(50, 0))
    with pytest.raises(ValueError, match="give it as well"):
        report(dipeptide, output, path_log_weights=np.zeros(3))
    dead = dipeptide._like(log_weights=np.full(200, -np.inf))
    with pytest.raises(NonFiniteEnergyError, match="all 200"):
        report(dead, output)
    assert not output.exists()


def two_wells(n, *, barrier, seed=0):
    """Samples of a mixture of two Gaussians at ±1, one with a quarter of the weight."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 0.25, 1.0, -1.0) + rng.normal(size=n) / np.sqrt(2 * barrier)
    return Ensemble(
        samples={"x": x[:, None]}, log_weights=np.zeros(n), reduced_energies=x**2, target="wells", base="wells"
    )


def test_two_wells_have_two_basins_and_noise_has_none():
    ensemble = two_wells(4000, barrier=6.0)
    (low, cut), (again, high) = find_basins(profile(ensemble, "x", bins=40))
    assert (low, high) == (-np.inf, np.inf)
    assert cut == again
    assert abs(cut) < 0.4
    assert find_basins(profile(two_wells(4000, barrier=0.7), "x", bins=40)) == []


def test_basins_of_a_circle_may_cross_its_cut():
    rng = np.random.default_rng(1)
    angle = np.concatenate([rng.vonmises(np.pi, 20, size=3000), rng.vonmises(0.0, 20, size=500)])
    circle = Ensemble(
        samples={"a": angle[:, None]},
        spaces={"a": Space("circle", (1,))},
        log_weights=np.zeros(3500),
        reduced_energies=np.zeros(3500),
        target="circle",
        base="circle",
    )
    found = find_basins(profile(circle, "a", bins=36))
    assert len(found) == 2
    assert sum(low > high for low, high in found) == 1
    variable = chosen_variables(["a"]).singles[0].of(circle)
    rows = state_rows(circle, variable, found, relative_to=None)
    (compared,) = [row for row in rows if row.delta_f is None]
    (other,) = [row for row in rows if row.delta_f is not None]
    assert compared.population == pytest.approx(6 / 7, abs=0.01)
    assert other.delta_f.value == pytest.approx(np.log(6), abs=0.05)


def test_a_state_without_samples_says_so():
    ensemble = two_wells(200, barrier=6.0)
    variable = chosen_variables(["x"]).singles[0].of(ensemble)
    empty, _ = state_rows(ensemble, variable, [(50.0, 60.0), (-9.0, 9.0)])
    assert empty.delta_f is None
    assert "no sample" in empty.reason


def chain_molecule(n_carbons, n=300, *, ring=False):
    """Random conformations of a carbon chain or ring without hydrogens."""
    topology = mdtraj.Topology()
    residue = topology.add_residue("LIG", topology.add_chain())
    atoms = [topology.add_atom(f"C{i}", mdtraj.element.carbon, residue) for i in range(n_carbons)]
    for a, b in pairwise(atoms):
        topology.add_bond(a, b)
    if ring:
        topology.add_bond(atoms[-1], atoms[0])
    rng = np.random.default_rng(0)
    positions = 0.1 * np.cumsum(rng.normal(size=(n, n_carbons, 3)), axis=1)
    return Ensemble(
        samples={"positions": positions.astype(np.float32)},
        log_weights=np.zeros(n),
        reduced_energies=rng.normal(size=n),
        target="chain",
        base="chain",
        topology=topology,
    )


def test_default_variables(dipeptide, gaussian):
    peptide = default_variables(dipeptide)
    assert [s.spec for s in peptide.singles] == ["phi", "psi"]
    chain = default_variables(chain_molecule(5))
    assert [s.spec for s in chain.singles][-1] == "rg"
    assert {s.spec for s in chain.singles[:-1]} == {"torsion:0,1,2,3", "torsion:1,2,3,4"}
    assert [s.spec for s in default_variables(chain_molecule(5, ring=True)).singles] == ["rg"]
    assert [s.spec for s in default_variables(gaussian(20, 0)).singles] == ["x"]
    cluster = dipeptide._like(topology=None)
    assert [s.name for s in default_variables(cluster).singles] == ["radius of gyration"]


def test_conformers_are_drawn_by_weight_and_keep_their_hand(dipeptide):
    log_w = np.full(200, -30.0)
    log_w[[3, 90]] = 0.0, np.log(3)
    found = pick_conformers(dipeptide._like(log_weights=log_w), n=20)
    assert found.rows.tolist() == [3, 90]
    assert found.counts.tolist() == [5, 15]
    start = dipeptide.samples["positions"][found.rows].astype(float)
    centres = [int(dipeptide.topology.select(f"name {name}")[0]) for name in ("N", "CA", "C", "CB")]

    def volume(x):
        a, b, c, d = (x[:, i] for i in centres)
        return np.einsum("ni,ni->n", np.cross(a - b, c - b), d - b)

    assert np.allclose(volume(found.positions), volume(start), atol=1e-6)
    assert pick_conformers(dipeptide._like(topology=None)) is None


def test_numbers_read_well():
    assert number(20_000) == "20\u202f000"
    assert number(133_484_202) == "1.33 · 10⁸"
    assert (duration(6.991), duration(1329.6), duration(9000)) == ("6.99 s", "22.2 min", "2.5 h")
