"""The training loop: exact resumption, skipped and clipped steps, metrics, averages, a data-parallel wrapper."""

import io
import itertools
import json
import math
from dataclasses import asdict

import pytest
import torch

from boltzflow.errors import NonFiniteEnergyError
from boltzflow.generators import Generator
from boltzflow.io.config import TrainingConfig
from boltzflow.objectives import MaximumLikelihood, Mixture, Objective, PathLikelihood, ReverseKL
from boltzflow.run import make_rng
from boltzflow.targets import Gaussian
from boltzflow.training import ExponentialMovingAverage, Trainer, TrainingState, warmup_cosine
from boltzflow.transitions import RandomWalkMetropolis
from boltzflow.transitions.affine import Affine
from tests.training.two_processes import flow, target

CONFIG = {"steps": 24, "batch_size": 16, "reverse_batch_size": 8, "warmup_steps": 4, "log_every": 5, "seed": 3}


def objective():
    generator = flow()
    return Mixture([(1.0, MaximumLikelihood(generator)), (0.5, ReverseKL(generator, target()))])


def trainer(metrics=None, loss=None, **changes):
    config = TrainingConfig(**{**CONFIG, "checkpoint_every": 7, **changes})
    return Trainer(
        objective() if loss is None else loss, config, data=target().sample(60, make_rng(9)), metrics=metrics
    )


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.objective.parameters()])


def lines(path):
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


def stored(trainer):
    """Parameters and state as they come back from a file."""
    file = io.BytesIO()
    torch.save({"parameters": trainer.objective.state_dict(), "state": asdict(trainer.state())}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("step_size", "warnings"), [(1e4, 1), (0.3, 0)])
def test_a_stochastic_step_that_rejects_everything_is_reported_once(step_size, warnings, caplog):
    generator = Generator(flow().base, [*flow().transitions, RandomWalkMetropolis(step_size, n_steps=5)]).double()
    trainer(loss=PathLikelihood(generator, target()), steps=20).run()
    said = [r.getMessage() for r in caplog.records if "accepts 0." in r.getMessage()]
    assert len(said) == warnings
    assert all("or learned (generator.stochastic.learn_steps)" in text for text in said)


@pytest.mark.parametrize("stop", [1, 6, 7, 10, 23])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(stop, tmp_path):
    whole = trainer(tmp_path / "whole.jsonl")
    whole.run()
    first = trainer(tmp_path / "parts.jsonl", checkpoint_every=stop)
    saved = []

    def interrupt(trainer):
        saved.append(stored(trainer))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(on_checkpoint=interrupt)
    assert first.step == stop
    second = trainer(tmp_path / "parts.jsonl", seed=99)
    second.objective.load_state_dict(saved[0]["parameters"])
    second.load_state(TrainingState(**saved[0]["state"]))
    second.run()
    assert torch.equal(parameters(second), parameters(whole))
    for name, value in whole.ema.shadow.items():
        assert torch.equal(second.ema.shadow[name], value)
    assert second.ledger.as_dict() == whole.ledger.as_dict()
    assert lines(tmp_path / "parts.jsonl") == lines(tmp_path / "whole.jsonl")


def test_metrics_are_one_object_a_line_with_means_since_the_last(tmp_path):
    run = trainer(tmp_path / "metrics.jsonl", steps=12)
    logged = []
    step = run.train_step
    run.train_step = lambda: logged.append(step()) or logged[-1]
    run.run()
    found = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == [5, 10, 12]
    assert {"loss", "nll", "reverse_kl", "ess_fraction", "gradient_norm", "n_failed_data", "n_masked"} <= set(found[0])
    for line, rows in zip(found, (logged[:5], logged[5:10], logged[10:]), strict=True):
        for name in ("loss", "nll", "n_masked"):
            assert line[name] == pytest.approx(sum(float(row[name]) for row in rows) / len(rows), rel=1e-12)
        assert line["n_energy"] == line["n_force"] == 8 * line["step"]
    assert found[0]["learning_rate"] == pytest.approx(
        1e-3 * warmup_cosine(4, n_steps=12, warmup_steps=4, final_fraction=0.01)
    )


def test_training_lowers_the_loss():
    run = trainer(steps=200, learning_rate=2e-2, ema_decay=0.9)
    step = run.train_step
    losses = []
    run.train_step = lambda: losses.append(step()) or losses[-1]
    run.run()
    nll = [float(row["nll"]) for row in losses]
    best = -target().log_prob(run.data).mean().item()
    assert sum(nll[:20]) / 20 > best + 0.2
    assert sum(nll[-20:]) / 20 < best + 0.15


class Sometimes(Objective):
    """NaN loss or gradient at some steps."""

    needs_samples = True

    def __init__(self, generator, *, bad, gradient=False):
        super().__init__(generator)
        self.bad, self.gradient, self.calls = set(bad), gradient, 0

    def forward(self, step):
        shift = self.generator.transitions[0].shift
        loss = shift.square().sum()
        if self.calls in self.bad:
            loss = loss + (0 * (shift - shift).sqrt().sum() if self.gradient else torch.nan * loss)
        self.calls += 1
        return loss, {"size": loss.detach()}


def sometimes(**options):
    affine = Affine(torch.tensor([1.0, 2.0]), torch.ones(2), field="x", learnable=True)
    return Sometimes(Generator(Gaussian(2), [affine]).double(), **options)


