"""Objectives: values and gradients in closed form on affine flows, path gradients, masks, compressed energies."""

import math

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.io.config import ObjectiveConfig
from boltzflow.objectives import (
    CoverageLikelihood,
    MaximumLikelihood,
    Mixture,
    ReverseKL,
    SelfWeightedKL,
    Step,
    build_objective,
    compress_energy,
)
from boltzflow.run import make_rng
from boltzflow.state import State
from boltzflow.targets import Gaussian, Target
from boltzflow.transitions.affine import Affine, AffineCoupling
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.resampling import SystematicResampling
from boltzflow.transitions.transition import Bijection

MEAN, STD = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([1.5, 0.7], dtype=torch.float64)


def target():
    return Gaussian(2, mean=MEAN, scale=STD).double()


def affine(shift=(0.2, -0.3), scale=(0.8, 1.2)):
    """N(shift, scale²) in two dimensions."""
    step = Affine(torch.tensor(shift), torch.tensor(scale), field="x", learnable=True)
    return Generator(Gaussian(2), [step]).double()


def nonlinear():
    """Two couplings with random weights."""
    steps = [AffineCoupling(["line"] * 2, torch.tensor([k == 0, k == 1]), field="x", hidden=(8,)) for k in range(2)]
    generator, rng = Generator(Gaussian(2), steps).double(), make_rng(3)
    with torch.no_grad():
        for p in generator.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return generator


def data(n=50):
    return target().sample(n, make_rng(9))


def gradients(objective, **options):
    loss, logged = objective(Step(**{"rng": make_rng(1), "data": data(), "n_samples": 64, **options}))
    found = torch.autograd.grad(loss, list(objective.parameters()))
    assert not any(torch.as_tensor(v).requires_grad for v in logged.values())
    return loss.item(), torch.cat([g.flatten() for g in found]), logged


def test_likelihood_has_the_gradient_of_a_gaussian():
    generator, x = affine(), data()["x"]
    loss, gradient, logged = gradients(MaximumLikelihood(generator))
    step = generator.transitions[0]
    shift, scale = step.shift.detach(), step.log_scale.detach().exp()
    z = (x - shift) / scale
    expected = (0.5 * z.square() + scale.log() + 0.5 * math.log(2 * math.pi)).sum(1).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert logged["nll"].item() == loss
    assert torch.allclose(gradient, torch.cat([-(z / scale).mean(0), 1 - z.square().mean(0)]), rtol=1e-10)


def test_reverse_kl_has_the_gradient_of_a_gaussian():
    generator = affine()
    loss, gradient, logged = gradients(ReverseKL(generator, target()))
    step = generator.transitions[0]
    shift, scale = step.shift.detach(), step.log_scale.detach().exp()
    z = generator.base.sample(64, make_rng(1))["x"]
    pull = (shift + scale * z - MEAN) / STD.square()
    assert torch.allclose(gradient, torch.cat([pull.mean(0), (pull * scale * z).mean(0) - 1]), rtol=1e-10)
    exact = (STD.log() - scale.log() + (scale.square() + (shift - MEAN).square()) / (2 * STD.square()) - 0.5).sum()
    assert logged["reverse_kl"].item() == pytest.approx(loss, rel=1e-12)
    many, _, logged = gradients(ReverseKL(generator, target()), n_samples=100_000)
    assert many == pytest.approx(exact.item(), abs=0.02)
    assert 0 < logged["ess_fraction"] < 1


@pytest.mark.parametrize("path_gradient", [False, True])
@pytest.mark.parametrize("kind", ["likelihood", "reverse_kl"])
def test_gradients_agree_with_finite_differences(kind, path_gradient):
    generator = nonlinear()
    if kind == "likelihood":
        objective = MaximumLikelihood(generator)
    else:
        objective = ReverseKL(generator, target(), path_gradient=path_gradient)
    step = dict(data=data(), n_samples=30)
    frozen = nonlinear()

    def value():
        # the path gradient is that of u(x) + log q(x) with log q at fixed parameters
        if kind == "reverse_kl" and path_gradient:
            end = generator.rollout(30, target(), make_rng(1)).end
            return (target().reduced_energy(end) + frozen.log_prob(State(end.fields, end.spaces))).mean().item()
        return objective(Step(make_rng(1), **step))[0].item()

    _, gradient, _ = gradients(objective, **step)
    parameters, rng, h = list(generator.parameters()), make_rng(2), 1e-5
    direction = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in parameters]
    values = []
    with torch.no_grad():
        for size in (h, -2 * h):
            for p, d in zip(parameters, direction, strict=True):
                p += size * d
            values.append(value())
    slope = gradient @ torch.cat([d.flatten() for d in direction])
    assert slope.item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6, abs=1e-9)


