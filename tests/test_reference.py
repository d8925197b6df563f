"""Simulations that go on: what is unfinished is asked for, what is finished is not done again, others are refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from boltzflow import reference
from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError
from boltzflow.io.config import SimulationConfig
from boltzflow.reference import simulate
from boltzflow.run import make_rng
from boltzflow.simulation import ParallelTempering
from boltzflow.systems import load_system

ROOT = Path(__file__).parents[1]
SETTINGS = SimulationConfig(n=12, chains=3, stride=1, burn_in=4, seed=5)


@pytest.fixture(scope="module")
def alanine():
    return load_system("alanine_dipeptide")


@pytest.fixture
def broken(alanine, tmp_path, monkeypatch):
    """A simulation that was interrupted after two of four records; its output."""
    sweep, count = ParallelTempering._sweep, []

    def stop(simulation):
        count.append(1)
        if len(count) > 4 + 2:
            raise KeyboardInterrupt
        return sweep(simulation)

    monkeypatch.setattr(ParallelTempering, "_sweep", stop)
    part = simulate(alanine, SETTINGS, path=tmp_path / "e.h5", save_every=0.0)
    monkeypatch.undo()
    assert part.provenance.interrupted
    assert len(Ensemble.load(tmp_path / "e.h5")) == 6
    return tmp_path / "e.h5"


def test_an_interrupted_simulation_goes_on_and_a_finished_one_is_left_alone(alanine, broken):
    # without a seed it is that of the file
    found = simulate(alanine, SETTINGS.model_copy(update={"seed": None}), path=broken, resume=True)
    whole = simulate(alanine, SETTINGS)
    assert np.array_equal(found.samples["positions"], whole.samples["positions"])
    assert found.provenance.ledger == whole.provenance.ledger
    assert not found.provenance.interrupted
    assert [path.name for path in broken.parent.iterdir()] == ["e.h5"]
    before = broken.stat().st_mtime_ns
    again = simulate(alanine, SETTINGS, path=broken, resume=True)
    assert np.array_equal(again.samples["positions"], whole.samples["positions"])
    assert broken.stat().st_mtime_ns == before
    with pytest.raises(CheckpointMismatchError, match=r"finished simulation with other settings \(stride\)"):
        simulate(alanine, SETTINGS.model_copy(update={"stride": 2}), path=broken, resume=True)


def test_what_does_not_fit_an_unfinished_simulation_is_refused(alanine, broken):
    with pytest.raises(FileExistsError, match="give --resume, or remove it"):
        simulate(alanine, SETTINGS, path=broken)
    with pytest.raises(CheckpointMismatchError, match="chains: 3 there, 4 here"):
        simulate(alanine, SETTINGS.model_copy(update={"chains": 4}), path=broken, resume=True)
    with pytest.raises(CheckpointMismatchError, match="temperature: 300"):
        simulate(load_system("alanine_dipeptide@310"), SETTINGS, path=broken, resume=True)
    unfinished = broken.with_name("e.h5.unfinished")
    unfinished.write_bytes(unfinished.read_bytes()[:1000])
    with pytest.raises(CheckpointMismatchError, match="damaged; remove it"):
        simulate(alanine, SETTINGS, path=broken, resume=True)


@pytest.mark.parametrize("changes", [{}, {"keep": "all", "max_temperature": 1.25}, {"method": "md"}], ids=str)
def test_shards_are_simulations_of_their_own_and_go_on_after_a_kill(changes, alanine, tmp_path, monkeypatch):
    settings = SETTINGS.model_copy(update={"n": 16, "chains": 4, "shards": 2, **changes})
    whole = simulate(alanine, settings)
    first = [make_rng(5, shard).initial_seed() for shard in (0, 1)]
    n_rungs = 2 if changes.get("keep") == "all" else 1
    own = settings.model_copy(update={"n": 8, "chains": 2, "shards": None})
    parts = [simulate(alanine, own.model_copy(update={"seed": seed})).samples["positions"] for seed in first]
    shape = (-1, n_rungs, 2, *parts[0].shape[1:])
    joined = np.concatenate([part.reshape(shape) for part in parts], 2)
    assert np.array_equal(whole.samples["positions"], joined.reshape(whole.samples["positions"].shape))
    spent = whole.provenance
    assert (len(whole), spent.seed, spent.interrupted) == (16, 5, False)
    assert len(spent.extra["simulation"]["shards"]) == 2
    if n_rungs == 1:
        assert np.unique(whole.chain).tolist() == [0, 1, 2, 3]
    run, count = reference._run, []

    def stop(*arguments, **options):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    monkeypatch.setattr(reference, "_run", stop)
    with pytest.raises(KeyboardInterrupt):
        simulate(alanine, settings, path=tmp_path / "e.h5")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["e.h5.0.unfinished"]
    with pytest.raises(CheckpointMismatchError, match="shards: 2 there, 4 here"):
        simulate(alanine, settings.model_copy(update={"shards": 4}), path=tmp_path / "e.h5", resume=True)
    asked = settings.model_copy(update={"shards": None, "seed": None})
    found = simulate(alanine, asked, path=tmp_path / "e.h5", resume=True)
    assert np.array_equal(found.samples["positions"], whole.samples["positions"])
    assert np.array_equal(found.log_weights, whole.log_weights)
    assert found.provenance.ledger == spent.ledger
    assert [path.name for path in tmp_path.iterdir()] == ["e.h5"]
    assert len(simulate(alanine, asked, path=tmp_path / "e.h5", resume=True)) == 16


def test_two_processes_make_the_file_of_one(alanine, tmp_path):
    command = "simulate alanine_dipeptide -n 16 --chains 4 --stride 1 --burn-in 4 --seed 5 -o e.h5"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "boltzflow"]
    words = [*launch, *command.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("16 frames of alanine_dipeptide") == 1
    mine = simulate(alanine, SETTINGS.model_copy(update={"n": 16, "chains": 4, "shards": 2}))
    theirs = Ensemble.load(tmp_path / "e.h5")
    for column in ("log_weights", "reduced_energies", "chain", "frame"):
        assert np.array_equal(getattr(mine, column), getattr(theirs, column)), column
    assert np.array_equal(mine.samples["positions"], theirs.samples["positions"])
    assert mine.provenance.ledger == theirs.provenance.ledger
    assert mine.provenance.extra == theirs.provenance.extra
    assert [path.name for path in tmp_path.iterdir()] == ["e.h5"]


def test_shards_that_do_not_divide_are_refused(alanine, monkeypatch):
    match = r"divides 3 chains and is a multiple of 1 processes, got 2"
    with pytest.raises(ValueError, match=match):
        simulate(alanine, SETTINGS.model_copy(update={"shards": 2}))


def test_frames_of_particles_have_no_centre_of_mass():
    """Chains with adapted, unequal masses drift, which their energy does not see."""
    settings = SimulationConfig(n=60, chains=3, stride=2, burn_in=60, max_temperature=1.5, seed=1)
    frames = simulate(load_system("dw4"), settings, progress=False)
    assert abs(frames.samples["positions"].mean(1)).max() < 1e-5
