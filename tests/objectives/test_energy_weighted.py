"""Energy-weighted flow matching: no data, buffers weighted to the target, a power that grows to 1."""

import torch

from boltzflow.generators import Generator
from boltzflow.io import parse_config
from boltzflow.io.config import TrainingConfig
from boltzflow.networks import ShallowField
from boltzflow.objectives import EnergyWeightedMatching, Step, build_objective
from boltzflow.run import make_rng
from boltzflow.targets import DoubleWell, Gaussian, GaussianMixture
from boltzflow.training import Trainer
from boltzflow.transitions import EulerFlow


def flow():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Generator(Gaussian(2, scale=2.0), [EulerFlow(ShallowField(2, 32), n_steps=8, name="x")]).double()


SIZES = {"n_stages": 4, "stage_steps": 100, "buffer_size": 2000, "batch_size": 128}


def test_it_learns_a_mixture_without_data():
    target = GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), scale=0.5).double()
    made = flow()
    before = made.sample(2000, target, seed=1).ess_fraction()
    objective = EnergyWeightedMatching(made, target, pairs="optimal", min_efficiency=0.1, **SIZES)
    config = TrainingConfig(steps=400, learning_rate=0.01, warmup_steps=5, ema_decay=0.9, seed=1, dtype="float64")
    trainer = Trainer(objective, config)
    trainer.run(progress=False)
    assert trainer.ledger.n_energy() == 4 * 2000
    assert trainer.ledger.n_force() == 0
    after = made.sample(4000, target, seed=1)
    assert after.ess_fraction() > max(2 * before, 0.3)
    assert abs(after.log_z().value - target.log_z) < 4 * after.log_z().error
    found = after.expectation(lambda state: (state["x"][:, 0] > 0).double())
    assert abs(found.value - 0.5) < 4 * found.error


def test_rows_are_drawn_in_proportion_to_their_weights():
    target = Gaussian(2, scale=1.0).double()
    objective = EnergyWeightedMatching(flow(), target, **{**SIZES, "buffer_size": 20_000, "batch_size": 20_000})
    _, logged = objective(Step(make_rng(1)))
    assert logged["power"] == 1.0
    # the untrained flow is the base: w ~ exp(−(1 − 1/4)|x|²/2), of efficiency 7/16
    assert abs(logged["buffer_ess_fraction"] - 7 / 16) < 0.02
    rows = objective._rows["x"][objective._draw_rows(Step(make_rng(2)))]
    assert abs(rows.square().mean() - 1.0) < 0.05


def test_far_from_the_target_weights_are_flattened():
    target = Gaussian(2, scale=0.05).double()
    objective = EnergyWeightedMatching(flow(), target, min_efficiency=0.2, **SIZES)
    _, logged = objective(Step(make_rng(1)))
    assert logged["target_ess_fraction"] < 0.01
    assert 0.0 < logged["power"] < 0.5
    assert abs(logged["buffer_ess_fraction"] - 0.2) < 0.01


def test_configuration():
    values = {"weight": 1.0, "method": "energy", "pairs": "independent", "stages": 3, "min_efficiency": 0.2}
    config = parse_config({"system": "dw4", "objective": {"likelihood": 0.0, "flow_matching": values}}).objective
    assert config.methods == ("EnergyWeightedMatching",)
    made = build_objective(flow(), DoubleWell(), config, batch_size=32)
    assert (made.n_stages, made.batch_size, made.min_efficiency) == (3, 32, 0.2)
    assert not made.needs_data
