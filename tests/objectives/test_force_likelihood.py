"""Path gradients from data: equal to autograd through the full log-determinant, in the mean that of the likelihood."""

import math

import pytest
import torch
from torch.func import functional_call

from boltzflow.generators import Generator
from boltzflow.io import parse_config
from boltzflow.io.config import TrainingConfig
from boltzflow.networks import EmbeddedField, PairField, VectorField
from boltzflow.objectives import ForceLikelihood, MaximumLikelihood, Mixture, Step, build_objective
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import DoubleWellCluster, Gaussian, MeanFreeGaussian
from boltzflow.training import Trainer
from boltzflow.transitions import MALA, AffineCoupling, EulerFlow
from boltzflow.transitions.transition import Bijection


def shuffled(module, size=0.05):
    rng = make_rng(3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(size * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return module


class Swirl(VectorField):
    """Particles about the first one, sideways: not a gradient."""

    def __init__(self):
        super().__init__()
        self.size = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, positions, t=0.0):
        r = positions - positions[:, :1]
        v = self.size * torch.sin(r.flip(-1)) * torch.tensor([1.0, -1.0], dtype=r.dtype)
        return v - v.mean(1, keepdim=True)


FIELDS = {
    "pair": lambda: PairField([0] * 4, 2, reach=4.0, n_basis=5, n_times=2),
    "embedded": lambda: EmbeddedField([0] * 4, 2, reach=4.0, hidden=6, n_features=4, n_basis=4),
    "swirl": Swirl,
}


def flow(field="pair", n_steps=3):
    made = Generator(MeanFreeGaussian(4, 2, scale=1.5), [EulerFlow(FIELDS[field](), n_steps=n_steps)]).double()
    return made if field == "swirl" else shuffled(made)


def cluster(n=6):
    return MeanFreeGaussian(4, 2, scale=1.6).double().sample(n, make_rng(1))


@pytest.mark.parametrize("field", FIELDS)
def test_scores_are_those_of_any_bijection(field):
    made, state = flow(field).transitions[0], cluster()
    score = {"positions": torch.randn(6, 4, 2, dtype=torch.float64, generator=make_rng(2))}
    x, ratio, found = made.reverse_with_score(state, Run(make_rng(0)), score)
    expected_x, expected_ratio, expected = Bijection.reverse_with_score(made, state, Run(make_rng(0)), score)
    torch.testing.assert_close(x["positions"], expected_x["positions"])
    torch.testing.assert_close(ratio, expected_ratio.detach())
    torch.testing.assert_close(found["positions"], expected["positions"], rtol=1e-9, atol=1e-10)
    assert not found["positions"].requires_grad
    # and back again
    _, _, again = made.forward_with_score(x.detach(), Run(make_rng(0)), found)
    torch.testing.assert_close(again["positions"], score["positions"], rtol=1e-9, atol=1e-10)


class PulledBack(torch.nn.Module):
    """log p₀(z) = log p(T(z)) + log|det ∂T/∂z| at fixed parameters, and T⁻¹ at others."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, z, target):
        state, total = z, 0.0
        for transition in self.generator.transitions:
            state, ratio = transition(state, Run(make_rng(0)))
            total = total + ratio
        return total - target.reduced_energy(state)


@pytest.mark.parametrize("field", FIELDS)
def test_gradients_are_those_of_autograd_through_the_full_determinant(field):
    made, target, data = flow(field), DoubleWellCluster().double(), cluster()
    loss, _ = ForceLikelihood(made, target)(Step(make_rng(0), data=data))
    found = torch.autograd.grad(loss, list(made.parameters()))
    z, _ = made.transitions[0].reverse(data, Run(make_rng(0)))
    density = PulledBack(made)
    frozen = {name: p.detach() for name, p in density.named_parameters()}
    log_p0 = functional_call(density, frozen, (z, target))
    expected = torch.autograd.grad((log_p0 - made.base.log_prob(z)).mean(), list(made.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


def test_in_the_mean_it_is_the_gradient_of_the_likelihood_with_less_noise():
    target = Gaussian(2, scale=1.3).double()
    made = Generator(
        Gaussian(2), [AffineCoupling(["line"] * 2, torch.tensor([True, False]), field="x", hidden=(4,))]
    ).double()
    shuffled(made, 0.1)
    gradients = {"force": [], "likelihood": []}
    for k in range(100):
        data = target.sample(100, make_rng(4, k))
        for name, objective in (("force", ForceLikelihood(made, target)), ("likelihood", MaximumLikelihood(made))):
            loss, _ = objective(Step(make_rng(0), data=data))
            grads = torch.autograd.grad(loss, list(made.parameters()))
            gradients[name].append(torch.cat([g.flatten() for g in grads]))
    force, likelihood = (torch.stack(rows) for rows in gradients.values())
    difference = force - likelihood
    z = difference.mean(0) / (difference.std(0) / 10).clamp_min(1e-12)
    assert z.abs().max() < 4
    assert force.var(0).sum() < 0.3 * likelihood.var(0).sum()


def test_there_is_no_noise_where_the_model_is_right():
    base = MeanFreeGaussian(4, 2).double()
    made = Generator(base, [EulerFlow(FIELDS["pair"](), n_steps=2)]).double()
    loss, logged = ForceLikelihood(made, base)(Step(make_rng(0), data=cluster()))
    (gradient,) = torch.autograd.grad(loss, list(made.parameters()))
    assert gradient.abs().max() < 1e-12
    assert logged["nll"] == pytest.approx(float(-base.log_prob(cluster()).mean()))


def test_forces_are_evaluated_once():
    made, target = flow(), DoubleWellCluster().double()
    rows = cluster(50)
    config = TrainingConfig(steps=5, batch_size=20, warmup_steps=1, learning_rate=1e-3, seed=1, dtype="float64")
    terms = Mixture([(1.0, ForceLikelihood(made, target)), (0.5, MaximumLikelihood(made))])
    trainer = Trainer(terms, config, data=rows)
    trainer.run(progress=False)
    assert trainer.ledger.n_force(target.name) == 50
    assert trainer.ledger.n_energy(target.name) == 50
    again = Trainer(ForceLikelihood(made, target), config, data=rows)
    again.train_step()
    assert again.ledger.n_force(target.name) == 20  # not prepared, every batch is evaluated


def test_training_improves_the_weights():
    target = MeanFreeGaussian(4, 2, scale=1.5).double()
    made = shuffled(Generator(MeanFreeGaussian(4, 2), [EulerFlow(FIELDS["pair"](), n_steps=3)]).double(), 0.0)
    before = made.sample(500, target, seed=3).ess_fraction()
    config = TrainingConfig(steps=40, batch_size=64, warmup_steps=5, learning_rate=0.03, ema_decay=0.5, seed=1)
    Trainer(ForceLikelihood(made, target), config, data=target.sample(500, make_rng(5))).run(progress=False)
    after = made.sample(500, target, seed=3)
    assert after.ess_fraction() > min(1.5 * before, 0.9)
    log_z = after.log_z()
    assert abs(log_z.value) < 4 * log_z.error


def test_rows_without_an_image_or_a_force_take_no_part():
    made, target = flow(), DoubleWellCluster().double()
    good, bad = cluster(4), cluster(6)["positions"].clone()
    bad[4] = torch.nan
    bad[5, 0] = 1e200
    objective = ForceLikelihood(made, target)
    loss, logged = objective(Step(make_rng(0), data=good.replace(positions=bad)))
    expected, _ = objective(Step(make_rng(0), data=good))
    assert logged["n_failed_data"] == 2
    found, wanted = (torch.autograd.grad(one, list(made.parameters()))[0] for one in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_what_it_needs():
    target = DoubleWellCluster().double()
    with pytest.raises(TypeError, match="needs a Generator of Bijections"):
        ForceLikelihood(Generator(MeanFreeGaussian(4, 2), [MALA(0.1)]), target)
    config = parse_config({"system": "dw4", "objective": {"likelihood": 0.0, "force_likelihood": 1.0}}).objective
    assert config.methods == ("ForceLikelihood",)
    assert isinstance(build_objective(flow(), target, config), ForceLikelihood)
    values = {"likelihood": 0.0, "force_likelihood": 1.0, "annealing": {"method": "cooling"}}
    annealed = parse_config({"system": "dw4", "objective": values}).objective
    with pytest.raises(ValueError, match="data at the temperature of their forces, and annealing changes it"):
        build_objective(flow(), target, annealed)


def test_a_generator_of_several_fields():
    spaces = {"x": Space("line", (2,)), "y": Space("line", (2,))}

    class Twist(Bijection):
        def forward(self, state, run):
            ratio = torch.full((len(state),), 2 * math.log(2.0), dtype=torch.float64)
            return state.replace(x=state["x"] + torch.sin(state["y"]), y=2 * state["y"]), ratio

        def reverse(self, state, run):
            ratio = torch.full((len(state),), -2 * math.log(2.0), dtype=torch.float64)
            return state.replace(x=state["x"] - torch.sin(state["y"] / 2), y=state["y"] / 2), ratio

    x, y = (torch.randn(3, 2, dtype=torch.float64, generator=make_rng(k)) for k in (1, 2))
    score = {"x": x.flip(0), "y": y.flip(0)}
    z, _, found = Twist().reverse_with_score(State({"x": x, "y": y}, spaces), Run(make_rng(0)), score)
    torch.testing.assert_close(found["x"], score["x"])
    torch.testing.assert_close(found["y"], torch.cos(z["y"]) * score["x"] + 2 * score["y"])
