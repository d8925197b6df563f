"""What ships does what is said of it: the demo on the shipped checkpoint, against the shipped reference."""

import json

import pytest
import torch
from typer.testing import CliRunner

from boltzflow.analysis import compare, delta_f
from boltzflow.cli import analyze, sample  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.estimate import Estimate
from boltzflow.io import load_checkpoint
from boltzflow.systems import load_system
from boltzflow.transitions import spline_kernels
from boltzflow.workflow import path_log_weights

SYSTEM = load_system("alanine_dipeptide")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SYSTEM.checkpoint_path is None, reason="no checkpoint ships with this checkout"),
]


@pytest.fixture(scope="module", autouse=True)
def eager_splines():
    """A short run is faster without the compiler's start-up."""
    off, spline_kernels._compiler.off = spline_kernels._compiler.off, True
    yield
    spline_kernels._compiler.off = off


@pytest.fixture(scope="module")
def generator():
    return SYSTEM.load_generator()


@pytest.fixture(scope="module")
def ensemble(generator):
    return generator.sample(8000, SYSTEM.target, seed=7)


@pytest.fixture(scope="module")
def scalars():
    return json.loads((SYSTEM.data_folder / "reference.json").read_text())


def estimate(entry):
    return Estimate(entry["value"], entry["error"], method="reference", n_effective=1.0)


def test_weights_are_as_good_as_the_readme_says(ensemble):
    assert ensemble.ess_fraction() > 0.6
    assert ensemble.pareto_k() < 0.7
    assert ensemble.provenance.n_failed == 0


def test_generator_covers_the_reference(generator, ensemble):
    every_eighth = SYSTEM.reference().select(slice(None, None, 8))
    paths = path_log_weights(generator, every_eighth, SYSTEM.target)
    found = compare(ensemble, every_eighth, path_log_weights=paths)
    assert found.forward_ess_fraction > 0.5
    assert found.gap.value < 1.0


def test_estimates_agree_with_the_reference(ensemble, scalars):
    energy = ensemble.mean_reduced_energy()
    assert abs(energy.z_score(estimate(scalars["mean_reduced_energy"]))) < 4
    found = delta_f(ensemble, "phi", states=[(0.0, torch.pi * 130 / 180)])
    assert abs(found.z_score(estimate(scalars["delta_f_alpha_l"]))) < 4


def test_reference_is_of_this_target(scalars):
    reference = SYSTEM.reference()
    few = reference.select(slice(0, 50))
    u = SYSTEM.target.reduced_energy(few.to_state(dtype=torch.float64))
    torch.testing.assert_close(u, torch.from_numpy(few.reduced_energies), rtol=1e-9, atol=1e-6)
    assert abs(reference.mean_reduced_energy().z_score(estimate(scalars["mean_reduced_energy"]))) < 4
    assert scalars["delta_f_alpha_l"]["independent_visits"] >= 300


def test_checkpoint_is_stripped_and_knows_its_cost():
    checkpoint = load_checkpoint(SYSTEM.checkpoint_path, SYSTEM)
    assert checkpoint.training is None
    assert sum(checkpoint.cost["ledger"]["energy"].values()) > 0


def test_the_demo(tmp_path):
    def run(*words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.stdout

    file = tmp_path / "ensemble.h5"
    run("sample", "alanine_dipeptide", "-n", 2000, "-o", file, "--seed", 1)
    assert "verdict: reliable" in run("analyze", file)
    found = json.loads(run("analyze", file, "--json"))
    assert found["ess_fraction"] > 0.5
    assert found["forward_ess_fraction"] > 0.4
    assert "F(phi in 0:130°) - F(rest)" in run("free-energy", file, "--cv", "phi", "--state", "0:130")