@pytest.mark.parametrize("gradient", [False, True])
def test_steps_that_are_not_finite_are_left_out_and_counted(gradient, tmp_path):
    run = trainer(tmp_path / "m.jsonl", sometimes(bad=(0, 6, 7), gradient=gradient), steps=10, warmup_steps=0)
    run.run()
    clean = trainer(None, sometimes(bad=()), steps=10, warmup_steps=0)
    assert run.n_skipped == 3
    assert run.step == 10
    assert torch.isfinite(parameters(run)).all()
    assert run.ema.n_updates == 7
    clean.train_step()
    found = lines(tmp_path / "m.jsonl")
    assert [line["n_skipped"] for line in found] == [1, 3]
    # the mean is over the steps that were taken
    assert 4.5 < found[0]["size"] < 5.0


def test_a_line_without_any_step_taken_is_still_json(tmp_path):
    run = trainer(tmp_path / "m.jsonl", sometimes(bad=range(5)), steps=10)
    run.run()
    first, second = lines(tmp_path / "m.jsonl")
    assert "loss" not in first
    assert first["n_skipped"] == 5
    assert second["loss"] > 0


class Undefined(Sometimes):
    def forward(self, step):
        loss, _ = super().forward(step)
        return loss, {"undefined": torch.tensor(torch.nan), "infinite": torch.tensor(torch.inf)}


def test_numbers_that_are_not_finite_are_null_in_the_metrics(tmp_path):
    loss = Undefined(sometimes(bad=()).generator, bad=())
    trainer(tmp_path / "m.jsonl", loss, steps=5).run()
    (line,) = (tmp_path / "m.jsonl").read_text().splitlines()

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(line, parse_constant=refuse)
    assert found["undefined"] is None
    assert found["infinite"] is None


def test_many_steps_that_are_not_finite_raise():
    run = trainer(None, sometimes(bad=range(5, 1000)), steps=1000)
    with pytest.raises(NonFiniteEnergyError, match=r"50 steps in a row \(step 55\)"):
        run.run()
    # the count goes on over an interruption
    broken = trainer(None, sometimes(bad=range(1000)), steps=30)
    broken.run()
    again = trainer(None, sometimes(bad=range(1000)), steps=1000)
    again.load_state(TrainingState(**stored(broken)["state"]))
    with pytest.raises(NonFiniteEnergyError, match=r"step 50"):
        again.run()


def test_gradients_are_clipped_and_the_clipped_steps_are_counted():
    sizes = {}
    for bound in (None, 1e9, 0.1):
        run = trainer(clip_gradient=bound, steps=1, warmup_steps=0)
        norm = run.train_step()["gradient_norm"].item()
        # gradients of the step, as they were after clipping
        sizes[bound] = math.sqrt(sum(p.grad.square().sum().item() for p in run.parameters))
        assert norm == pytest.approx(sizes[None])
        assert run.n_clipped == (bound == 0.1)
    assert sizes[1e9] == pytest.approx(sizes[None])
    assert sizes[0.1] == pytest.approx(0.1, rel=1e-4)


def test_the_schedule_warms_up_and_decays():
    rates = [warmup_cosine(k, n_steps=100, warmup_steps=10, final_fraction=0.1) for k in range(101)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert warmup_cosine(200, n_steps=100, warmup_steps=0, final_fraction=0.1) == pytest.approx(0.1)
    assert warmup_cosine(0, n_steps=5, warmup_steps=10, final_fraction=0.1) == 0.1


def test_the_average_forgets_its_start_and_follows():
    module = torch.nn.Linear(1, 1, bias=False)
    average = ExponentialMovingAverage(module, decay=0.5)
    expected = module.weight.item()
    for k in range(1, 6):
        with torch.no_grad():
            module.weight.fill_(float(k))
        average.update()
        decay = min(0.5, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * k
        assert average.shadow["weight"].item() == pytest.approx(expected, rel=1e-6)
    other = ExponentialMovingAverage(torch.nn.Linear(1, 1, bias=False), decay=0.5)
    other.load_state_dict(average.state_dict())
    assert other.n_updates == 5
    assert torch.equal(other.shadow["weight"], average.shadow["weight"])
    assert not average.shadow["weight"].requires_grad


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="needs training data, got none"):
        Trainer(objective(), TrainingConfig())
    frozen = objective().requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="no parameters that require a gradient"):
        Trainer(frozen, TrainingConfig(), data=target().sample(5, make_rng(0)))


def test_data_are_not_handed_to_objectives_that_do_not_read_them():
    run = trainer(None, sometimes(bad=()))
    assert run.data is None
    seeds = {Trainer(sometimes(bad=()), TrainingConfig()).seed for _ in range(3)}
    assert len(seeds) == 3


def test_a_data_parallel_wrapper_of_the_objective_trains_the_same(tmp_path):
    plain, wrapped = trainer(steps=6), trainer(steps=6)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped.objective = torch.nn.parallel.DistributedDataParallel(wrapped.objective)
        wrapped.run()
    finally:
        torch.distributed.destroy_process_group()
    plain.run()
    assert torch.allclose(parameters(wrapped), parameters(plain), rtol=1e-12)
    assert wrapped.ledger.n_energy() == plain.ledger.n_energy() == 48
