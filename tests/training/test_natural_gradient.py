"""The natural gradient: scores, the solution with the Fisher matrix, Newton steps, exact resumption, refusals."""

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.generators.normal_base import normal_base
from boltzflow.io.config import TrainingConfig
from boltzflow.io.natural_gradient_config import NaturalGradientConfig
from boltzflow.networks import NeighbourField, PairField, vector_field
from boltzflow.objectives import PathKL
from boltzflow.run import Run, make_rng
from boltzflow.targets import DoubleWellCluster, Gaussian
from boltzflow.training import NaturalGradient, Trainer, parameter_scores
from boltzflow.transitions import ElementwiseSpline, EulerFlow, RandomWalkMetropolis, SplineCoupling
from boltzflow.transitions.affine import Affine
from tests.training.test_trainer import TrainingState, parameters, stored


def particles(kind):
    field = {
        "pair": lambda: PairField([0] * 4, 2, reach=6.0, n_basis=6, n_times=2),
        "neighbour": lambda: NeighbourField([0] * 4, 2, reach=6.0, hidden=5, n_features=3, n_basis=6),
    }[kind]()
    rng = make_rng(1)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=rng)
    base = normal_base(DoubleWellCluster(), scale=1.5)
    return Generator(base, [EulerFlow(field, n_steps=3)]).double()


def splines():
    """A spline for every coordinate."""
    rng = make_rng(2)
    generator = Generator(Gaussian(3), [ElementwiseSpline(["line"] * 3, field="x", bins=4)]).double()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=rng)
    return generator


@pytest.mark.parametrize("make", [lambda: particles("pair"), lambda: particles("neighbour"), splines])
def test_scores_are_the_gradients_of_the_density_at_fixed_samples(make):
    generator = make()
    scores = parameter_scores(generator, 4, make_rng(5))
    run, state = Run(make_rng(0)), generator.base.sample(4, make_rng(5))
    for transition in generator.transitions:
        state, _ = transition(state, run)
    state = state.detach()
    trained = [p for p in generator.parameters() if p.requires_grad]
    for row, log_q in zip(scores, generator.log_prob(state), strict=True):
        exact = torch.cat([g.flatten() for g in torch.autograd.grad(log_q, trained, retain_graph=True)])
        torch.testing.assert_close(row, exact, rtol=1e-7, atol=1e-9)
    assert scores.abs().max() > 0.1


def test_scores_of_compiled_fields_are_the_same_row_by_row(monkeypatch):
    monkeypatch.setattr(vector_field, "_compiled", lambda what: lambda field, x, t: getattr(field, what)(x, t))
    generator = particles("neighbour")
    mapped = parameter_scores(generator, 3, make_rng(5))
    generator.transitions[0].field.is_compiled = True
    rows = parameter_scores(generator, 3, make_rng(5))
    torch.testing.assert_close(rows, mapped, rtol=1e-9, atol=1e-9)


def test_scores_have_no_mean():
    """E_q[∂ log q] = 0, within its statistical error."""
    scores = parameter_scores(particles("pair"), 4000, make_rng(6))
    z = scores.mean(0) / (scores.std(0) / len(scores) ** 0.5)
    assert z.abs().max() < 4.5
    assert z.square().mean() < 3


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_the_solution_is_that_with_the_whole_matrix(factor):
    """And of a score far longer than others as much counts as ten median lengths are."""
    generator = particles("neighbour")
    natural = NaturalGradient(generator, NaturalGradientConfig(rows=30, batch_size=12, damping=0.2))
    natural.draw([make_rng(1)])
    natural.draw([make_rng(2)])
    own = natural.state[natural._parameters[0]]
    own["scores"][7] *= factor
    own["products"][7] *= factor
    own["products"][:, 7] *= factor
    lengths = own["scores"].norm(dim=1)
    counted = (10.0 * lengths.median() / lengths).clamp(max=1.0)
    assert natural.shortened == float((counted < 1).double().mean())
    assert factor == 1.0 or counted[7] < 0.5
    scores = counted[:, None] * own["scores"]
    fisher = scores.T @ scores / 30
    damped = fisher + 0.2 * fisher.trace() / len(fisher) * torch.eye(len(fisher), dtype=fisher.dtype)
    g = torch.randn(len(fisher), dtype=fisher.dtype, generator=make_rng(3))
    torch.testing.assert_close(natural.solve(g), torch.linalg.solve(damped, g), rtol=1e-9, atol=1e-9)


