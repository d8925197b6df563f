"""`boltzflow forecast`: a table a chemist can read, one JSON object, and one line for wrong input."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import boltzflow.preparation.forecast as module
from boltzflow.cli import forecast  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.cli.forecast import _duration, _lines, _size
from boltzflow.preparation.forecast import ForceTiming, Forecast, RecipeForecast

FOUND = Forecast(
    system="mine",
    atoms=304,
    residues=20,
    molecules=2,
    dimension=906,
    rotatable_torsions=120,
    backend="compiled",
    reason="",
    forces=(ForceTiming(5e-3, 1, 1, "float64", "compiled"), ForceTiming(4e-4, 256, 2, "float64", "compiled")),
    conformation_bytes=36480,
    recipes=(RecipeForecast("parallel_tempering", 9000.0, None, {"sweep": 1.5}, 73_000_000, None, 150_000_000),),
    recommended="boltzflow simulate mine/recipes/parallel_tempering.yaml",
    expectation=("Something honest.",),
    load=0.1,
    seconds=20.0,
)


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_table_says_what_it_costs_and_what_comes_next():
    text = "\n".join(_lines(FOUND))
    assert "304 atoms, 20 residues, 2 molecules, 906 dimensions, 120 rotatable bonds" in text
    assert "400 µs (float64, batch 256, 2 threads)" in text
    assert "2.5 h" in text
    assert "73 MB" in text
    assert text.endswith("next: boltzflow simulate mine/recipes/parallel_tempering.yaml")
    assert "idle" not in text
    assert "3.0 processes" in "\n".join(_lines(replace(FOUND, load=3.0)))
    bridged = "\n".join(_lines(replace(FOUND, backend="OpenMM CPU", reason="CustomHbondForce is not known")))
    assert "OpenMM CPU, because CustomHbondForce is not known" in bridged


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (2.4e-6, "2.4 µs"), (0.03, "30 ms"), (90.0, "90 s"), (600.0, "10 min"), (9000.0, "2.5 h")],
)
def test_durations_have_the_unit_that_fits(seconds, text):
    assert _duration(seconds) == text


def test_sizes_have_the_unit_that_fits():
    assert [_size(n) for n in (None, 2640, 71_000_000, 2_000_000_000)] == ["-", "2.64 kB", "71 MB", "2 GB"]


def test_json_of_the_shipped_system(monkeypatch):
    monkeypatch.setattr(module, "BUDGET", 0.05)
    monkeypatch.setattr(module, "BATCHES", (1, 4))
    monkeypatch.setattr(module, "_training_step", lambda *_: (0.05, 0.0, 1000))
    result = invoke("forecast", "alanine_dipeptide", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["system"], found["atoms"], found["dimension"]) == ("alanine_dipeptide", 22, 60)
    assert found["recommended"] == "boltzflow sample alanine_dipeptide -n 20000 -o ensemble.h5"
    by_name = {recipe["name"]: recipe for recipe in found["recipes"]}
    assert by_name["spline_flow"]["training_seconds"] == pytest.approx(7000 * 0.05)
    assert by_name["simulate"]["simulation_seconds"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alanine_dipeptid"], "did you mean 'alanine_dipeptide'"),
        (["alanine_dipeptide", "--device", "cuda:17"], "available: cpu"),
        (["alanine_dipeptide@cold"], "expected NAME@TEMPERATURE"),
    ],
)
def test_wrong_input_is_one_line(words, message):
    result = invoke("forecast", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
