"""Divergences with α = 2: gradients against quadrature, modes found by annealing, the buffer and its checkpoint."""

import math

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.io.config import BootstrapConfig, ObjectiveConfig, TrainingConfig
from boltzflow.objectives import AnnealedBootstrap, ChiSquared, ReplayBuffer, ReverseKL, Step, build_objective
from boltzflow.run import make_rng
from boltzflow.state import Space, State
from boltzflow.targets import Gaussian, GaussianMixture
from boltzflow.training import Trainer
from boltzflow.transitions import compiled
from boltzflow.transitions.affine import Affine
from boltzflow.transitions.coupling import SplineCoupling
from boltzflow.transitions.mala import MALA

from .test_objectives import MEAN, STD, affine, gradients, nonlinear, target


@pytest.fixture(autouse=True, scope="module")
def eager():
    with compiled.uncompiled():
        yield


def exact_gradient(generator):
    """∇ log ∫ p²/q of an affine flow, by quadrature along each axis."""
    step = generator.transitions[0]
    x = torch.linspace(-25, 25, 20001, dtype=torch.float64)[:, None]

    def log_normal(mean, scale):
        return -0.5 * ((x - mean) / scale) ** 2 - torch.log(scale) - 0.5 * math.log(2 * math.pi)

    log_ratio = 2 * log_normal(MEAN, STD) - log_normal(step.shift, step.log_scale.exp())
    total = torch.logsumexp(log_ratio, 0).sum()
    return torch.cat(torch.autograd.grad(total, list(step.parameters())))


@pytest.mark.parametrize("kind", ["own samples", "annealed"])
def test_the_gradient_is_that_of_the_divergence(kind):
    # wider than the target, so that p²/q exists
    generator = affine(shift=(0.2, -0.7), scale=(1.7, 0.9))

    def term():
        if kind == "own samples":
            return ChiSquared(generator, target(), max_weight=1e9)
        return AnnealedBootstrap(generator, target(), n_levels=3, n_leapfrog=2, step_size=0.3)

    found = torch.stack([gradients(term(), rng=make_rng(7, k), n_samples=5000)[1] for k in range(30)])
    expected, error = exact_gradient(generator), found.std(0) / 30**0.5
    assert ((found.mean(0) - expected).abs() < 4.5 * error + 2e-3).all(), (found.mean(0), expected, error)
    assert expected.abs().max() > 0.1


def test_chi_squared_has_no_variance_at_the_target():
    own = nonlinear().as_target()
    _, gradient, logged = gradients(ChiSquared(nonlinear(), own))
    assert gradient.abs().max() < 1e-12
    assert logged["ess_fraction"].item() == pytest.approx(1.0)


def fractions(objective, generator, means, *, steps):
    optimiser = torch.optim.Adam(generator.parameters(), 1e-2)
    for k in range(steps):
        optimiser.zero_grad()
        objective(Step(make_rng(0, k), n_samples=128, index=k))[0].backward()
        optimiser.step()
    with torch.no_grad():
        x = generator.rollout(2000, objective._target_of_test, make_rng(9)).end["x"]
    nearest = torch.cdist(x, means).argmin(1)
    return torch.stack([(nearest == k).double().mean() for k in range(len(means))])


def test_annealing_finds_modes_that_reverse_kl_leaves():
    angle = torch.arange(4, dtype=torch.float64) * math.pi / 2 + 0.3
    means = 4.0 * torch.stack([angle.cos(), angle.sin()], 1)
    modes = GaussianMixture(means, scale=0.6).double()

    def flow():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            masks = [torch.tensor([k % 2 == 0, k % 2 == 1]) for k in range(4)]
            steps = [SplineCoupling(["line"] * 2, m, field="x", hidden=(16,), bound=7.0) for m in masks]
        return Generator(Gaussian(2, scale=torch.full((2,), 1.5)), steps).double()

    found = {}
    for kind in ("annealed", "reverse"):
        generator = flow()
        if kind == "annealed":
            term = AnnealedBootstrap(generator, modes, n_levels=4, n_leapfrog=3, step_size=0.4, updates=4)
        else:
            term = ReverseKL(generator, modes)
        term._target_of_test = modes
        found[kind] = fractions(term, generator, means, steps=80)
    assert (found["annealed"] > 0.15).all(), found
    assert found["reverse"].min() < 0.02, found


