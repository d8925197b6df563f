"""Scores carried along a flow: equal to the two-pass path gradient on the same noise, for every Bijection."""

import pytest
import torch
from torch.func import functional_call

import boltzflow as bf
from boltzflow.generators import Generator, internal_spline_flow
from boltzflow.io.config import GeneratorConfig
from boltzflow.objectives import PathKL, ReverseKL, Step
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import Gaussian
from boltzflow.targets.bases import FramesBase, ProductBase
from boltzflow.transitions import compiled
from boltzflow.transitions.affine import Affine, AffineCoupling
from boltzflow.transitions.coupling import SplineCoupling
from boltzflow.transitions.elementwise import ElementwiseSpline
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.transition import Bijection
from boltzflow.transitions.triangular import TriangularAffine

KINDS = ["line", "circle", "interval", "circle", "line"]
MASK = torch.tensor([True, True, True, False, False])


@pytest.fixture(autouse=True, scope="module")
def eager():
    with compiled.uncompiled():
        yield


def shuffled(module, *, size=0.3):
    module, rng = module.double(), make_rng(3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(size * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return module


BIJECTIONS = {
    "spline": lambda: SplineCoupling(KINDS, MASK, hidden=(8, 6), bins=4, bound=1.5),
    "spline with context": lambda: SplineCoupling(KINDS, ~MASK, hidden=(8,), bins=4, context={"t": 1}),
    "spline, residual": lambda: SplineCoupling(KINDS, MASK, hidden=(8, 8), bins=4, residual=True),
    "spline, plain operations": lambda: SplineCoupling(KINDS, MASK, hidden=(8,), bins=4, fused=False),
    "elementwise": lambda: ElementwiseSpline(KINDS, bins=5, bound=1.5),
    "affine": lambda: Affine(torch.zeros(5), torch.full((5,), 2.0), learnable=True),
    "affine coupling": lambda: AffineCoupling(["line"] * 5, MASK, hidden=(8,)),
    "triangular": lambda: TriangularAffine(torch.tensor([0, 2, 4])),
}


@pytest.mark.parametrize("name", BIJECTIONS)
def test_scores_are_those_of_any_bijection(name):
    step = shuffled(BIJECTIONS[name]())
    run = Run(make_rng(0), {"t": torch.tensor(0.4).double()})
    q = ProductBase(KINDS).double().sample(30, make_rng(1))["q"]
    score = {"q": torch.randn(30, 5, generator=make_rng(2), dtype=torch.float64)}
    state = State({"q": q}, {"q": Space("mixed", (5,))})
    y, ratio, found = step.forward_with_score(state, run, score)
    expected_y, expected_ratio, expected = Bijection.forward_with_score(step, state, run, score)
    assert torch.equal(y["q"], expected_y["q"])
    assert torch.equal(ratio, expected_ratio)
    assert torch.allclose(found["q"], expected["q"], rtol=1e-10, atol=1e-10)
    assert (found["q"] - score["q"]).abs().max() > 0.1
    assert not found["q"].requires_grad
    # and without history of the parameters
    step.requires_grad_(requires_grad=False)
    assert torch.allclose(step.forward_with_score(state, run, score)[2]["q"], found["q"], rtol=1e-12, atol=1e-12)


class LogProb(torch.nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, state):
        return self.generator.log_prob(state)


def two_pass(generator, target, n, rng):
    """Samples, inverted at fixed parameters: the path gradient as autograd finds it."""
    trajectory = generator.rollout(n, target, rng)
    density = LogProb(generator)
    frozen = {name: p.detach() for name, p in density.named_parameters()}
    end = State(trajectory.end.fields, trajectory.end.spaces)
    return trajectory, functional_call(density, frozen, (end,))


def flat(loss, generator):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(generator.parameters()))])


def test_a_molecule_has_the_gradient_of_two_passes():
    system = bf.load_system("alanine_dipeptide")
    config = GeneratorConfig(n_couplings=2, hidden=[16], n_bins=4, n_marginal_bins=6)
    generator = shuffled(internal_spline_flow(system, config), size=0.1)
    fast = generator.rollout(6, system.target, make_rng(1), path_density=True)
    slow, log_q = two_pass(generator, system.target, 6, make_rng(1))
    assert torch.allclose(fast.path_log_prob, log_q, rtol=0, atol=1e-9)
    found = flat(fast.path_log_prob.mean(), generator)
    expected = flat(log_q.mean(), generator)
    assert (found - expected).abs().max() < 1e-10 * expected.abs().max()
    assert fast.ledger.as_dict() == slow.ledger.as_dict()


def test_the_score_passes_steps_without_parameters_between_those_with():
    steps = [Affine(torch.ones(2), torch.tensor([0.5, 2.0]), field="x", learnable=k != 1) for k in range(3)]
    coupling = AffineCoupling(["line"] * 2, torch.tensor([True, False]), field="x", hidden=(4,))
    generator = Generator(Gaussian(2), [steps[0], steps[1], coupling, steps[1]])
    generator = shuffled(generator, size=0.3)
    target = Gaussian(2).double()
    fast = generator.rollout(20, target, make_rng(1), path_density=True).path_log_prob
    _, slow = two_pass(generator, target, 20, make_rng(1))
    trained = [p for p in generator.parameters() if p.requires_grad]
    for found, expected in zip(
        torch.autograd.grad(fast.sum(), trained), torch.autograd.grad(slow.sum(), trained), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)


class Torn(Affine):
    """A score of NaN where x₀ > 1, without NaN in the sample."""

    def forward_with_score(self, state, run, score):
        y, ratio, after = super().forward_with_score(state, run, score)
        bad = state["x"][:, :1] > 1
        return y, ratio, {"x": torch.where(bad, torch.nan, after["x"])}


@pytest.mark.parametrize("objective", [lambda g, t: ReverseKL(g, t, path_gradient=True), PathKL])
def test_rows_without_a_score_are_left_out(objective):
    def made(kind):
        return Generator(Gaussian(2), [kind(torch.zeros(2), torch.ones(2), field="x", learnable=True)]).double()

    target = Gaussian(2, mean=torch.tensor([1.0, 0.0])).double()
    generator = made(Torn)
    loss, _ = objective(generator, target)(Step(make_rng(1), n_samples=50))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters())
    assert generator.transitions[0].shift.grad[0] < 0


def test_densities_that_do_not_exist_are_refused():
    target = Gaussian(2).double()
    with pytest.raises(TypeError, match="Bijections"):
        Generator(Gaussian(2), [MALA(0.1)]).rollout(3, target, make_rng(0), path_density=True)
    frames = FramesBase(target.sample(5, make_rng(0)), target)
    generator = Generator(frames, [Affine(torch.zeros(2), torch.ones(2), field="x", learnable=True)]).double()
    with pytest.raises(ValueError, match="log Z"):
        generator.rollout(3, target, make_rng(0), path_density=True)
