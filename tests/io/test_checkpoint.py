"""Checkpoints: what goes in comes out, and what is wrong with a file is said."""

import dataclasses
import os

import numpy as np
import pytest
import torch

from boltzflow.errors import CheckpointMismatchError
from boltzflow.generators.families import build_generator
from boltzflow.io.checkpoint import VERSION, load_checkpoint, save_checkpoint, strip_checkpoint
from boltzflow.io.config import GeneratorConfig, RunConfig
from boltzflow.systems import load_system

CONFIG = RunConfig(system="alanine_dipeptide", generator=GeneratorConfig(n_couplings=2, hidden=(8,), n_bins=4))


@pytest.fixture(scope="module")
def system():
    return load_system("alanine_dipeptide")


@pytest.fixture(scope="module")
def generator(system):
    made = build_generator(system, CONFIG.generator, dtype=torch.float64)
    for k, parameter in enumerate(made.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k), dtype=parameter.dtype)
        parameter.data += 0.02 * noise
    return made


@pytest.fixture
def path(tmp_path, system, generator):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, generator=generator, system=system, config=CONFIG)
    return path


def rewrite(path, **changes):
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)


def test_round_trip_draws_the_same_samples(path, system, generator):
    loaded = system.load_generator(checkpoint=path, dtype=torch.float64)
    mine, theirs = (g.sample(50, system.target, seed=3) for g in (generator, loaded))
    assert (mine.log_weights == theirs.log_weights).all()
    assert (mine.samples["positions"] == theirs.samples["positions"]).all()
    assert not loaded.training


def test_it_is_self_describing(path, system):
    checkpoint = load_checkpoint(path)
    assert checkpoint.config == CONFIG
    assert (checkpoint.system, checkpoint.fingerprint) == ("alanine_dipeptide", system.fingerprint)
    assert checkpoint.temperature == 300.0
    assert {"python", "torch"} <= set(checkpoint.versions)
    assert checkpoint.training is None


def test_at_another_temperature_the_samples_are_the_same_and_weighted_for_it(path, system):
    warm = load_system("alanine_dipeptide@400")
    one, two = (
        s.load_generator(checkpoint=path, dtype=torch.float64).sample(50, s.target, seed=3) for s in (system, warm)
    )
    assert (one.samples["positions"] == two.samples["positions"]).all()
    u, v = one.reduced_energies, two.reduced_energies
    finite = np.isfinite(u)
    np.testing.assert_allclose(v[finite] * 400, u[finite] * 300, rtol=1e-10)
    np.testing.assert_allclose((two.log_weights - one.log_weights)[finite], (u - v)[finite], rtol=1e-6, atol=1e-6)


def test_moving_average_is_what_samples(tmp_path, system, generator):
    path = tmp_path / "checkpoint.pt"
    averaged = {name: p.detach() + 1.0 for name, p in generator.named_parameters()}
    save_checkpoint(path, generator=generator, system=system, config=CONFIG, averaged=averaged)
    fresh = build_generator(system, CONFIG.generator, dtype=torch.float64)
    checkpoint = load_checkpoint(path, system)
    checkpoint.load_into(fresh)
    assert all(torch.equal(p, averaged[name]) for name, p in fresh.named_parameters())
    checkpoint.load_into(fresh, averaged=False)
    before = dict(generator.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in fresh.named_parameters())


def test_training_state_survives(tmp_path, system, generator):
    optimizer = torch.optim.AdamW(generator.parameters())
    sum(p.sum() for p in generator.parameters()).backward()
    before = [p.detach().clone() for p in generator.parameters()]
    optimizer.step()
    for p, value in zip(generator.parameters(), before, strict=True):
        p.data.copy_(value)
    training = {"step": 7, "seed": 2**62, "optimizer": optimizer.state_dict(), "ledger": {"energy": {"u": 10}}}
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, generator=generator, system=system, config=CONFIG, training=training)
    loaded = load_checkpoint(path, system).training
    assert (loaded["step"], loaded["seed"], loaded["ledger"]) == (7, 2**62, {"energy": {"u": 10}})
    torch.testing.assert_close(loaded["optimizer"]["state"], training["optimizer"]["state"], rtol=0, atol=0)


