"""Systems whose energy is in closed form: definition, exact references, checkpoints, and what they refuse."""

import json

import pytest
import torch
from typer.testing import CliRunner

from boltzflow import cite
from boltzflow.cli import analyze, forcefield, forecast, report, sample, simulate, systems, train  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.errors import FormatError, NotAMoleculeError, UnknownNameError
from boltzflow.systems import AnalyticSystem, load_system
from boltzflow.workflow import training_data


def write(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "system.yaml").write_text(f"name: mine\ndescription: A test.\n{text}")
    return folder


@pytest.fixture
def mine(tmp_path):
    return load_system(write(tmp_path / "mine", "target: ManyWell\narguments: {dimension: 4}\n"))


def test_an_analytic_system_is_its_target_under_its_own_name(mine):
    assert isinstance(mine, AnalyticSystem)
    assert (mine.name, mine.dimension, mine.temperature) == ("mine", 4, None)
    assert mine.target.name == "mine"
    assert mine.target.log_z == pytest.approx(2 * 10.2934797)
    assert mine.target is mine.target
    assert load_system(mine.source).fingerprint == mine.fingerprint


def test_the_fingerprint_tells_arguments_apart(mine, tmp_path):
    other = load_system(write(tmp_path / "other", "target: ManyWell\narguments: {dimension: 6}\n"))
    assert other.fingerprint != mine.fingerprint


def test_exact_samples_are_the_reference_and_the_data(mine):
    reference = mine.reference()
    assert reference.normalisation == "none"
    u = mine.target.reduced_energy(reference.to_state())
    torch.testing.assert_close(u, torch.from_numpy(reference.reduced_energies))
    data = training_data(reference, mine, dtype=torch.float32)
    assert data["x"].shape == (len(reference), 4)
    assert data["x"].dtype == torch.float32


def test_data_of_another_system_are_refused(mine):
    with pytest.raises(ValueError, match="of another system"):
        training_data(load_system("snf_double_well").reference(), mine, dtype=torch.float32)


def test_targets_without_a_sampler_have_no_reference(tmp_path):
    text = "target: LennardJonesCluster\narguments: {n_particles: 13}\n"
    system = load_system(write(tmp_path / "lj", text))
    assert not system.has_reference
    assert system.reference() is None


def test_functions_that_make_targets_are_names_as_well(tmp_path):
    assert load_system(write(tmp_path / "gmm", "target: gmm40\n")).target.log_z == 0.0


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("target: DoubleWel\n", UnknownNameError, "did you mean 'DoubleWell'"),
        ("target: Base\n", UnknownNameError, "unknown target"),
        ("target: ManyWell\narguments: {dimension: 3}\n", FormatError, "even number"),
        ("target: ManyWell\narguments: {size: 4}\n", FormatError, "size"),
        ("target: DoubleWell\ntemperature: 300\n", FormatError, "in kT"),
        ("description: neither\n", FormatError, "temperature"),
    ],
)
def test_a_wrong_definition_is_named(tmp_path, text, error, match):
    with pytest.raises(error, match=match):
        _ = load_system(write(tmp_path / "wrong", text)).target


def test_a_temperature_is_refused():
    with pytest.raises(FormatError, match="in kT"):
        load_system("snf_double_well@300")


def test_what_needs_atoms_is_refused_by_name():
    system = load_system("snf_double_well")
    for name in ("positions", "zmatrix", "openmm_system", "sector"):
        with pytest.raises(NotAMoleculeError, match="analytic energy DoubleWell"):
            getattr(system, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = system.nonsense


@pytest.mark.parametrize("command", [["simulate", "--method", "md"], ["forecast"], ["forcefield", "check"]])
def test_commands_on_molecules_say_what_they_need(command):
    result = CliRunner().invoke(app, [*command, "snf_double_well"])
    assert result.exit_code != 0
    assert "analytic energy DoubleWell" in result.output


def test_the_command_line_trains_samples_analyses_and_reports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_system("snf_double_well").folder / "recipes" / "stochastic_flow.yaml"
    few = ["training.steps=2", "training.batch_size=16", "training.reverse_batch_size=16", "generator.hidden=[8]"]
    few += ["generator.stochastic.n_steps=2"]
    settings = [word for value in few for word in ("--set", value)]
    for command in (
        ["train", recipe, "-o", "run", *settings],
        ["sample", "run", "-n", "300", "-o", "e.h5", "--seed", "1"],
        ["report", "e.h5", "-o", "report.html"],
    ):
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.output[-2000:]
    found = json.loads(CliRunner().invoke(app, ["analyze", "e.h5", "--json"]).stdout)
    assert found["system"] == "snf_double_well"
    assert found["normalisation"] == "absolute"
    assert 0 < found["forward_ess_fraction"] <= 1
    page = (tmp_path / "report.html").read_text()
    assert "snf_double_well" in page
    assert "Map of the exact free energy over x:0 and x:1" in page


def test_it_is_listed_and_cited():
    listing = CliRunner().invoke(app, ["systems"]).output
    assert "snf_double_well" in listing
    assert "wu2020" in cite("snf_double_well")
