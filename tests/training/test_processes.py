"""Several processes: the same gradients, the same training and the same ensemble as one, and failures that end them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError
from boltzflow.objectives import MaximumLikelihood, TemperatureLadder
from boltzflow.objectives.objective import Step
from boltzflow.run import make_rng
from boltzflow.training import Processes, TrainingState, local_device, processes, started_processes
from tests.training import two_processes
from tests.training.test_trainer import lines

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A job of two processes by torchrun, at the end of which one fails."""
    folder = tmp_path_factory.mktemp("job")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words += ["-m", "tests.training.two_processes", str(folder)]
    found = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return folder, found


@pytest.mark.parametrize("shards", [2, 4])
def test_two_processes_train_as_one_does(shards, job, tmp_path):
    folder, found = job
    assert (folder / f"trained-1-{shards}.pt").exists(), found.stderr
    alone = two_processes.trained(two_processes.trainer(shards=shards, metrics=tmp_path / "m.jsonl"))
    for rank in (0, 1):
        other = torch.load(folder / f"trained-{rank}-{shards}.pt", weights_only=True)
        # bit for bit, because gradients are added in the order of the shards
        assert torch.equal(other["gradient"], alone["gradient"])
        assert torch.equal(other["parameters"], alone["parameters"])
        assert all(torch.equal(other["average"][name], value) for name, value in alone["average"].items())
        assert other["ledger"] == alone["ledger"]
    assert alone["ledger"]["energy"] == {"Gaussian": 12 * 8}
    assert lines(folder / f"metrics-0-{shards}.jsonl") == lines(tmp_path / "m.jsonl")
    assert not (folder / f"metrics-1-{shards}.jsonl").exists()


def test_two_processes_share_the_scores_of_the_natural_gradient(job):
    folder, found = job
    alone = two_processes.trained(two_processes.natural())
    for rank in (0, 1):
        assert (folder / f"natural-{rank}.pt").exists(), found.stderr
        other = torch.load(folder / f"natural-{rank}.pt", weights_only=True)
        assert torch.equal(other["parameters"], alone["parameters"])
    # to the target's mean, and not only alike
    torch.testing.assert_close(alone["parameters"][:2], torch.tensor([0.5, -1.0]).double(), atol=0.3, rtol=0)


def test_the_gradient_of_two_shards_is_that_of_the_whole_batch():
    run = two_processes.trainer(loss=MaximumLikelihood(two_processes.flow()), shards=2, clip_gradient=None)
    run.train_step()
    found = torch.cat([p.grad.flatten() for p in run.parameters])
    streams = [make_rng(3, 0, shard) for shard in (0, 1)]
    rows = torch.cat([torch.randint(60, (8,), generator=rng) for rng in streams])
    generator = two_processes.flow()
    loss, _ = MaximumLikelihood(generator)(Step(make_rng(0), data=run.data.index(rows)))
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in generator.parameters()])
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_random_seeds_are_those_of_the_first_process(job):
    first, second = (torch.load(job[0] / f"seed-{rank}.pt") for rank in (0, 1))
    assert first == second


@pytest.mark.parametrize("name", ["ensemble", "topped"])
def test_two_processes_sample_as_one_does(name, job, tmp_path):
    found, expected = Ensemble.load(job[0] / f"{name}.h5"), two_processes.sample(tmp_path / "e.h5")
    assert len(found) == 45
    assert np.array_equal(found.samples["x"], expected.samples["x"])
    assert np.array_equal(found.log_weights, expected.log_weights)
    assert np.array_equal(found.groups, expected.groups)
    assert found.provenance.ledger == expected.provenance.ledger
    assert not found.provenance.interrupted


def test_a_failed_process_fails_the_job_with_its_traceback(job):
    _, found = job
    assert found.returncode != 0
    assert "lost the device" in found.stderr
    assert "Traceback" in found.stderr


def test_a_number_of_processes_that_would_change_the_result_is_refused():
    alone = two_processes.trainer(steps=3)
    alone.run()
    state = alone.state()
    pair = two_processes.trainer(world=Processes(0, 2))
    with pytest.raises(CheckpointMismatchError, match=r"1 shard, .* which 2 processes cannot share"):
        pair.load_state(state)
    four = TrainingState(**{**vars(state), "n_shards": 4})
    with pytest.raises(CheckpointMismatchError, match="divides 4"):
        two_processes.trainer(world=Processes(0, 3)).load_state(four)
    pair.load_state(four)
    assert pair.n_shards == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards": 3, "batch_size": 12}, "3 cannot be shared by 2 processes"),
        ({"shards": 2, "batch_size": 15}, "batch_size: 15 rows cannot be shared by 2 shards"),
        ({"shards": 2, "reverse_batch_size": 9}, "reverse_batch_size: 9 rows"),
        (
            {"shards": 2, "natural_gradient": {"rows": 8, "batch_size": 3}},
            "natural_gradient.batch_size: 3 rows",
        ),
    ],
)
def test_batches_that_do_not_divide_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        two_processes.trainer(world=Processes(0, 2), **settings).run()


def test_objectives_with_one_buffer_are_not_sharded():
    ladder = TemperatureLadder(
        two_processes.flow(), two_processes.target(), temperatures=[1.0], stage_steps=2, buffer_size=10, batch_size=4
    )
    with pytest.raises(ValueError, match="TemperatureLadder cannot be split into 2 shards"):
        two_processes.trainer(loss=ladder, shards=2).run()


def test_processes_are_those_of_the_environment(monkeypatch):
    assert started_processes() == processes() == Processes()
    assert processes().collect(1) == processes().gather_objects(1) == [1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert started_processes() == Processes()  # a variable of another program
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert started_processes() == Processes(1, 2)
    assert not started_processes().is_first
    assert local_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--nproc-per-node 1"):
        local_device("cuda")
    with pytest.raises(ValueError, match="names one GPU"):
        local_device("cuda:0")


def test_files_that_differ_between_processes_are_refused(monkeypatch):
    world = Processes(0, 2)
    monkeypatch.setattr(Processes, "gather_objects", lambda self, value: [value, "other"])
    with pytest.raises(CheckpointMismatchError, match=r"the same data \(process 0: mine; process 1: other"):
        world.require_same("data", "mine")
