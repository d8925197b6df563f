"""Runs from a configuration: training data, run folders that are killed and resumed, what a model cost, files."""

import itertools
import json

import mdtraj
import numpy as np
import pytest
import torch

from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.errors import CheckpointMismatchError, NonFiniteEnergyError
from boltzflow.generators import Generator
from boltzflow.io.checkpoint import load_checkpoint, strip_checkpoint
from boltzflow.io.config import parse_config
from boltzflow.run import make_rng
from boltzflow.systems import load_system
from boltzflow.targets import Gaussian, Target, harmonic_pair
from boltzflow.training import Trainer
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.resampling import SystematicResampling
from boltzflow.workflow import path_log_weights, sample_to_file, train, training_data

GENERATOR = {"n_couplings": 2, "hidden": [8], "n_bins": 4, "n_marginal_bins": 4}
TRAINING = {
    "steps": 7,
    "batch_size": 8,
    "reverse_batch_size": 4,
    "warmup_steps": 2,
    "checkpoint_every": 3,
    "log_every": 2,
    "seed": 5,
    "dtype": "float64",
}


@pytest.fixture(scope="module")
def alanine():
    return load_system("alanine_dipeptide")


def frames_of(alanine, n=30, **options):
    noise = 0.002 * torch.randn(n, alanine.n_atoms, 3, generator=make_rng(1), dtype=torch.float64)
    energies = options.pop("reduced_energies", np.zeros(n))
    log_weights = options.pop("log_weights", np.zeros(n))
    samples = {"positions": (alanine.positions + noise).numpy()}
    return Ensemble(
        samples=samples, log_weights=log_weights, reduced_energies=energies, target="alanine_dipeptide", **options
    )


