"""The notebooks run, and what is committed of them is the clean output of a full run."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_SIZE = 1_500_000
# folders of the machine that ran it, in any operating system's spelling
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|Users|var|mnt)/|[A-Z]:\\\\")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{k:02d}" for k in range(1, len(NOTEBOOKS) + 1)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages that run notebooks
def test_runs_in_fast_mode(path, tmp_path, monkeypatch):
    monkeypatch.setenv("BOLTZFLOW_FAST", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(path)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert all(cell.execution_count for cell in code_cells(notebook))


def test_is_valid_and_its_metadata_is_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in notebook.cells)
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells)


def test_committed_outputs_are_those_of_one_run(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    kinds = {kind for o in outputs for kind in o.get("data", {})}
    assert "image/png" in kinds
    assert not {kind for kind in kinds if "widget" in kind}


def test_committed_file_is_small_and_knows_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < MAX_SIZE
    cells = json.loads(text)["cells"]
    for cell in cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    found = MACHINE_PATH.search(json.dumps(cells))
    assert found is None, found


def test_pictures_are_explained(path):
    cells = read(path).cells
    shows = [any("image/png" in o.get("data", {}) for o in cell.get("outputs", [])) for cell in cells]
    unexplained = [k for k, shown in enumerate(shows) if shown and cells[k + 1].cell_type != "markdown"]
    assert not unexplained
