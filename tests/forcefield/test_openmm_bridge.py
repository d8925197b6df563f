"""The OpenMM bridge: parity, gradients, worker processes and their failures."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import openmm
import pytest
import torch

import boltzflow
from boltzflow.forcefield import OpenMMPotential, WorkerError


@pytest.fixture(scope="module")
def in_process(shipped):
    return OpenMMPotential(shipped, platform="Reference")


@pytest.fixture(scope="module")
def pool(shipped):
    with OpenMMPotential(shipped, platform="CPU", n_workers=2, chunk_size=5) as potential:
        yield potential


def test_equals_openmm(in_process, shipped, geometries, reference):
    energy, force = in_process.energy_and_force(geometries)
    expected = reference(shipped, geometries)
    assert torch.equal(energy, expected[0])
    assert torch.equal(force, expected[1])


def test_workers_keep_the_order(pool, in_process, geometries):
    x = geometries[:28]
    energy, force = pool.energy_and_force(x)
    expected = in_process.energy_and_force(x)
    torch.testing.assert_close(energy, expected[0], rtol=1e-4, atol=1e-2)  # the CPU platform computes in float32
    assert ((force - expected[1]).norm(dim=(1, 2)) / expected[1].norm(dim=(1, 2))).max() < 0.01
    assert pool.energy_and_force(x[:0])[0].shape == (0,)


@pytest.mark.parametrize("platform", ["CPU", "Reference"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_is_nan_and_the_others_are_not(shipped, geometries, platform, bad):
    x = geometries[:4].clone()
    x[1, 7, 2] = bad
    energy, force = OpenMMPotential(shipped, platform=platform).energy_and_force(x)
    assert energy.isnan().tolist() == [False, True, False, False]
    assert force[[0, 2, 3]].isfinite().all()


def test_forward_is_differentiable_with_one_evaluation(in_process, geometries, monkeypatch):
    calls = []
    evaluate = OpenMMPotential.energy_and_force
    monkeypatch.setattr(OpenMMPotential, "energy_and_force", lambda self, x: calls.append(len(x)) or evaluate(self, x))
    first, second = (geometries[:3].clone().requires_grad_(), geometries[3:6].clone().requires_grad_())
    energies = [in_process(first), in_process(second)]  # both graphs alive: nothing may be kept on the module
    for energy in energies:
        energy.sum().backward()
    assert calls == [3, 3]
    assert torch.equal(first.grad, -evaluate(in_process, geometries[:3])[1])
    assert torch.equal(second.grad, -evaluate(in_process, geometries[3:6])[1])


def test_second_derivatives_raise(in_process, geometries):
    x = geometries[:2].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(in_process(x).sum(), x, create_graph=True)


def test_measures_both_platforms_and_takes_the_faster(shipped, caplog):
    with caplog.at_level(logging.INFO, logger="boltzflow"):
        potential = OpenMMPotential(shipped)
    assert potential.platform == "CPU"  # twenty times faster than Reference on a CustomGBForce
    assert "Reference" in caplog.text


def test_a_platform_that_is_not_there_raises(shipped):
    with pytest.raises(ValueError, match="'Metal' here; available: Reference"):
        OpenMMPotential(shipped, platform="Metal")
    with pytest.raises(ValueError, match="n_workers"):
        OpenMMPotential(shipped, n_workers=-1)


def test_wrong_shapes_are_named(pool):
    with pytest.raises(ValueError, match=r"\(batch, 22, 3\) in nm; found \(2, 21, 3\)"):
        pool.energy_and_force(torch.zeros(2, 21, 3))


def test_pickles_without_its_context(in_process, geometries):
    in_process.energy_and_force(geometries[:1])
    clone = pickle.loads(pickle.dumps(in_process))
    assert torch.equal(clone(geometries[:3]), in_process(geometries[:3]))


def test_a_failure_in_a_worker_raises_with_its_traceback(shipped, geometries):
    broken = openmm.XmlSerializer.clone(shipped)
    force = openmm.CustomExternalForce("nonsense(x)")
    force.addParticle(0)
    broken.addForce(force)
    potential = OpenMMPotential(broken, platform="Reference", n_workers=2)
    with pytest.raises(WorkerError, match=r"Traceback(.|\n)*nonsense"):
        potential.energy_and_force(geometries)
    assert potential._pool is None


def test_a_killed_worker_raises_and_the_next_call_starts_anew(pool, geometries):
    pool.energy_and_force(geometries[:4])
    processes = pool._pool.processes
    os.kill(processes[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=f"process {processes[1].pid}.*exit code -9"):
        pool.energy_and_force(geometries)
    assert not any(process.is_alive() for process in processes)

    pool.energy_and_force(geometries[:4])
    process = pool._pool.processes[0]
    timer = threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL))
    timer.start()
    many = geometries[:28].repeat(500, 1, 1)  # seconds of work: killed while it computes
    with pytest.raises(WorkerError, match="exit code -9"):
        pool.energy_and_force(many)
    timer.join()


def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import openmm, os, torch\n"
        "from boltzflow.forcefield import OpenMMPotential\n"
        "if __name__ == '__main__':\n"
        "    system = openmm.System(); system.addParticle(1.0)\n"
        "    potential = OpenMMPotential(system, platform='Reference', n_workers=2)\n"
        "    potential(torch.zeros(4, 1, 3))\n"
        "    print(*[p.pid for p in potential._pool.processes], flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    root = str(Path(boltzflow.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=environment)
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 2, done.stderr
    deadline = time.monotonic() + 20
    while any(_runs(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:  # a killed orphan may stay as a zombie where nothing reaps it
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
