"""Flow maps of few steps: the sign of the mean velocity, and a distilled map that ends where the flow does."""

import json
import math

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.io import load_checkpoint, parse_config
from boltzflow.networks import VectorField
from boltzflow.objectives import FlowMapDistillation, mean_velocity
from boltzflow.objectives.objective import Step
from boltzflow.run import make_rng
from boltzflow.targets import Gaussian
from boltzflow.transitions import Affine, EulerFlow
from boltzflow.workflow import train


class Rising(VectorField):
    """v = a + b t, the same everywhere."""

    def __init__(self, a=0.0, b=2.0):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def forward(self, positions, t=0.0):
        return self.a + self.b * t + 0.0 * positions


class Growing(VectorField):
    """v = c x."""

    def __init__(self, c=1.0):
        super().__init__()
        self.c = torch.nn.Parameter(torch.tensor(c, dtype=torch.float64))

    def forward(self, positions, t=0.0):
        return self.c * positions


def points(n=4):
    return torch.randn(n, 3, 2, dtype=torch.float64, generator=make_rng(1))


def test_mean_velocity_belongs_to_the_start_of_its_step():
    x, s, t = points(), 0.2, 0.7
    with torch.no_grad():
        torch.testing.assert_close(mean_velocity(Rising(), x, s, t), torch.full_like(x, s + t))
        exact = x * (math.exp(t - s) - 1) / (t - s)
        torch.testing.assert_close(mean_velocity(Growing(), x, s, t, substeps=40), exact, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("field", [Rising(), Growing()])
def test_the_identity_has_the_sign_of_an_anchor_at_the_start(field):
    x, t = points(1)[0], 0.7

    def u(x, s):
        return mean_velocity(field, x[None], s, t, substeps=40)[0]

    s = torch.tensor(0.2, dtype=torch.float64)
    v = field(x[None], s)[0].detach()
    value, slope = torch.autograd.functional.jvp(u, (x, s), (v, torch.ones_like(s)))
    torch.testing.assert_close(value, v + (t - s) * slope, rtol=1e-6, atol=1e-8)


def test_two_steps_are_distilled_from_the_whole_flow_without_energies():
    flow = EulerFlow(Growing(), n_steps=2)
    generator = Generator(Gaussian((3, 2), name="positions"), [flow]).double()
    objective = FlowMapDistillation(generator, substeps=20)
    step = Step(make_rng(2), n_samples=50)
    assert float(objective(step)[1]["relative"]) > 0.01
    optimiser = torch.optim.Adam(generator.parameters(), lr=0.05)
    for k in range(150):
        loss, logs = objective(Step(make_rng(3, k), n_samples=50))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(flow.field.c.detach()) == pytest.approx(2 * (math.exp(0.5) - 1), abs=1e-3)
    assert float(logs["relative"]) < 1e-5
    assert step.ledger.n_energy() == 0
    start = generator.rollout(5, Gaussian((3, 2), name="positions").double(), make_rng(4))
    torch.testing.assert_close(start.log_ratios[0].detach(), torch.full((5,), 6.0).double(), rtol=0.0, atol=1e-2)


def test_what_is_taught_is_remembered():
    generator = Generator(Gaussian((3, 2), name="positions"), [EulerFlow(Growing(0.5), n_steps=2)]).double()
    objective = FlowMapDistillation(generator)
    before = objective(Step(make_rng(1), n_samples=5))[0].detach()
    other = FlowMapDistillation(Generator(generator.base, [EulerFlow(Growing(0.1), n_steps=2)]).double())
    other.recall(objective.memory())
    other.generator.transitions[0].load_state_dict(generator.transitions[0].state_dict())
    torch.testing.assert_close(other(Step(make_rng(1), n_samples=5))[0].detach(), before)


def test_a_run_goes_on_from_a_flow_of_more_steps_and_keeps_what_it_was_taught(tmp_path):
    def config(n_steps, objective, steps, rate=0.05):
        field = {"field": "pair", "base_scale": 1.85, "n_steps": n_steps, "n_basis": 4, "n_times": 2}
        training = {"steps": steps, "batch_size": 16, "reverse_batch_size": 16, "seed": 1, "learning_rate": rate}
        return parse_config(
            {
                "system": "dw4",
                "generator": {"family": "continuous_flow", "continuous": field},
                "objective": {"likelihood": 0.0, "log_variance": 0.0} | objective,
                "training": training | {"warmup_steps": 0, "checkpoint_every": 2, "log_every": 1},
            }
        )

    train(config(8, {"reverse_kl": 1.0}, 3), tmp_path / "long")
    distil = {"flow_map": {"weight": 1.0, "substeps": 4}}
    started = tmp_path / "long" / "checkpoint.pt"
    train(config(2, distil, 30, 0.002), tmp_path / "short", initial=started)
    lines = [json.loads(line) for line in (tmp_path / "short" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["relative"] < 0.7 * lines[0]["relative"]
    taught = load_checkpoint(tmp_path / "short" / "checkpoint.pt").training["objective"]["taught"]
    trained = load_checkpoint(started)
    given = {**trained.parameters, **trained.averaged}
    assert taught
    assert all(torch.equal(value, given[f"transitions.0.field.{name}"]) for name, value in taught.items())
    train(config(2, distil, 32, 0.002), tmp_path / "short", resume=True)


def test_a_generator_without_a_flow_is_refused():
    generator = Generator(Gaussian(2), [Affine(torch.zeros(2), torch.ones(2), field="x")])
    with pytest.raises(TypeError, match="exactly one EulerFlow"):
        FlowMapDistillation(generator)