def test_the_target_is_pulled_back_through_fixed_maps_and_every_energy_is_counted():
    generator = affine(shift=(0.2, -0.7), scale=(1.7, 0.9))
    shift, scale = torch.tensor([1.0, 0.0]).double(), torch.tensor([2.0, 0.5]).double()
    longer = Generator(Gaussian(2), [generator.transitions[0], Affine(shift, scale, field="x")]).double()
    image = Gaussian(2, mean=shift + MEAN * scale, scale=STD * scale).double()
    options = {"n_levels": 2, "n_leapfrog": 3, "step_size": 0.3}
    losses = []
    for flow, energy in ((generator, target()), (longer, image)):
        step = Step(make_rng(1), n_samples=50)
        loss, _ = AnnealedBootstrap(flow, energy, **options)(step)
        losses.append(loss.item())
        # a trajectory starts where the last one ended, whose force is known
        assert step.ledger.n_energy() == step.ledger.n_force() == 50 * (2 * 3 + 1)
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_a_buffer_follows_the_model():
    x = torch.arange(4.0).double()[:, None]
    buffer, log_w = ReplayBuffer(), torch.tensor([0.0, 1.0, 2.0, -50.0]).double()
    buffer.add(State({"x": x}, {"x": Space("line", (1,))}), log_w, torch.zeros(4).double())
    rows = buffer.draw(20_000, make_rng(0))
    share = torch.bincount(rows, minlength=4) / 20_000
    error = (torch.softmax(log_w, 0) / 20_000).sqrt()
    assert ((share - torch.softmax(log_w, 0)).abs() < 4.5 * error + 1e-12).all()
    # p²/q falls by e where log q rises by one, once for a row that was drawn twice
    twice, log_q = torch.tensor([2, 2]), torch.ones(2).double()
    assert torch.allclose(buffer.correct(twice, log_q), torch.exp(torch.tensor([-1.0, -1.0]).double()))
    assert buffer.as_dict()["log_weights"].tolist() == [0.0, 1.0, 1.0, -50.0]
    buffer.keep(2)
    assert buffer.states(torch.tensor([0, 1]))["x"].flatten().tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="nothing to draw"):
        ReplayBuffer().draw(1, make_rng(0))


def test_a_resumed_run_continues_with_its_buffer():
    config = TrainingConfig(steps=7, reverse_batch_size=20, learning_rate=1e-2, warmup_steps=0, seed=3)

    def trainer():
        options = BootstrapConfig(weight=1.0, levels=2, leapfrog=2, step_size=0.3, updates=3, buffer_batches=2)
        objective = build_objective(nonlinear(), target(), ObjectiveConfig(likelihood=0.0, bootstrap=options))
        assert isinstance(objective, AnnealedBootstrap)
        return Trainer(objective, config)

    whole = trainer()
    whole.run(progress=False)
    first = trainer()
    for _ in range(5):
        first.train_step()
    second = trainer()
    second.objective.generator.load_state_dict(first.objective.generator.state_dict())
    second.load_state(first.state())
    second.run(progress=False)
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)
    assert len(second.objective.buffer) == 40
    assert second.ledger.as_dict() == whole.ledger.as_dict()


def test_what_cannot_be_bootstrapped_is_refused():
    with pytest.raises(TypeError, match="Bijections"):
        AnnealedBootstrap(Generator(Gaussian(2), [MALA(0.1)]), target())
    with pytest.raises(ValueError, match="updates"):
        AnnealedBootstrap(affine(), target(), updates=0)
    options = {"likelihood": 0.0, "bootstrap": {"weight": 1.0}, "annealing": {"method": "cooling"}}
    with pytest.raises(ValueError, match="one temperature"):
        build_objective(affine(), target(), ObjectiveConfig(**options))