def test_the_path_gradient_has_the_mean_of_the_plain_one():
    generator = nonlinear()
    found = {
        path: torch.stack(
            [
                gradients(ReverseKL(generator, target(), path_gradient=path), rng=make_rng(5, k), n_samples=100)[1]
                for k in range(100)
            ]
        )
        for path in (False, True)
    }
    # the same noise in both, so that the difference alone fluctuates
    difference = found[True] - found[False]
    z = difference.mean(0) / (difference.std(0) / 10)
    assert z.abs().max() < 4.5
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("objective", ["path", "self"])
def test_gradients_without_variance_vanish_at_the_target(objective):
    generator = nonlinear()
    own = generator.as_target()
    if objective == "path":
        term = ReverseKL(generator, own, path_gradient=True)
    else:
        term = SelfWeightedKL(generator, own, forward=1.0, reverse=1.0)
    # all parameters are trained, and the target follows none of them
    fixed = nonlinear()
    own._generator = (fixed,)
    _, gradient, logged = gradients(term)
    assert gradient.abs().max() < 1e-12
    assert logged["ess_fraction"].item() == pytest.approx(1.0)
    assert gradients(ReverseKL(generator, own))[1].abs().max() > 1e-2


def test_parameters_keep_their_gradients_and_flags():
    generator = nonlinear()
    generator.transitions[0].requires_grad_(requires_grad=False)
    term = ReverseKL(generator, target(), path_gradient=True)
    loss, _ = term(Step(make_rng(1), n_samples=10))
    loss.backward()
    assert [p.requires_grad for p in generator.transitions[1].parameters()] == [True] * 4
    assert all(p.grad is None for p in generator.transitions[0].parameters())
    assert any(p.grad.any() for p in generator.transitions[1].parameters())
    assert all(isinstance(p, torch.nn.Parameter) for p in generator.parameters())
    assert set(dict(term.named_parameters())) == {f"generator.{n}" for n, _ in generator.named_parameters()}


def test_self_weighted_gradients_are_those_of_both_divergences():
    generator = affine()
    step = generator.transitions[0]
    shift, scale = step.shift.detach(), step.log_scale.detach().exp()
    # of KL(p‖q) and KL(q‖p) for Gaussians, by shift and log scale
    forward = torch.cat([(shift - MEAN) / scale**2, 1 - (STD**2 + (shift - MEAN) ** 2) / scale**2])
    reverse = torch.cat([(shift - MEAN) / STD**2, scale**2 / STD**2 - 1])
    for options, expected in (
        ({"forward": 1.0, "reverse": 0.0}, forward),
        ({"forward": 0.0, "reverse": 1.0}, reverse),
        ({"forward": 0.5, "reverse": 2.0}, 0.5 * forward + 2 * reverse),
    ):
        term = SelfWeightedKL(generator, target(), max_weight=1e9, max_deviation=1e9, **options)
        found = torch.stack([gradients(term, rng=make_rng(7, k), n_samples=20_000)[1] for k in range(20)])
        error = found.std(0) / 20**0.5
        # normalising the weights over the batch biases by O(1/n)
        assert ((found.mean(0) - expected).abs() < 4.5 * error + 0.02).all(), (found.mean(0), expected, error)


class Half(Target):
    """The target, cut off or spoilt on one side of x₀ = 0.3."""

    def __init__(self, value):
        super().__init__(target().fields)
        self.inner, self.value = target(), value

    def reduced_energy(self, state, context=None):
        x = state["x"]
        u = self.inner.reduced_energy(state) + 0 * (x[:, 0] - 0.3).sqrt()
        return torch.where(x[:, 0] < 0.3, self.value, u)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("path_gradient", [False, True])
def test_rows_without_energy_are_masked_before_backward(value, path_gradient):
    generator = nonlinear()
    _, gradient, logged = gradients(ReverseKL(generator, Half(value), path_gradient=path_gradient))
    assert 0 < logged["n_masked"] < 64
    assert torch.isfinite(gradient).all()
    assert gradient.any()
    assert math.isfinite(logged["reverse_kl"])


