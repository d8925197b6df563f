"""A force field from a file needs torch and numpy, and nothing else that the package declares."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from boltzflow.forcefield import from_openmm

ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys
for name in ("openmm", "mdtraj", "e3nn", "torch_geometric", "scipy", "pymbar", "pydantic", "yaml", "typer",
             "matplotlib", "jinja2", "tables", "h5py", "jaxtyping", "beartype"):
    sys.modules[name] = None
"""


def run(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shipped, minimised):
    """What `benchmarks/forcefield_gpu.py --prepare` writes, for one System."""
    folder = tmp_path_factory.mktemp("forcefields")
    forcefield = from_openmm(shipped)
    noise = torch.randn(64, 22, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    positions = (minimised + 0.005 * noise).float().double()
    energy, force = forcefield.energy_and_force(positions)
    forcefield.save(folder / "alanine_dipeptide.pt")
    torch.save({"positions": positions, "energy": energy, "force": force}, folder / "alanine_dipeptide.structures.pt")
    return folder


def test_a_saved_force_field(folder):
    code = """
import torch
from boltzflow.forcefield import ForceField
folder = sys.argv[1]
stored = torch.load(f"{folder}/alanine_dipeptide.structures.pt")
forcefield = ForceField.load(f"{folder}/alanine_dipeptide.pt").compiled()
energy, force = forcefield.energy_and_force(stored["positions"])
torch.testing.assert_close(energy, stored["energy"], rtol=1e-11, atol=1e-9)
torch.testing.assert_close(force, stored["force"], rtol=1e-8, atol=1e-6)
print(forcefield.backend)
"""
    assert run(code, folder).strip() in ("compiled", "eager")


def test_the_benchmark_of_the_gpu(folder, tmp_path):
    code = "import runpy; sys.path.insert(0, 'benchmarks'); sys.argv[0] = 'benchmarks/forcefield_gpu.py'\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    options = ("--device", "cpu", "--systems", "alanine_dipeptide", "--batches", 1, 65)
    run(code, folder, *options, "--output", tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    rows = {title: row for title, row in results.items() if isinstance(row, dict)}
    assert {title.rsplit(", ", 1)[1] for title in rows} == {"float32", "float64"}
    for row in rows.values():
        assert set(row["conformations per second"]) == {"1", "65"}
        assert min(row["conformations per second"].values()) > 0