@pytest.fixture(scope="module")
def data(alanine, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.h5"
    ledger = {"energy": {"alanine_dipeptide": 1000}, "force": {"alanine_dipeptide": 900}, "nonfinite": {}}
    frames_of(alanine, provenance=Provenance(ledger=ledger)).save(path)
    return path


def run_of(data, **changes):
    values = {
        "system": "alanine_dipeptide",
        "generator": {**GENERATOR, **changes.pop("generator", {})},
        "objective": {"likelihood": 1.0, "reverse_kl": 0.01, "data": str(data), **changes.pop("objective", {})},
        "training": {**TRAINING, **changes},
    }
    return parse_config(values)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(run_of(data), folder)


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def killed_at(monkeypatch, step):
    """Training dies in this step, as if by a signal."""
    original = Trainer.train_step

    def dying(self):
        if self.step == step:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", dying)
    return lambda: monkeypatch.setattr(Trainer, "train_step", original)


@pytest.mark.parametrize("steps", [[2], [3], [4, 6]])
def test_a_killed_run_ends_as_the_unbroken_one(steps, data, whole, tmp_path, monkeypatch):
    for step in steps:
        revive = killed_at(monkeypatch, step)
        with pytest.raises(KeyboardInterrupt):
            train(run_of(data), tmp_path, resume=True)
        revive()
    # a line that was cut off in the middle, and lines of steps that are done again
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 7, "lo')
    resumed = train(run_of(data), tmp_path, resume=True)
    folder, generator = whole
    for (name, a), (_, b) in zip(resumed.state_dict().items(), generator.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    mine, theirs = load_checkpoint(tmp_path / "checkpoint.pt"), load_checkpoint(folder / "checkpoint.pt")
    for name, value in theirs.parameters.items():
        assert torch.equal(mine.parameters[name], value), name
    assert {**mine.cost, "seconds": 0} == {**theirs.cost, "seconds": 0}
    assert metrics(tmp_path) == metrics(folder)


@pytest.mark.parametrize("method", ["ladder", "transport"])
def test_a_run_killed_within_a_buffer_draws_it_again(method, tmp_path, monkeypatch):
    annealing = {"method": method, "hot_steps": 1, "stages": 2, "stage_steps": 2, "buffer_size": 30, "max_kl": 0.1}
    objective = {"likelihood": 0.0, "path_forward_kl": 1.0, "annealing": annealing}
    config = parse_config(
        {"system": "alanine_dipeptide", "generator": GENERATOR, "objective": objective}
        | {"training": {**TRAINING, "steps": 6, "checkpoint_every": 1}}
    )
    unbroken = train(config, tmp_path / "whole")
    # the second step on the first buffer
    revive = killed_at(monkeypatch, 2 if method == "ladder" else 1)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "killed")
    revive()
    resumed = train(config, tmp_path / "killed", resume=True)
    for (name, a), (_, b) in zip(resumed.state_dict().items(), unbroken.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    energies = [
        load_checkpoint(tmp_path / folder / "checkpoint.pt").cost["ledger"]["energy"]["alanine_dipeptide"]
        for folder in ("whole", "killed")
    ]
    # two buffers, and two steps of the terms with 4 rows each
    assert energies[0] == 2 * 30 + 2 * 4
    assert energies[1] == energies[0] + 30


def test_metrics_have_one_line_per_interval_and_one_at_the_end(whole):
    found = metrics(whole[0])
    assert [line["step"] for line in found] == [2, 4, 6, 7]
    assert [line["n_energy"] for line in found] == [1000 + 4 * line["step"] for line in found]
    assert [line["n_force"] for line in found] == [900 + 4 * line["step"] for line in found]


def test_a_finished_run_is_a_generator_of_its_system(whole, alanine):
    folder, generator = whole
    loaded = alanine.load_generator(checkpoint=folder / "checkpoint.pt", dtype=torch.float64)
    assert not generator.training
    a, b = (g.sample(20, alanine.target, seed=1, max_failed_fraction=1.0) for g in (generator, loaded))
    assert np.array_equal(a.log_weights, b.log_weights)
    assert json.loads((folder / "run.json").read_text())["training"]["steps"] == 7


def test_what_a_model_cost_is_counted_over_all_stages_once(whole, data, alanine, tmp_path):
    first = load_checkpoint(whole[0] / "checkpoint.pt").cost
    assert first["ledger"]["energy"] == {"alanine_dipeptide": 1000 + 4 * 7}
    stripped = tmp_path / "stripped.pt"
    strip_checkpoint(whole[0] / "checkpoint.pt", stripped)
    initial = load_checkpoint(stripped)
    train(run_of(data, steps=2, seed=6), tmp_path / "second", initial=stripped)
    second = load_checkpoint(tmp_path / "second" / "checkpoint.pt")
    # the same data again cost nothing
    assert second.cost["ledger"]["energy"] == {"alanine_dipeptide": 1000 + 4 * 9}
    assert second.cost["ledger"]["force"] == {"alanine_dipeptide": 900 + 4 * 9}
    # two small steps away from where the first stage ended, not from where it started
    for name, value in second.averaged.items():
        assert (value - initial.parameters[name]).abs().max() < 3 * 1e-3, name
    other = tmp_path / "other.h5"
    ensemble = Ensemble.load(data)
    ensemble.samples["positions"] = ensemble.samples["positions"][::-1].copy()
    ensemble.save(other)
    train(run_of(other, steps=2), tmp_path / "third", initial=stripped)
    third = load_checkpoint(tmp_path / "third" / "checkpoint.pt").cost
    assert third["ledger"]["energy"] == {"alanine_dipeptide": 2 * 1000 + 4 * 9}
    assert len(third["data"]) == 2


def test_a_flow_for_another_energy_of_the_same_coordinates_is_a_start(tmp_path, caplog):
    (tmp_path / "dilute").mkdir()
    text = (load_system("dw4").folder / "system.yaml").read_text().replace("name: dw4", "name: dilute")
    (tmp_path / "dilute" / "system.yaml").write_text(text + "arguments: {a: 0.5}\n")
    settings = {
        "generator": {"family": "continuous_flow", "continuous": {"field": "pair", "n_steps": 2}},
        "objective": {"likelihood": 0.0, "path_reverse_kl": 1.0},
        "training": TRAINING,
    }
    train(parse_config({"system": str(tmp_path / "dilute"), **settings}), tmp_path / "first")
    first = tmp_path / "first" / "checkpoint.pt"
    with caplog.at_level("INFO", logger="boltzflow"):
        train(parse_config({"system": "dw4", **settings}), tmp_path / "second", initial=first)
    assert "was trained for dilute" in caplog.text
    assert load_checkpoint(tmp_path / "second" / "checkpoint.pt").cost["ledger"]["energy"] == {
        "dilute": 4 * 7,
        "dw4": 4 * 7,
    }
    # weights of another architecture are none
    wider = {**settings["generator"]["continuous"], "n_basis": 7}
    settings["generator"] = {"family": "continuous_flow", "continuous": wider}
    with pytest.raises(CheckpointMismatchError, match="n_basis"):
        train(parse_config({"system": "dw4", **settings}), tmp_path / "third", initial=first)


def test_runs_that_do_not_fit_are_refused(whole, data, tmp_path, alanine):
    folder = whole[0]
    with pytest.raises(FileExistsError, match="--resume"):
        train(run_of(data), folder)
    with pytest.raises(CheckpointMismatchError, match=r"another configuration \(training\.\w+: \S+ there, \S+ here\)"):
        train(run_of(data, learning_rate=1e-2), folder, resume=True)
    with pytest.raises(CheckpointMismatchError, match=r"another generator \(n_bins: 4 there, 5 here\)"):
        train(run_of(data, generator={"n_bins": 5}), tmp_path / "new", initial=folder / "checkpoint.pt")
    strip_checkpoint(folder / "checkpoint.pt", tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointMismatchError, match="was stripped"):
        train(run_of(data), tmp_path, resume=True)


def test_resuming_on_other_data_is_refused(data, tmp_path, monkeypatch):
    path = tmp_path / "data.h5"
    path.write_bytes(data.read_bytes())
    revive = killed_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        train(run_of(path), tmp_path / "run")
    revive()
    ensemble = Ensemble.load(data)
    ensemble.samples["positions"] = ensemble.samples["positions"] + 1.0
    ensemble.save(path)
    with pytest.raises(CheckpointMismatchError, match="other data"):
        train(run_of(path), tmp_path / "run", resume=True)


def test_data_are_relabelled_into_the_sector(alanine):
    ensemble = frames_of(alanine)
    # two hydrogens of a methyl group exchanged in one frame, the mirror image in another
    methyl = next(
        [
            a.index
            for a in c.residue.atoms
            if a.element.symbol == "H" and (min(a.index, c.index), max(a.index, c.index)) in alanine.bonds
        ]
        for c in alanine.topology.atoms
        if c.name in ("CH3", "CB")
    )
    spoilt = ensemble.samples["positions"].copy()
    spoilt[3][methyl[:2]] = spoilt[3][methyl[1::-1]]
    spoilt[5] *= [1.0, 1.0, -1.0]
    ensemble.samples["positions"] = spoilt
    found = training_data(ensemble, alanine, dtype=torch.float32)
    assert len(found) == 29
    assert found.dtype == torch.float32
    assert alanine.sector.contains(found["positions"]).all()
    # the same atoms in the same places, but for the names of these hydrogens
    before, after = frames_of(alanine).samples["positions"][3], found["positions"][3].numpy()
    rest = [i for i in range(alanine.n_atoms) if i not in methyl]
    assert np.allclose(after[rest], before[rest], atol=1e-6)
    assert np.allclose(np.sort(after[methyl], axis=0), np.sort(before[methyl], axis=0), atol=1e-6)


def test_data_with_weights_are_resampled_to_equal_ones(alanine):
    log_weights = np.full(30, -np.inf)
    log_weights[[4, 7]] = 0.0
    ensemble = frames_of(alanine, log_weights=log_weights)
    found = training_data(ensemble, alanine, dtype=torch.float64)["positions"].numpy()
    expected = ensemble.samples["positions"]
    assert sum(np.array_equal(row, expected[4]) for row in found) == 15
    assert sum(np.array_equal(row, expected[7]) for row in found) == 15


def test_data_that_do_not_fit_are_refused(alanine):
    ensemble = frames_of(alanine)
    mirrored = frames_of(alanine)
    mirrored.samples["positions"] = mirrored.samples["positions"] * [1.0, 1.0, -1.0]
    with pytest.raises(ValueError, match="none of 30 frames lies in the sector"):
        training_data(mirrored, alanine, dtype=torch.float64)
    small = Ensemble(
        samples={"positions": ensemble.samples["positions"][:, :5]},
        log_weights=np.zeros(30),
        reduced_energies=np.zeros(30),
        target="five atoms",
    )
    with pytest.raises(CheckpointMismatchError, match="expected 22 atoms of alanine_dipeptide, got 5"):
        training_data(small, alanine, dtype=torch.float64)


def test_atoms_in_another_order_are_refused(alanine):
    order = [0, 1, 2, 3, 4, 6, 5, *range(7, 22)]
    frames = frames_of(alanine)
    values = {"log_weights": frames.log_weights, "reduced_energies": frames.reduced_energies, "target": frames.target}

    def with_topology(topology):
        return Ensemble(samples=frames.samples, topology=topology, **values)

    shuffled = mdtraj.Topology()
    chain = shuffled.add_chain()
    residue = shuffled.add_residue("ALA", chain)
    own = list(with_topology(alanine.topology).topology.atoms)
    for k in order:
        shuffled.add_atom(own[k].name, own[k].element, residue)
    message = "expected atoms in the order of alanine_dipeptide, but atom 5 is N .N. there and O .O. here; reorder"
    with pytest.raises(CheckpointMismatchError, match=message):
        training_data(with_topology(shuffled), alanine, dtype=torch.float64)
    assert len(training_data(with_topology(alanine.topology), alanine, dtype=torch.float64)) > 0


@pytest.fixture
def pair():
    first, second = harmonic_pair(2)
    return Generator(first.double(), [MALA(0.1, level=0.5)]).double(), second.double()


def test_sampling_to_a_file_gives_what_sampling_gives(pair, tmp_path):
    generator, target = pair
    found = sample_to_file(generator, target, tmp_path / "e.h5", n=25, seed=3, batch_size=10, extra={"system": "pair"})
    expected = generator.sample(25, target, seed=3, batch_size=10)
    loaded = Ensemble.load(tmp_path / "e.h5")
    assert np.array_equal(loaded.log_weights, expected.log_weights)
    assert np.array_equal(found.samples["x"], expected.samples["x"])
    assert not loaded.provenance.interrupted
    assert loaded.provenance.extra["system"] == "pair"


class Failing(Target):
    """An error of the energy after some calls, or NaN from the sampler."""

    def __init__(self, inner, error, after):
        super().__init__(inner.fields, log_z=inner.log_z)
        self.inner, self.error, self.calls, self.after = inner, error, itertools.count(), after

    def reduced_energy(self, state, context=None):
        if next(self.calls) >= self.after:
            raise self.error
        return self.inner.reduced_energy(state, context)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("lost the device")])