def test_self_weighted_rows_without_energy_are_pushed_away():
    generator = affine(shift=(0.3, -0.3))
    term = SelfWeightedKL(generator, Half(torch.inf), forward=1.0)
    _, gradient, logged = gradients(term, n_samples=2000)
    assert logged["n_masked"] == 0
    assert gradient[0] < -0.3  # the mean moves to where there is density


class Spoil(Bijection):
    """Without image (−inf) or NaN where x₀ is above a bound, both ways; NaN in the gradient, too."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.scale = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, state, run):
        x = state["x"]
        ratio = self.scale.expand(len(state)) * 0 + torch.where(x[:, 0] > 1, self.value, 0.0)
        ratio = ratio + 0 * (1 - x[:, 0]).sqrt() * self.scale
        return state, torch.where(x[:, 0] > 1, self.value, ratio)

    reverse = forward


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_data_that_the_model_cannot_map_are_left_out_and_counted(value):
    generator = Generator(Gaussian(2), [affine().transitions[0], Spoil(value)]).double()
    loss, gradient, logged = gradients(MaximumLikelihood(generator))
    inside = data()["x"][:, 0] <= 1
    assert logged["n_failed_data"] == (~inside).sum() > 0
    assert torch.isfinite(gradient).all()
    plain, expected, _ = gradients(MaximumLikelihood(affine()), data=data().index(inside))
    assert loss == pytest.approx(plain)
    assert torch.allclose(gradient[:4], expected)


def test_without_any_usable_row_the_loss_says_so():
    generator = Generator(Gaussian(2), [affine().transitions[0], Spoil(torch.nan)]).double()
    far = target().state(torch.full((3, 2), 5.0, dtype=torch.float64))
    loss, logged = MaximumLikelihood(generator)(Step(make_rng(0), data=far))
    assert not math.isfinite(loss.item())
    assert logged["n_failed_data"] == 3
    nowhere = Half(torch.inf)
    nowhere.reduced_energy = lambda state, context=None: torch.full((len(state),), torch.inf).double()
    loss, _ = SelfWeightedKL(affine(), nowhere)(Step(make_rng(0), n_samples=5))
    assert not math.isfinite(loss.item())


def test_compressed_energies_are_continuous_with_their_slope():
    u = torch.tensor([-5.0, 9.0, 10.0, 11.0, 1e300, torch.inf], dtype=torch.float64, requires_grad=True)
    v = compress_energy(u, base=2.0, cut=8.0)
    assert v[:3].tolist() == [-5.0, 9.0, 10.0]
    assert v[3].item() == pytest.approx(10.0 + 8 * math.log(9 / 8))
    assert v[5].item() == math.inf
    (slope,) = torch.autograd.grad(v.sum(), u)
    assert slope[:3].tolist() == [1.0, 1.0, 1.0]
    assert slope[3].item() == pytest.approx(8 / 9)
    h = 1e-9
    edge = torch.tensor([10.0 - h, 10.0 + h], dtype=torch.float64)
    assert compress_energy(edge, base=2.0, cut=8.0).diff().item() == pytest.approx(2 * h, rel=1e-5)


def test_evaluations_go_to_the_ledger_of_the_step():
    objective = Mixture([(1.0, MaximumLikelihood(affine())), (1.0, ReverseKL(affine(), target()))][:1])
    step = Step(make_rng(0), data=data(), n_samples=10)
    objective(step)
    assert step.ledger.n_energy() == 0
    ReverseKL(affine(), target())(step)
    assert (step.ledger.n_energy(), step.ledger.n_force()) == (10, 10)
    SelfWeightedKL(affine(), target())(step)
    assert (step.ledger.n_energy(), step.ledger.n_force()) == (20, 10)


def test_a_mixture_is_the_weighted_sum():
    generator = nonlinear()
    terms = [(0.3, MaximumLikelihood(generator)), (2.0, ReverseKL(generator, target()))]
    loss, gradient, logged = gradients(Mixture(terms))
    alone = [gradients(term) for _, term in terms]
    assert loss == pytest.approx(0.3 * alone[0][0] + 2.0 * alone[1][0])
    assert torch.allclose(gradient, 0.3 * alone[0][1] + 2.0 * alone[1][1])
    assert {"nll", "reverse_kl"} <= set(logged)
    mixture = Mixture(terms)
    assert mixture.needs_data
    assert mixture.needs_samples
    assert len(list(mixture.parameters())) == len(list(generator.parameters()))


def test_what_cannot_be_trained_is_refused():
    generator = affine()
    kernel = Generator(Gaussian(2), [MALA(0.1)]).double()
    with pytest.raises(TypeError, match="path_gradient needs"):
        ReverseKL(kernel, target(), path_gradient=True)
    with pytest.raises(TypeError, match="without BatchSteps"):
        ReverseKL(Generator(Gaussian(2), [SystematicResampling()]), target())
    with pytest.raises(TypeError, match="Bijections"):
        SelfWeightedKL(kernel, target())
    with pytest.raises(ValueError, match="at least one"):
        Mixture([])
    with pytest.raises(ValueError, match=r"positive weights, got \[0.0\]"):
        Mixture([(0.0, MaximumLikelihood(generator))])
    with pytest.raises(ValueError, match="one and the same Generator"):
        Mixture([(1.0, MaximumLikelihood(generator)), (1.0, MaximumLikelihood(affine()))])


def test_objectives_are_built_from_their_configuration():
    generator = affine()

    def kinds(**options):
        found = build_objective(generator, target(), ObjectiveConfig(**options))
        terms = found.terms if isinstance(found, Mixture) else [found]
        return [type(t).__name__ for t in terms]

    assert kinds() == ["MaximumLikelihood"]
    assert kinds(likelihood=0.0, reverse_kl=1.0) == ["ReverseKL"]
    assert kinds(likelihood=0.5, reverse_kl=1.0, self_forward_kl=1.0) == [
        "MaximumLikelihood",
        "ReverseKL",
        "SelfWeightedKL",
    ]
    with pytest.raises(ValueError, match="every weight is 0"):
        kinds(likelihood=0.0)


def test_coverage_weighs_data_that_the_model_has_too_little_of():
    generator, x = affine(), data(400)
    term = CoverageLikelihood(generator, target(), tolerance=1.0, max_weight=3.0)
    # its own estimate of Z, by E_p[1/w] = 1
    log_w = (-target().reduced_energy(x) - generator.log_prob(x)).detach()
    w = log_w.exp() * (-log_w).exp().mean()
    coefficient = (w - 1).clamp(0, 3)
    assert 0 < (coefficient == 3).sum() < (coefficient > 0).sum() < 400
    expected = torch.autograd.grad(
        -(coefficient * generator.log_prob(x)).mean(), [p for p in generator.parameters() if p.requires_grad]
    )
    expected = torch.cat([g.flatten() for g in expected])
    found = []
    for k in range(200):
        _, gradient, logged = gradients(term, rng=make_rng(2, k), data=x)
        found.append(gradient)
    found = torch.stack(found)
    assert ((found.mean(0) - expected).abs() < 4.5 * found.std(0) / 200**0.5).all()
    assert logged["coverage"].item() == pytest.approx(coefficient.mean().item())
    assert logged["forward_ess_fraction"].item() == pytest.approx(1 / w.mean().item())
    assert logged["nll"].item() == pytest.approx(-generator.log_prob(x).mean().item())


def test_coverage_leaves_a_perfect_model_alone_and_counts_energies():
    generator = nonlinear()
    own = generator.as_target()
    own._generator = (nonlinear(),)
    step = Step(make_rng(0), data=own.sample(40, make_rng(1)))
    loss, logged = CoverageLikelihood(generator, own)(step)
    loss.backward()
    assert not any(p.grad.any() for p in generator.parameters() if p.grad is not None)
    assert logged["forward_ess_fraction"].item() == pytest.approx(1.0)
    assert (step.ledger.n_energy(), step.ledger.n_force()) == (40, 0)


def test_coverage_counts_data_without_density_and_keeps_its_gradient_finite():
    generator = Generator(Gaussian(2), [affine().transitions[0], Spoil(torch.nan)]).double()
    _, gradient, logged = gradients(CoverageLikelihood(generator, target()), data=data(200))
    assert logged["n_failed_data"] == (data(200)["x"][:, 0] > 1).sum() > 0
    assert torch.isfinite(gradient).all()
    assert gradient.any()
