"""Backward densities of any shape: exact for every factor, and the better the nearer to the Jacobian."""

import math

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.networks import ShallowField
from boltzflow.objectives import LogVariance, Step
from boltzflow.paths import NoisyBase
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import Gaussian, Harmonic, MeanFreeGaussian, harmonic_pair
from boltzflow.testing import assert_crooks, assert_unbiased, check_transition
from boltzflow.transitions import DrawNoise, DropNoise, FlowPerturbation, GaussianPerturbation, LearnedFactor
from tests.transitions.test_flow_perturbation import Linear, exactly, shallow

D = 4


def run(seed=3):
    return Run(make_rng(seed))


def ends():
    return tuple(end.double() for end in harmonic_pair(D))


def shaped(rank, size=0.3):
    """A factor that depends on x and t, but on nothing of the field."""
    torch.manual_seed(0)
    factor = LearnedFactor(D, rank=rank).double()
    torch.nn.init.normal_(factor.network.linears[-1].weight, std=size / 5, generator=make_rng(5))
    return factor


@pytest.mark.parametrize("rank", [0, 2])
def test_contract_of_the_bijection(rank):
    flow = GaussianPerturbation(shallow(size=0.3), shaped(rank), n_steps=2, name="x")
    base, target = ends()
    state = NoisyBase(base, flow).sample(4, make_rng(1))
    check_transition(flow, state, run())
    generator = Generator(base, [DrawNoise(2, name="x"), flow, DropNoise(2, name="x")])
    assert_crooks(generator, target, n=1500, rng=make_rng(4))
    assert_unbiased(generator, target, n=4000, rng=make_rng(5))


def log_weights(flow, log_det, n):
    """Of noise at one point, less the exact log-determinant: its exponential has the mean 1."""
    state = State({"x": torch.full((n, D), 0.3, dtype=torch.float64)}, {"x": Space("line", (D,))})
    joint, drawn = DrawNoise(flow.n_noises, name="x")(state, run())
    with torch.no_grad():
        end, ratio = flow(joint, run())
        return drawn + ratio + DropNoise(flow.n_noises, name="x")(end, run())[1] - log_det


def test_the_nearer_to_the_jacobian_the_less_noise():
    """Scalar, diagonal and full factors of an A whose axes have unequal scales, every one unbiased."""
    stretch = torch.tensor([0.4, 0.8, 1.2, 1.6], dtype=torch.float64)
    mixing = 0.05 * torch.randn(D, D, dtype=torch.float64, generator=make_rng(2))
    a = torch.diag(stretch) + mixing  # A = 1 − M as a matrix that acts on columns
    field = Linear((torch.eye(D) - a).T)
    rms, rows = a.square().sum(1).mean().sqrt(), a.square().sum(1).sqrt()

    def constant(scale, left=None, right=None):
        def factor(x, t):
            spread = (None if m is None else m.expand(len(x), *m.shape) for m in (left, right))
            return (scale.log().expand_as(x), *spread)

        return factor

    full = constant(torch.ones(D, dtype=torch.float64), (a - torch.eye(D)).T.contiguous(), torch.eye(D).double())
    u, s, vh = torch.linalg.svd(mixing / stretch[:, None])
    low = constant(stretch, (u * s).T[:2], vh[:2])
    exact, n = -torch.linalg.slogdet(a).logabsdet, 20_000
    spread = {}
    for name, factor in (
        ("scalar", constant(rms.expand(D))),
        ("diagonal", constant(rows)),
        ("low rank", low),
        ("full", full),
    ):
        log_w = log_weights(GaussianPerturbation(field, factor, name="x"), exact, n)
        spread[name] = float(log_w.var())
        if name != "full":
            w = log_w.exp()
            assert abs(float((w.mean() - 1.0) / (w.std() / math.sqrt(n)))) < 4
    assert spread["full"] < 1e-20
    assert spread["low rank"] < spread["diagonal"] < 0.2 * spread["scalar"]
    # the length of e is noise of its own, which FlowPerturbation has not
    simplified = float(log_weights(FlowPerturbation(field, name="x"), exact, n).var())
    assert spread["diagonal"] < simplified < spread["scalar"]


def test_every_step_and_point_has_a_factor_of_its_own():
    state = ends()[0].sample(1, make_rng(2))
    flow = GaussianPerturbation(shallow(size=0.3), shaped(1), n_steps=3, name="x")
    plain = FlowPerturbation(flow.field, n_steps=3, name="x")
    log_det = exactly(plain, state)[1]
    n = 20_000
    joint, drawn = DrawNoise(3, name="x")(state.index(torch.zeros(n, dtype=torch.int64)), run())
    with torch.no_grad():
        end, ratio = flow(joint, run())
        w = (drawn + ratio + DropNoise(3, name="x")(end, run())[1] - log_det).exp()
    assert abs(float((w.mean() - 1.0) / (w.std() / math.sqrt(n)))) < 4
    assert w.std() > 0.05


@pytest.mark.parametrize("rank", [0, 1])
def test_factors_are_learned_from_the_spread_of_the_weights(rank):
    """Beside a target that is the density of the flow, all of the variance is that of the noise."""
    slopes = torch.tensor([0.5, 0.2, -0.2, -0.5], dtype=torch.float64)
    torch.manual_seed(0)
    flow = GaussianPerturbation(Linear(torch.diag(slopes)), LearnedFactor(D, rank=rank), name="x").double()
    base, target = Gaussian(D).double(), Harmonic((1.0 - slopes).square()).double()  # z = (1 − slope) x
    generator = Generator(NoisyBase(base, flow), [flow, DropNoise(1, name="x")])
    loss = LogVariance(generator, target)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)

    def spread():
        return float(generator.sample(2000, target, seed=1).log_weights.var())

    before = spread()
    for k in range(100):
        optimizer.zero_grad()
        loss(Step(make_rng(2, k), n_samples=128))[0].backward()
        optimizer.step()
    ensemble = generator.sample(2000, target, seed=1)
    assert ensemble.log_weights.var() < 0.7 * before
    assert abs(ensemble.log_z().z_score(target.log_z)) < 4


def test_bad_input_is_refused():
    state = ends()[0].sample(2, make_rng(1))
    with pytest.raises(ValueError, match=r"GaussianPerturbation: expected a field 'x_noise'"):
        GaussianPerturbation(ShallowField(D, 8).double(), shaped(0), name="x")(state, run())
    particles = MeanFreeGaussian(3, 2).double().sample(2, make_rng(1))
    with pytest.raises(ValueError, match="expected a flat field"):
        GaussianPerturbation(ShallowField(D, 8), shaped(0))(particles, run())