def gaussian(**natural):
    """KL(q‖p) of a diagonal normal q: a Newton step halves nothing, it arrives."""
    target = Gaussian(3, mean=torch.tensor([1.0, -2.0, 0.5]), scale=torch.tensor([0.5, 1.0, 2.0])).double()
    affine = Affine(torch.zeros(3), torch.ones(3), field="x", learnable=True)
    generator = Generator(Gaussian(3), [affine]).double()
    config = TrainingConfig(
        steps=40,
        reverse_batch_size=256,
        learning_rate=0.5,
        warmup_steps=0,
        clip_gradient=None,
        dtype="float64",
        seed=2,
        natural_gradient={"rows": 512, "damping": 1e-3, "momentum": 0.5, "max_change": 1.0, **natural},
    )
    return Trainer(PathKL(generator, target, forward=0.0, reverse=1.0), config), target


def test_a_few_steps_fit_a_normal_distribution():
    run, target = gaussian()
    run.run()
    ensemble = run.objective.generator.sample(2000, target, seed=1)
    assert ensemble.ess() > 0.999 * 2000


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit():
    whole, _ = gaussian()
    whole.run()
    first, _ = gaussian()
    for _ in range(7):
        first.train_step()
    saved = stored(first)
    second, _ = gaussian()
    second.objective.load_state_dict(saved["parameters"])
    second.load_state(TrainingState(**saved["state"]))
    second.run()
    assert torch.equal(parameters(second), parameters(whole))


def test_scores_are_drawn_before_the_first_step_that_is_taken():
    """Steps whose gradient was not finite come before any draw."""
    run, _ = gaussian()
    backward, calls = run._backward, []

    def fails_at_first(shard):
        loss, logged = backward(shard)
        calls.append(shard)
        return (loss * torch.nan if len(calls) == 1 else loss), logged

    run._backward = fails_at_first
    assert run.train_step() == {}
    assert run.train_step() != {}
    assert run.optimizer.state[run.parameters[0]]["n_rows"] == 512


def test_weight_decay_is_refused():
    run, _ = gaussian()
    config = run.config.model_copy(update={"weight_decay": 0.1})
    with pytest.raises(ValueError, match="weight_decay"):
        Trainer(run.objective, config)


def test_long_steps_are_shortened():
    run, _ = gaussian(max_change=0.01, momentum=0.0)
    before = parameters(run)
    run.train_step()
    scores = run.optimizer.state[run.parameters[0]]["scores"]
    change = (scores @ (parameters(run) - before)).square().mean().sqrt()
    assert change.item() == pytest.approx(0.01 * 0.5, rel=1e-6)


def test_generators_without_a_density_are_refused():
    affine = Affine(torch.zeros(3), torch.ones(3), field="x", learnable=True)
    stochastic = Generator(Gaussian(3), [affine, RandomWalkMetropolis(0.1)])
    with pytest.raises(TypeError, match="Bijections"):
        NaturalGradient(stochastic, NaturalGradientConfig(rows=4)).draw([make_rng(1)])


def test_couplings_are_refused_by_name():
    coupling = SplineCoupling(["line"] * 2, torch.tensor([True, False]), field="x", bins=4, hidden=[5])
    with pytest.raises(TypeError, match="cannot map one of SplineCoupling"):
        parameter_scores(Generator(Gaussian(2), [coupling]).double(), 4, make_rng(1))


def test_a_density_without_parameters_is_refused():
    generator = particles("neighbour")
    torch.nn.init.zeros_(generator.transitions[0].field.last.weight)
    for p in generator.parameters():
        p.data.zero_()
    fixed = [p.requires_grad_(requires_grad=False) for p in generator.parameters()]
    fixed[0].requires_grad_()
    natural = NaturalGradient(generator, NaturalGradientConfig(rows=4))
    natural.draw([make_rng(1)])
    fixed[0].grad = torch.ones_like(fixed[0])
    with pytest.raises(ValueError, match="no step to take"):
        natural.step()


def test_compiled_fields_are_called_in_training_alone(monkeypatch):
    """Compilation itself takes a minute; here what would be compiled is counted, and must change nothing."""
    called = []

    def count(what):
        called.append(what)
        return lambda field, x, t: getattr(field, what)(x, t)

    monkeypatch.setattr(vector_field, "_compiled", count)
    results = []
    for compiled in (False, True):
        config = TrainingConfig(
            steps=2, reverse_batch_size=4, learning_rate=0.1, dtype="float64", seed=2, compile=compiled
        )
        generator = particles("neighbour")
        run = Trainer(PathKL(generator, DoubleWellCluster().double(), forward=0.0, reverse=1.0), config)
        run.run()
        assert not generator.transitions[0].field.is_compiled
        assert len(called) == (2 * 2 * 3 if compiled else 0)  # steps, functions, Euler steps
        results.append(parameters(run))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_nothing_to_compile_is_refused():
    run, _ = gaussian()
    run.config = run.config.model_copy(update={"compile": True})
    with pytest.raises(ValueError, match=r"training\.compile"):
        run.run()
