"""kill -9 at random moments of simulate, train and sample: resumed, they end as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from boltzflow.ensemble import Ensemble

ROOT = Path(__file__).parents[1]
SEED = 20

TRAINING = {"steps": 30, "batch_size": 16, "seed": 1, "checkpoint_every": 2, "log_every": 3, "warmup_steps": 1}
RUN = {
    "system": "alanine_dipeptide",
    "generator": {"n_couplings": 2, "hidden": [8], "n_bins": 4, "n_marginal_bins": 4},
    "objective": {"likelihood": 1.0, "self_forward_kl": 0.1, "data": "whole-pt.h5"},
    "training": {**TRAINING, "reverse_batch_size": 8},
}
PT = "simulate alanine_dipeptide -n 80 --chains 4 --burn-in 12 --stride 1 --seed 4 --save-every 0"
SHARDS = "simulate alanine_dipeptide -n 40 --chains 4 --shards 2 --burn-in 6 --stride 1 --seed 4 --save-every 0"
MD = "simulate alanine_dipeptide --method md -n 60 --chains 2 --stride 5 --burn-in 10 --seed 4 --save-every 0"
SAMPLE = "sample whole-run -n 1510 --batch-size 50 --seed 3 --save-every 0"
JOBS = [
    (PT.split(), "pt.h5", "{}.unfinished"),
    (SHARDS.split(), "shards.h5", "{}.0.unfinished"),
    (MD.split(), "md.h5", "{}.unfinished"),
    (["train", "tiny.yaml"], "run", "{}/checkpoint.pt"),
    (SAMPLE.split(), "ensemble.h5", "{}"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which every job ran twice, unbroken and killed."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RUN))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "BOLTZFLOW_COMPILE": "0"}
    words = [sys.executable, "-m", "tests.killed_runs", str(SEED), json.dumps(JOBS)]
    found = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    return folder, json.loads(found.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["pt.h5", "shards.h5", "md.h5", "ensemble.h5"])
def test_ensembles_are_those_of_unbroken_runs(name, work):
    folder, _ = work
    killed, whole = Ensemble.load(folder / f"killed-{name}"), Ensemble.load(folder / f"whole-{name}")
    assert np.array_equal(killed.samples["positions"], whole.samples["positions"])
    for column in ("log_weights", "reduced_energies", "groups", "chain", "frame"):
        assert np.array_equal(getattr(killed, column), getattr(whole, column)), column
    mine, theirs = killed.provenance, whole.provenance
    assert mine.ledger == theirs.ledger
    assert (mine.seed, mine.n_nonfinite, mine.interrupted) == (theirs.seed, theirs.n_nonfinite, False)
    assert mine.extra == theirs.extra
    assert not list(folder.glob(f"killed-{name}.*unfinished"))


def test_training_is_that_of_an_unbroken_run(work):
    folder, _ = work
    killed, whole = (torch.load(folder / run / "checkpoint.pt") for run in ("killed-run", "whole-run"))
    for group in ("parameters", "averaged"):
        assert all(torch.equal(killed[group][name], value) for name, value in whole[group].items())
    assert {**killed["cost"], "seconds": 0} == {**whole["cost"], "seconds": 0}
    steps = [
        [{**json.loads(line), "seconds": 0} for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("killed-run", "whole-run")
    ]
    assert steps[0] == steps[1]


def test_the_kills_met_running_processes(work):
    assert all(kills >= 1 for kills in work[1]), work[1]
