"""`boltzflow report`: one file from an ensemble file, with or without reference, and errors of one line."""

import numpy as np
import pytest
from typer.testing import CliRunner

from boltzflow.cli import report  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.systems import load_system


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words):
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: "), result.stderr
    assert "Traceback" not in result.output
    return last


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An ensemble of alanine dipeptide whose generator is not known, chains as its reference, and a toy."""
    folder = tmp_path_factory.mktemp("report")
    system = load_system("alanine_dipeptide")
    rng = np.random.default_rng(0)
    positions = (system.positions.numpy() + 0.01 * rng.normal(size=(120, 22, 3))).astype(np.float32)
    common = {
        "samples": {"positions": positions},
        "spaces": system.target.fields,
        "reduced_energies": rng.normal(size=120),
        "target": system.target.name,
        "topology": system.topology,
    }
    extra = {"system": system.name, "source": system.source, "temperature": 300.0}
    weighted = Ensemble(
        **common,
        log_weights=0.2 * rng.normal(size=120),
        base="somewhere",
        provenance=Provenance(seed=5, seconds=1.0, extra=extra),
    )
    weighted.save(folder / "ensemble.h5")
    Ensemble(
        **common,
        log_weights=np.zeros(120),
        chain=np.repeat(np.arange(4), 30),
        frame=np.tile(np.arange(30), 4),
        provenance=Provenance(extra=extra),
    ).save(folder / "chains.h5")
    Ensemble(
        samples={"x": rng.normal(size=(60, 1))}, log_weights=np.zeros(60), reduced_energies=np.zeros(60), target="toy"
    ).save(folder / "toy.h5")
    return folder


def test_a_page_with_a_reference_and_states(files):
    output = files / "pages" / "report.html"
    words = [
        "--reference",
        files / "chains.h5",
        "--cv",
        "phi",
        "--cv",
        "psi",
        "--state",
        "-180:0",
        "--title",
        "My title",
    ]
    result = invoke("report", files / "ensemble.h5", "-o", output, *words)
    assert result.exit_code == 0, result.output
    assert str(output) in result.stdout
    page = output.read_text(encoding="utf-8")
    for words in ("<h1>My title</h1>", "−180° to 0°", "the rest", "labelled configurations", "relative to somewhere"):
        assert words in page
    assert "@misc{boltzflow" in page
    assert "mean energy against the reference" in page
    # its generator is not here, so that the reference cannot be traced back through it
    assert "forward ESS, on the reference" not in page


def test_chains_and_toys_need_no_reference(files):
    for name in ("chains", "toy"):
        output = files / f"{name}.html"
        result = invoke("report", files / f"{name}.h5", "-o", output, "--no-reference")
        assert result.exit_code == 0, result.output
        assert "<h1>" in output.read_text(encoding="utf-8")


def test_wrong_input_is_one_line(files, tmp_path):
    ensemble, output = files / "ensemble.h5", tmp_path / "report.html"
    assert "nowhere.h5" in refused("report", tmp_path / "nowhere.h5", "-o", output)
    assert "name it with --cv" in refused("report", ensemble, "-o", output, "--state", "0:1")
    assert "exclude each other" in refused("report", ensemble, "-o", output, "--no-reference", "--reference", ensemble)
    assert "phi" in refused("report", ensemble, "-o", output, "--cv", "phy", "--no-reference")
    assert "lo:hi" in refused("report", ensemble, "-o", output, "--cv", "phi", "--state", "left", "--no-reference")
    assert "two cuts" in refused("report", ensemble, "-o", output, "--cv", "phi", "--state", "0:", "--no-reference")
    assert "is a folder" in refused("report", ensemble, "-o", tmp_path)
    assert "'toy'" in refused("report", ensemble, "-o", output, "--reference", files / "toy.h5")
    assert not output.exists()
