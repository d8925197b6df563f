"""Fields of angles: periodic, closed forms equal to autograd, and flow matching on the torus with exact weights."""

import math

import torch

from boltzflow.generators import Generator
from boltzflow.io.config import TrainingConfig
from boltzflow.networks import TorusField, VectorField
from boltzflow.objectives import FlowMatching, Step
from boltzflow.run import Run, make_rng
from boltzflow.targets import VonMises
from boltzflow.testing import check_transition
from boltzflow.training import Trainer
from boltzflow.transitions import EulerFlow


def field(d=3):
    made, rng = TorusField(d, 8).double(), make_rng(3)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return made


def angles(n, d=3):
    return VonMises(d).double().sample(n, make_rng(1))


def test_it_is_periodic_and_its_closed_forms_are_those_of_autograd():
    made, x = field(), angles(5)["x"]
    t = torch.linspace(0, 1, 5).double()
    torch.testing.assert_close(made(x + 2 * math.pi * torch.tensor([1.0, -2.0, 0.0]).double(), t), made(x, t))
    torch.testing.assert_close(made.jacobian(x, t), VectorField.jacobian(made, x, t))
    torch.testing.assert_close(made.divergence(x, t), VectorField.divergence(made, x, t))


def test_steps_on_the_torus_keep_the_contract():
    state = angles(8)
    check_transition(EulerFlow(field(), n_steps=3, name="x"), state, Run(make_rng(2)))
    far = state.replace(x=state["x"] + 3.0)
    assert EulerFlow(field(), n_steps=3, name="x")(far, Run(make_rng(2)))[0]["x"].abs().max() <= math.pi


def test_paths_go_the_shorter_way():
    made = Generator(VonMises(2), [EulerFlow(TorusField(2, 8), name="x")]).double()
    data = VonMises(2, mean=3.0, concentration=50.0).double().sample(300, make_rng(5))
    lengths = {}
    for pairs in ("independent", "optimal"):
        objective = FlowMatching(made, pairs=pairs)
        x0, x1 = objective._ends(Step(make_rng(1), data=data), "x")
        assert (x1 - x0).abs().max() <= math.pi
        torch.testing.assert_close(torch.cos(x1).sort(0).values, torch.cos(data["x"]).sort(0).values)
        lengths[pairs] = (x1 - x0).norm(dim=1).mean()
    assert lengths["optimal"] <= lengths["independent"]


def test_matched_to_data_it_has_exact_weights():
    target = VonMises(2, mean=torch.tensor([3.0, -1.0]), concentration=2.0).double()
    torch.manual_seed(0)
    made = Generator(VonMises(2), [EulerFlow(TorusField(2, 32), n_steps=8, name="x")]).double()
    before = made.sample(2000, target, seed=1).ess_fraction()
    config = TrainingConfig(
        steps=150, batch_size=128, learning_rate=0.01, warmup_steps=5, ema_decay=0.9, seed=1, dtype="float64"
    )
    rows = target.sample(3000, make_rng(7))
    Trainer(FlowMatching(made, pairs="optimal"), config, data=rows).run(progress=False)
    after = made.sample(10_000, target, seed=1, batch_size=10_000)
    assert after.ess_fraction() > 2 * before
    assert after.log_z().error < 0.03
    assert abs(after.log_z().z_score(0.0)) < 4
    mean = after.expectation(lambda state: torch.cos(state["x"][:, 0] - 3.0))
    two = torch.tensor(2.0, dtype=torch.float64)
    assert abs(mean.z_score(float(torch.special.i1(two) / torch.special.i0(two)))) < 4
