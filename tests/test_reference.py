"""Simulations that go on: what is unfinished is asked for, what is finished is not done again, others are refused."""

import numpy as np
import pytest

from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError
from boltzflow.io.config import SimulationConfig
from boltzflow.reference import simulate
from boltzflow.simulation import ParallelTempering
from boltzflow.systems import load_system

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


def test_several_processes_are_refused(alanine, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="runs in one process, got 2"):
        simulate(alanine, SETTINGS)
