"""Rectification: pairs of the flow itself, straighter paths and the same end, stages that are resumed exactly."""

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.io import parse_config
from boltzflow.io.config import TrainingConfig
from boltzflow.networks import ShallowField
from boltzflow.objectives import Rectification, Step, build_objective
from boltzflow.run import make_rng
from boltzflow.targets import DoubleWell, Gaussian
from boltzflow.training import Trainer
from boltzflow.transitions import EulerFlow, PerturbedFlow


def curved(n_steps=20):
    """A flow that turns on the way: x' = A x, A a rotation."""
    field = ShallowField(2, 32).double()
    made = Generator(
        Gaussian(2, scale=torch.tensor([1.0, 0.3])), [EulerFlow(field, n_steps=n_steps, name="x")]
    ).double()
    rng = make_rng(3)
    x = 1.5 * torch.randn(400, 2, dtype=torch.float64, generator=rng)
    wanted = 1.2 * torch.stack([-x[:, 1], x[:, 0]], 1)
    with torch.no_grad():
        field.times.weight.zero_()
        hidden = field._hidden(x, 0.5)
        field.last.weight.copy_(torch.linalg.lstsq(hidden, wanted).solution.T)
    return made


def ends(made, n_steps, n=400):
    field, x = made.transitions[0].field, made.base.sample(n, make_rng(5))["x"]
    with torch.no_grad():
        for k in range(n_steps):
            x = x + field(x, k / n_steps) / n_steps
    return x


def test_pairs_are_those_of_the_flow_at_the_start_of_the_stage():
    made = curved()
    objective = Rectification(made, stage_steps=10)
    x0, x1 = objective._ends(Step(make_rng(5), n_samples=400), "x")
    assert torch.equal(x0, made.base.sample(400, make_rng(5))["x"])
    torch.testing.assert_close(x1, ends(made, 20))
    with torch.no_grad():
        made.transitions[0].field.last.weight.mul_(2.0)
    torch.testing.assert_close(objective._ends(Step(make_rng(5), n_samples=400, index=9), "x")[1], x1)
    assert (objective._ends(Step(make_rng(5), n_samples=400, index=10), "x")[1] - x1).abs().max() > 0.1


def test_it_straightens_paths_and_keeps_their_ends():
    made = curved()
    before, one_step = ends(made, 20), ends(made, 1)
    config = TrainingConfig(
        steps=250, reverse_batch_size=128, learning_rate=0.01, warmup_steps=5, ema_decay=0.9, seed=1, dtype="float64"
    )
    Trainer(Rectification(made), config).run(progress=False)
    after = ends(made, 1)
    # one step arrives where twenty did, which it did not before
    assert (after - before).norm(dim=1).mean() < 0.4 * (one_step - before).norm(dim=1).mean()
    assert (ends(made, 20) - before).norm(dim=1).mean() < 0.3 * before.norm(dim=1).mean()


def test_a_stage_is_resumed_exactly():
    made = curved()
    objective = Rectification(made)
    objective(Step(make_rng(1), n_samples=20))
    with torch.no_grad():
        made.transitions[0].field.last.weight.mul_(1.1)
    other = Rectification(made)
    other.recall(objective.memory())
    found, expected = (one(Step(make_rng(2), n_samples=20, index=3))[0] for one in (other, objective))
    assert torch.equal(found, expected)
    assert not any(p is q for p in objective.parameters() for q in objective._teacher[0].parameters())


def test_what_it_needs():
    perturbed = Generator(Gaussian(2), [PerturbedFlow(ShallowField(2, 4), name="x")])
    with pytest.raises(TypeError, match="one EulerFlow, got a PerturbedFlow"):
        Rectification(perturbed)
    values = {"weight": 1.0, "method": "rectified", "stage_steps": 50}
    config = parse_config({"system": "dw4", "objective": {"likelihood": 0.0, "flow_matching": values}}).objective
    assert config.methods == ("Rectification",)
    assert build_objective(curved(), DoubleWell(), config).stage_steps == 50
