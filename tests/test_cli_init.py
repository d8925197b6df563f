"""`boltzflow init`: from files to a folder that the other commands take, and errors of one line."""

import json
import os

import pytest
from typer.testing import CliRunner

from boltzflow.cli import init, sample, simulate, train  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.systems import load_system
from boltzflow.transitions import spline_kernels

STRUCTURE = load_system("alanine_dipeptide").folder / "topology.pdb"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spline_kernels._compiler, "off", True)  # splines run eagerly, which starts faster


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_init_says_what_it_made_and_what_to_type_next():
    result = invoke("init", "ala", "--pdb", STRUCTURE, "--temperature", "310K")
    assert result.exit_code == 0, result.output
    for text in (
        "22 atoms, 3 residues, 1 molecule; dimension 60",
        "net charge   +0 e",
        "temperature  310 K",
        "CustomGBForce",
        "torch: all forces known",
    ):
        assert text in result.stdout
    following = [line.split() for line in result.stdout.partition("next:\n")[2].splitlines()]
    assert [words[:2] for words in following] == [
        ["boltzflow", command] for command in ("forecast", "simulate", "train", "sample", "report")
    ]
    # as printed, but for the sizes
    ran = invoke(*following[1][1:], "-n", "16", "--chains", "4", "--burn-in", "5", "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["system"].startswith("ala")
    assert len(load_system("ala").reference()) >= 16
    tiny = ["training.steps=2", "generator.n_couplings=2", "generator.hidden=[8]", "training.warmup_steps=0"]
    trained = invoke(*following[2][1:], *(word for value in tiny for word in ("--set", value)))
    assert trained.exit_code == 0, trained.output
    sampled = invoke(*following[3][1:4], "100", *following[3][5:])
    assert sampled.exit_code == 0, sampled.output


def test_options_may_be_repeated():
    files = ["--forcefield", "amber99sbildn.xml", "--forcefield", "amber99_obc.xml"]
    result = invoke("init", "old", "--pdb", STRUCTURE, *files)
    assert result.exit_code == 0, result.output
    assert "amber99sbildn.xml + amber99_obc.xml" in result.stdout
    assert "GBSAOBCForce" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bad", "--pdb", "no.pdb"], "no.pdb: no such file"),
        (["bad"], "expected exactly one of"),
        (["bad", "--pdb", STRUCTURE, "--temperature", "25"], "write 25C"),
        (["bad", "--pdb", STRUCTURE, "--forcefield", "amber14al.xml"], "did you mean 'amber14-all.xml'"),
        (["alanine_dipeptide", "--pdb", STRUCTURE], "is a system that ships"),
        ([".", "--pdb", STRUCTURE], "choose another name"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(words, message):
    before = sorted(os.listdir())
    result = invoke("init", *words)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in result.output
    assert sorted(os.listdir()) == before