def test_finished_shards_are_kept_in_the_file(error, tmp_path):
    target, path = Gaussian(2).double(), tmp_path / "e.h5"
    generator = Generator(Gaussian(2, scale=1.2).double(), [])
    failing = Failing(target, error, after=2)
    if isinstance(error, KeyboardInterrupt):
        assert sample_to_file(generator, failing, path, n=50, seed=3, batch_size=10).provenance.interrupted
    else:
        with pytest.raises(RuntimeError, match="lost the device"):
            sample_to_file(generator, failing, path, n=50, seed=3, batch_size=10)
    kept = Ensemble.load(path)
    assert len(kept) == 20
    assert kept.provenance.interrupted
    assert np.array_equal(kept.log_weights, generator.sample(50, target, seed=3, batch_size=10).log_weights[:20])
    with pytest.raises(type(error)):
        sample_to_file(generator, Failing(target, error, after=0), tmp_path / "none.h5", n=50, batch_size=10)
    assert not (tmp_path / "none.h5").exists()


def test_a_file_is_topped_up_to_what_sampling_at_one_go_gives(pair, tmp_path):
    generator, target = pair
    path, options = tmp_path / "e.h5", {"seed": 3, "batch_size": 10, "extra": {"system": "pair"}}
    sample_to_file(generator, target, path, n=20, **options)
    # the seed is that of the file, if none is given
    sample_to_file(generator, target, path, n=35, resume=True, **{**options, "seed": None})
    expected = generator.sample(35, target, seed=3, batch_size=10)
    found = Ensemble.load(path)
    assert np.array_equal(found.log_weights, expected.log_weights)
    assert np.array_equal(found.groups, expected.groups)
    assert found.provenance.ledger == expected.provenance.ledger
    assert found.provenance.extra["sampling"] == {"n": 35, "batch_size": 10}
    again = sample_to_file(generator, target, path, n=35, resume=True, **options)
    assert again.provenance.ledger == expected.provenance.ledger


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed: 3 there, 4 here"),
        ({"batch_size": 5}, "batch_size: 10 there, 5 here"),
        ({"extra": {"system": "other"}}, "system: pair there, other here"),
        ({"n": 20}, "it holds 25 samples"),
        ({"n": 40}, "its last shard is not one of 10 rows"),
    ],
)
def test_files_that_were_sampled_in_another_way_are_not_topped_up(changes, message, pair, tmp_path):
    generator, target = pair
    options = {"n": 25, "seed": 3, "batch_size": 10, "extra": {"system": "pair"}}
    sample_to_file(generator, target, tmp_path / "e.h5", **options)
    before = (tmp_path / "e.h5").read_bytes()
    with pytest.raises(CheckpointMismatchError, match=message):
        sample_to_file(generator, target, tmp_path / "e.h5", resume=True, **{**options, **changes})
    with pytest.raises(CheckpointMismatchError, match="dtype: float64 there, float32 here"):
        sample_to_file(generator.float(), target, tmp_path / "e.h5", resume=True, **options)
    generator.double()
    assert (tmp_path / "e.h5").read_bytes() == before