def test_stripped_checkpoint_samples_the_same_and_knows_its_cost(tmp_path, system, generator):
    path, small = tmp_path / "checkpoint.pt", tmp_path / "small.pt"
    averaged = {name: p.detach() * 0.9 for name, p in generator.named_parameters()}
    cost = {"step": 7, "seed": 3, "seconds": 1.5, "ledger": {"energy": {"u": 10}}}
    training = {**cost, "optimizer": {"state": {0: torch.zeros(100_000)}}}
    save_checkpoint(path, generator=generator, system=system, config=CONFIG, averaged=averaged, training=training)
    strip_checkpoint(path, small)
    assert small.stat().st_size < path.stat().st_size - 400_000
    stripped = load_checkpoint(small, system)
    assert (stripped.training, stripped.averaged, stripped.cost) == (None, {}, cost)
    one, two = (system.load_generator(checkpoint=p, dtype=torch.float64) for p in (path, small))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("group", ["parameters", "averaged"])
def test_non_finite_tensors_are_named(path, system, value, group):
    content = torch.load(path, weights_only=True)
    name = next(n for n, t in content["parameters"].items() if t.is_floating_point())
    spoiled = content["parameters"][name].clone()
    spoiled.view(-1)[0] = value
    rewrite(path, **{group: {**content["parameters"], name: spoiled}})
    with pytest.raises(CheckpointMismatchError, match=name):
        load_checkpoint(path, system)


def test_another_system_is_refused_with_both_fingerprints(path, system):
    rewrite(path, system={"name": "other", "fingerprint": "f" * 64, "temperature": 300.0})
    with pytest.raises(CheckpointMismatchError, match=f"'other'.*{'f' * 16}.*{system.fingerprint[:16]}"):
        load_checkpoint(path, system)


def test_newer_format_is_refused(path):
    rewrite(path, version=VERSION + 1, versions={"boltzflow": "9.9"})
    with pytest.raises(CheckpointMismatchError, match=r"9\.9; upgrade"):
        load_checkpoint(path)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(CheckpointMismatchError, match="damaged"):
        load_checkpoint(path)


def test_flipped_bytes_in_the_tensors_are_noticed(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0x55
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointMismatchError, match="damaged"):
        load_checkpoint(path)


def test_a_file_from_elsewhere(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"state_dict": {"a": torch.zeros(3)}}, path)
    with pytest.raises(CheckpointMismatchError, match="not a checkpoint of boltzflow"):
        load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(CheckpointMismatchError, match="not a checkpoint of boltzflow"):
        load_checkpoint(path)


def test_nothing_in_the_file_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "harmful.pt"
    torch.save({"format": "boltzflow-checkpoint", "version": 1, "parameters": Harmful()}, path)
    with pytest.raises(CheckpointMismatchError):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_missing_entry_and_missing_file(path, tmp_path):
    content = torch.load(path, weights_only=True)
    del content["parameters"]
    torch.save(content, path)
    with pytest.raises(CheckpointMismatchError, match="'parameters' is missing"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file"):
        load_checkpoint(tmp_path / "none.pt")


def test_configuration_of_another_version_names_the_key(path):
    config = CONFIG.model_dump(mode="json")
    config["generator"]["n_cuplings"] = config["generator"].pop("n_couplings")
    rewrite(path, config=config)
    with pytest.raises(CheckpointMismatchError, match=r"n_cuplings.*n_couplings"):
        load_checkpoint(path)


def test_parameters_that_do_not_fit(path, system):
    checkpoint = load_checkpoint(path, system)
    wider = CONFIG.generator.model_copy(update={"hidden": (16,)})
    with pytest.raises(CheckpointMismatchError, match="do not fit"):
        checkpoint.load_into(build_generator(system, wider, dtype=torch.float64))
    fewer = dataclasses.replace(checkpoint, parameters=dict(list(checkpoint.parameters.items())[1:]))
    with pytest.raises(CheckpointMismatchError, match="do not fit"):
        fewer.load_into(build_generator(system, CONFIG.generator, dtype=torch.float64))


def test_a_failed_write_leaves_the_previous_file(path, system, generator, monkeypatch):
    before = path.read_bytes()

    def full_disk(content, file):
        with open(file, "wb") as out:
            out.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, generator=generator, system=system, config=CONFIG)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]
