"""Evaluation in parts that keep to a bound on memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from openmm import app

from boltzflow.forcefield import from_openmm
from tests.forcefield.waterbox import build, conformations

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["vacuum", "gbn2"])
def test_the_same_numbers(make_system, geometries, monkeypatch, name):
    forcefield = from_openmm(make_system(name))
    whole = forcefield.energy_and_force(geometries)
    calls = []
    energies = forcefield._energies
    monkeypatch.setattr(
        forcefield, "_energies", lambda x, box, states: calls.append(x.shape[-1]) or energies(x, box, states)
    )
    for size in (1, 5, 7):
        forcefield.chunk_bytes = 2**40
        forcefield._chunks(torch.zeros(3, 22, 1, dtype=torch.float64), None)
        forcefield.chunk_bytes, forcefield._bytes = size * 1000, 1000
        calls.clear()
        parts = forcefield.energy_and_force(geometries)
        assert calls == [size] * (len(geometries) // size) + [len(geometries) % size] * (len(geometries) % size > 0)
        for part, expected in zip(parts, whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(forcefield(geometries), whole[0], rtol=1e-12, atol=0)
    calls.clear()
    forcefield(geometries.clone().requires_grad_()).sum().backward()
    assert calls == [len(geometries)]


def test_boxes_go_with_their_conformations():
    forcefield = from_openmm(build("tip3p", app.Ewald))
    x = conformations("tip3p")
    box = torch.stack([1.0 * forcefield.box, 1.02 * forcefield.box, 1.05 * forcefield.box])
    whole = forcefield.energy_and_force(x, box)
    forcefield.chunk_bytes = 1  # at least one conformation
    for part, expected in zip(forcefield.energy_and_force(x, box), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-8)
    torch.testing.assert_close(forcefield.energy_and_force(x)[0], forcefield(x), rtol=1e-12, atol=0)


_LOADED = {
    "tip3p_box": "from tests.forcefield.waterbox import build, conformations\n"
    "forcefield = from_openmm(build('tip3p', app.Ewald))\n"
    "x, n = conformations('tip3p'), 24\n",
    "chignolin": "from boltzflow import load_system\n"
    "system = load_system('chignolin')\n"
    "forcefield = from_openmm(system.openmm_system)\n"
    "x, n = system.positions[None], 160\n",
}


@pytest.mark.parametrize("name", _LOADED)
def test_the_bound_is_kept(name):
    """The most memory of a process that evaluates many times what the bound allows at once."""
    script = (
        "import resource, torch\n"
        "from openmm import app\n"
        "from boltzflow.forcefield import from_openmm\n"
        "torch.set_num_threads(1)\n"
        f"{_LOADED[name]}"
        "forcefield.chunk_bytes = bound = 200 * 2**20\n"
        "peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "forcefield.energy_and_force(x[:1])\n"
        "before = peak()\n"
        "forcefield.energy_and_force(x.repeat(n // len(x), 1, 1))\n"
        "print(bound, peak() - before, n * forcefield._bytes)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    bound, grown, needed = map(int, result.stdout.split())
    assert needed > 2 * bound
    assert grown < bound


def test_the_bound_of_the_environment(monkeypatch, shipped):
    monkeypatch.setenv("BOLTZFLOW_CHUNK_BYTES", "123456")
    assert from_openmm(shipped).chunk_bytes == 123456
    monkeypatch.setenv("BOLTZFLOW_CHUNK_BYTES", "1GB")
    with pytest.raises(ValueError, match="BOLTZFLOW_CHUNK_BYTES must be a positive number of bytes; found '1GB'"):
        from_openmm(shipped)
