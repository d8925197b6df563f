"""From untrained models to targets: buffers, ladders, transport, cooling; all modes at their exact weights."""

import math

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.io.config import AnnealingConfig, ObjectiveConfig, TrainingConfig
from boltzflow.objectives import (
    Cooling,
    MassTransport,
    PathKL,
    ReverseKL,
    Sequence,
    Step,
    TemperatureLadder,
    build_objective,
    geometric_ladder,
)
from boltzflow.run import make_rng
from boltzflow.targets import DoubleWell, Gaussian, Tempered
from boltzflow.training import Trainer
from boltzflow.transitions.coupling import SplineCoupling
from boltzflow.transitions.elementwise import ElementwiseSpline
from boltzflow.transitions.mala import MALA

from .test_objectives import MEAN, STD, Half, affine, nonlinear, target

SIZES = {"stage_steps": 3, "buffer_size": 5000, "batch_size": 5000, "clip_fraction": 0.0}


def gradient_of(objective, step):
    loss, logged = objective(step)
    assert not any(torch.as_tensor(v).requires_grad for v in logged.values())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(objective.parameters()))]), logged


@pytest.mark.parametrize("control_variate", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_buffer_gives_the_gradient_of_the_divergence_at_later_parameters_too(control_variate, temperature):
    deviation = STD * temperature**0.5
    found = []
    for k in range(30):
        generator = affine((0.2, -0.3), (1.6, 1.2))
        ladder = TemperatureLadder(
            generator, target(), temperatures=[temperature, 1.0], control_variate=control_variate, **SIZES
        )
        ladder(Step(make_rng(8, k)))  # draws the buffer
        step = generator.transitions[0]
        with torch.no_grad():
            step.shift += torch.tensor([0.1, -0.2])
            step.log_scale += torch.tensor([0.1, -0.1])
        gradient, logged = gradient_of(ladder, Step(make_rng(9, k), index=1))
        assert logged["temperature_ratio"] == temperature
        found.append(gradient)
    shift, scale = step.shift.detach(), step.log_scale.detach().exp()
    expected = torch.cat([(shift - MEAN) / scale**2, 1 - (deviation**2 + (shift - MEAN) ** 2) / scale**2])
    found = torch.stack(found)
    error = found.std(0) / 30**0.5
    # self-normalised weights bias by O(1/n)
    assert ((found.mean(0) - expected).abs() < 4.5 * error + 2e-3).all(), (found.mean(0), expected, error)


def test_chi_squared_adds_its_gradient_at_later_parameters_too():
    found = []
    for k in range(30):
        generator = affine((0.2, -0.6), (1.6, 1.2))
        ladder = TemperatureLadder(generator, target(), temperatures=[1.0, 1.0], chi_squared=0.5, **SIZES)
        ladder(Step(make_rng(8, k)))  # draws the buffer
        step = generator.transitions[0]
        with torch.no_grad():
            step.shift += torch.tensor([0.1, -0.1])
            step.log_scale += torch.tensor([0.05, -0.1])
        found.append(gradient_of(ladder, Step(make_rng(9, k), index=1))[0])
    shift, log_scale = (p.detach().clone().requires_grad_() for p in (step.shift, step.log_scale))
    scale = log_scale.exp()
    kl = (log_scale + (STD**2 + (shift - MEAN) ** 2) / (2 * scale**2)).sum()
    # ∫p²/q of two Gaussians, per coordinate
    spread = 2 * scale**2 - STD**2
    one = scale**2 / (STD * spread.sqrt()) * ((shift - MEAN) ** 2 / spread).exp()
    expected = torch.cat(torch.autograd.grad(kl + 0.5 * one.prod(), [shift, log_scale]))
    found = torch.stack(found)
    error = found.std(0) / 30**0.5
    assert ((found.mean(0) - expected).abs() < 4.5 * error + 5e-3).all(), (found.mean(0), expected, error)
    with pytest.raises(ValueError, match="needs the control variate"):
        TemperatureLadder(generator, target(), temperatures=[1.0], chi_squared=1.0, control_variate=False, **SIZES)


def test_the_control_variate_has_no_noise_at_the_target_where_the_likelihood_has_its_own():
    own = nonlinear().as_target()
    for control_variate, size in ((True, 0.0), (False, 1e-2)):
        ladder = TemperatureLadder(
            nonlinear(),
            own,
            temperatures=[1.0],
            control_variate=control_variate,
            chi_squared=0.5 * control_variate,
            **{**SIZES, "batch_size": 100},
        )
        gradient, logged = gradient_of(ladder, Step(make_rng(1)))
        assert logged["buffer_ess_fraction"].item() == pytest.approx(1.0)
        assert (gradient.abs().max() < 1e-12) if size == 0.0 else (gradient.abs().max() > size)


def test_energies_are_counted_once_per_row_and_stage_and_clashes_have_no_weight():
    ladder = TemperatureLadder(affine(), Half(torch.inf), temperatures=[1.5, 1.0], **SIZES)
    step = Step(make_rng(0))
    for index in range(6):
        step.index = index
        gradient, logged = gradient_of(ladder, step)
        assert torch.isfinite(gradient).all()
        assert logged["stage"] == index // 3
    assert (step.ledger.n_energy(), step.ledger.n_force()) == (10_000, 0)
    outside = ladder._rows["x"][:, 0] < 0.3
    assert 0 < outside.sum() < 5000
    assert (ladder._weight[outside] == 0).all()
    assert ladder._weight.mean().item() == pytest.approx(1.0)


def test_weights_are_clipped_at_a_quantile():
    sizes = {**SIZES, "clip_fraction": 0.01}
    ladder = TemperatureLadder(affine(), target(), temperatures=[1.0], **sizes)
    ladder(Step(make_rng(0)))
    weights = ladder._weight.sort().values
    assert (weights[-50:] - weights[-1]).abs().max() < 1e-12
    assert weights[-60] < weights[-1]


def test_transport_respects_its_bounds_stage_by_stage():
    transport = MassTransport(affine(), target(), n_stages=2, max_kl=0.05, max_entropy_loss=0.02, **SIZES)
    _, logged = gradient_of(transport, Step(make_rng(0)))
    assert logged["stage_kl"].item() <= 0.05 + 1e-9
    assert logged["stage_entropy_loss"].item() <= 0.02 + 1e-9
    assert max(logged["trust_multiplier"], logged["entropy_multiplier"]) > 0
    assert (transport._weight * transport._weight.log()).mean().item() == pytest.approx(logged["stage_kl"].item())


def flow():
    """Splines on two lines, the first of which the wells of `DoubleWell` divide."""
    lines = ["line"] * 2
    steps = [
        SplineCoupling(lines, torch.tensor([k, not k]), field="x", hidden=(16,), fused=False) for k in (True, False)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Generator(Gaussian(2), [*steps, ElementwiseSpline(lines, field="x", bins=16, fused=False)]).double()


ANNEALING = {
    "cooling": {"method": "cooling", "hottest": 6.0, "hot_steps": 60, "cooling_steps": 100},
    "ladder": {"method": "ladder", "hottest": 6.0, "hot_steps": 60, "stages": 5, "stage_steps": 25},
    "ladder of resampled rows": {
        "method": "ladder",
        "hottest": 6.0,
        "hot_steps": 60,
        "stages": 5,
        "stage_steps": 25,
        "control_variate": False,
    },
    "transport": {"method": "transport", "stages": 7, "stage_steps": 25, "max_kl": 0.3, "max_entropy_loss": 0.2},
}


@pytest.mark.parametrize("name", ANNEALING)
def test_all_modes_are_found_at_their_exact_weights(name):
    # 11 kT between the wells, of which one holds 16 %
    well = DoubleWell().double()
    config = ObjectiveConfig(
        likelihood=0.0, path_forward_kl=1.0, annealing=AnnealingConfig(buffer_size=4000, **ANNEALING[name])
    )
    generator = flow()
    training = TrainingConfig(
        steps=220,
        batch_size=256,
        reverse_batch_size=256,
        learning_rate=1e-2,
        warmup_steps=10,
        ema_decay=0.9,
        seed=1,
    )
    Trainer(build_objective(generator, well, config, batch_size=256), training).run(progress=False)
    ensemble = generator.sample(20_000, well, seed=2)
    left = ensemble.samples["x"][:, 0] < 0
    log_z, p_left = ensemble.log_z(), ensemble.expectation(left)
    assert ensemble.ess_fraction() > 0.7
    assert abs(log_z.value - well.log_z) < 4 * log_z.error
    assert abs(p_left.value - 0.155693) < 4 * p_left.error
    assert 0.1 < left.mean() < 0.25


@pytest.mark.parametrize("stop", [1, 4, 5, 9])
@pytest.mark.parametrize("method", ["cooling", "ladder", "transport"])
def test_a_resumed_run_is_the_unbroken_one(method, stop):
    def trainer():
        annealing = AnnealingConfig(
            method=method, hot_steps=2, cooling_steps=5, stages=2, stage_steps=3, buffer_size=50, max_kl=0.1
        )
        config = ObjectiveConfig(likelihood=0.0, path_forward_kl=1.0, annealing=annealing)
        training = TrainingConfig(steps=12, reverse_batch_size=16, seed=4, warmup_steps=0, checkpoint_every=stop)
        return Trainer(build_objective(nonlinear(), target(), config, batch_size=16), training)

    whole, first, second = trainer(), trainer(), trainer()
    whole.run(progress=False)
    for _ in range(stop):
        first.train_step()
    second.objective.load_state_dict(first.objective.state_dict())
    second.load_state(first.state())
    second.run(progress=False)
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)
    # a buffer that is drawn again costs its energies again
    extra = second.ledger.n_energy() - whole.ledger.n_energy()
    buffered = {"cooling": range(0), "ladder": (4,), "transport": (1, 4, 5)}[method]
    assert extra == (50 if stop in buffered else 0)


def test_temperatures_and_phases_follow_the_steps():
    assert geometric_ladder(4.0, 4) == pytest.approx([4**0.75, 2.0, 4**0.25, 1.0])
    annealing = AnnealingConfig(method="ladder", hottest=4.0, hot_steps=2, stages=2, stage_steps=3, buffer_size=20)
    config = ObjectiveConfig(likelihood=0.0, reverse_kl=1.0, annealing=annealing)
    objective = build_objective(affine(), target(), config, batch_size=10)
    found = []
    for index in range(10):
        _, logged = objective(Step(make_rng(0, index), n_samples=8, index=index))
        found.append(float(logged.get("temperature_ratio", math.nan)))
    assert found[:8] == pytest.approx([4.0, 4.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    assert math.isnan(found[8])


def test_cooling_trains_on_the_hot_target():
    generator = affine()
    term = ReverseKL(generator, Tempered(target()))
    cooling = Cooling(term, hottest=4.0, hot_steps=5, steps=10)
    hot = ReverseKL(generator, Gaussian(2, mean=MEAN, scale=2 * STD).double())
    found, _ = gradient_of(cooling, Step(make_rng(1), n_samples=50, index=2))
    expected, _ = gradient_of(hot, Step(make_rng(1), n_samples=50))
    assert torch.allclose(found, expected, rtol=1e-10)
    cold, _ = gradient_of(cooling, Step(make_rng(1), n_samples=50, index=15))
    expected, _ = gradient_of(ReverseKL(generator, target()), Step(make_rng(1), n_samples=50))
    assert torch.allclose(cold, expected, rtol=1e-10)


def test_what_makes_no_sense_is_refused():
    generator = affine()
    term = PathKL(generator, target())
    for temperatures in ([], [2.0, 1.5], [1.5, 2.0, 1.0]):
        with pytest.raises(ValueError, match="end at the target's"):
            TemperatureLadder(generator, target(), temperatures=temperatures, **SIZES)
    with pytest.raises(ValueError, match="hottest >= 1"):
        geometric_ladder(0.5, 3)
    with pytest.raises(ValueError, match="hottest >= 1"):
        Cooling(term, hottest=2.0, hot_steps=-1, steps=3)
    with pytest.raises(TypeError, match="Bijections"):
        MassTransport(Generator(Gaussian(2), [MALA(0.1)]).double(), target(), n_stages=1, max_kl=1.0, **SIZES)
    with pytest.raises(ValueError, match="at least one"):
        Sequence([])
    with pytest.raises(ValueError, match=r"positive numbers of steps, got \[0\]"):
        Sequence([(0, term), (0, term)])
    with pytest.raises(ValueError, match="one and the same Generator"):
        Sequence([(1, term), (1, PathKL(affine(), target()))])