def test_few_populations_are_not_topped_up_to_many(tmp_path):
    target, path = Gaussian(2).double(), tmp_path / "e.h5"
    generator = Generator(Gaussian(2, scale=1.2).double(), [SystematicResampling(threshold=1.0)])
    sample_to_file(generator, target, path, n=50, seed=3, batch_size=5)
    with pytest.raises(CheckpointMismatchError, match="few resampled populations"):
        sample_to_file(generator, target, path, n=100, seed=3, batch_size=5, resume=True)
    found = sample_to_file(generator, target, path, n=95, seed=3, batch_size=5, resume=True)
    expected = generator.sample(95, target, seed=3, batch_size=5)
    assert np.array_equal(found.groups, expected.groups)
    assert np.array_equal(found.group_sizes, expected.group_sizes)
    assert found.provenance.extra["populations"] == expected.provenance.extra["populations"]


def test_many_failures_raise_after_the_file_is_written(tmp_path):
    class Spoilt(Gaussian):
        def sample(self, n, rng, context=None):
            state = super().sample(n, rng, context)
            return state.replace(x=state["x"].log())

    generator = Generator(Spoilt(1).double(), [])
    with pytest.raises(NonFiniteEnergyError, match="is written, but the model gave NaN or inf"):
        sample_to_file(generator, Gaussian(1).double(), tmp_path / "e.h5", n=100, seed=1)
    assert Ensemble.load(tmp_path / "e.h5").provenance.n_failed > 20


def test_path_weights_of_a_reference_do_not_depend_on_its_batches(tmp_path):
    first, second = (t.double() for t in harmonic_pair(2))
    generator = Generator(first, [])
    ensemble = Generator(second, []).sample(25, second, seed=1)
    expected = first.reduced_energy(ensemble.to_state()) - second.reduced_energy(ensemble.to_state())
    for size in (7, 100):
        found = path_log_weights(generator, ensemble, second, batch_size=size)
        assert torch.allclose(found, expected, rtol=1e-12)
        assert not found.requires_grad
    kernel = Generator(first, [MALA(0.1, level=0.5)]).double()
    a, b, c = (path_log_weights(kernel, ensemble, second, batch_size=7, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
