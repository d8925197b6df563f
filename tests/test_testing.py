"""The contract kit passes what is right, and fails what is deliberately wrong."""

import math

import pytest
import torch

from boltzflow.generators.generator import Generator
from boltzflow.networks import VectorField
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import (
    Dirac,
    DoubleWell,
    DoubleWellCluster,
    Funnel,
    Gaussian,
    Harmonic,
    LennardJonesCluster,
    ManyWell,
    MeanFreeGaussian,
    ProductBase,
    Target,
    TruncatedNormal,
    Uniform,
    VonMises,
    gmm9,
    gmm25,
    harmonic_pair,
    mw54,
)
from boltzflow.testing import (
    assert_crooks,
    assert_detailed_balance,
    assert_dtypes,
    assert_energy_matches_openmm,
    assert_equivariant,
    assert_force,
    assert_invertible,
    assert_leaves_invariant,
    assert_log_ratio,
    assert_normalised,
    assert_reverse_ratio,
    assert_sampler,
    assert_target,
    assert_unbiased,
    check_target,
    check_transition,
    check_vector_field,
    run_at,
)
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.langevin import OverdampedLangevin
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.metropolis import RandomWalkMetropolis
from boltzflow.transitions.transition import BatchStep, Bijection, DetailedBalance, Transition

torch.set_num_threads(1)

TARGETS = {
    "double well": DoubleWell(),
    "gmm9": gmm9(),
    "gmm25": gmm25(),
    "funnel": Funnel(),
    "funnel, easy": Funnel(2, variance=1.0),
    "many-well": ManyWell(8),
    "mw54": mw54(),
    "harmonic": harmonic_pair(3)[1],
    "gaussian": Gaussian((2, 2), mean=1.0, scale=0.3),
    "uniform": Uniform(2, lower=-1.0, upper=3.0),
    "von mises": VonMises(2, mean=1.0, concentration=2.0),
    "truncated normal": TruncatedNormal(3, scale=0.4),
    "mean-free": MeanFreeGaussian(3, 2, scale=1.4),
    "product": ProductBase(["line", "circle", "interval"]),
    "dirac": Dirac(2),
}


PROPOSALS = {
    "product": ProductBase(["line", "circle", "interval"], scale=torch.tensor([1.3, 2.0, 0.5])),
    "harmonic": Gaussian(3),
    "truncated normal": Uniform(3),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_keep_the_contract(name):
    proposal = PROPOSALS.get(name)
    check_target(TARGETS[name].double(), proposal=proposal and proposal.double())


CLUSTERS = [DoubleWellCluster(), LennardJonesCluster(5), LennardJonesCluster(13, pair_sum="unordered")]


@pytest.mark.parametrize("target", CLUSTERS, ids=lambda target: target.name)
def test_clusters_keep_the_contract(target):
    target.double()
    x = 2 * torch.randn(4, *target.fields["positions"].shape, dtype=torch.float64, generator=make_rng(0))
    check_target(target, state=target.state(x))
    n = x.shape[1]
    assert_equivariant(
        lambda p: target.reduced_energy(target.state(p)), x, rng=make_rng(1), reflection=True, permuted=[range(n)]
    )
    assert_equivariant(
        lambda p: target.energy_and_force(target.state(p))[1]["positions"],
        x,
        rng=make_rng(1),
        output="equivariant",
        permuted=[range(n)],
    )


@pytest.mark.parametrize("name", ["double well", "gmm9"])
@pytest.mark.parametrize("off", [-0.2, 0.2])
def test_wrong_log_z_fails(name, off):
    target = TARGETS[name].double()
    right = target.log_z
    try:
        target.log_z = right + off
        with pytest.raises(AssertionError, match="normalisation"):
            assert_normalised(target, n=10_000, rng=make_rng(0))
    finally:
        target.log_z = right


def test_normalisation_without_overlap_says_so():
    base = Gaussian(2, mean=30.0).double()
    with pytest.raises(AssertionError, match="pass a proposal"):
        assert_normalised(Gaussian(2).double(), n=1000, rng=make_rng(0), proposal=base)


class Faulty(Target):
    """A unit normal in two dimensions with one fault."""

    def __init__(self, fault):
        super().__init__({"x": Space("line", (2,))}, log_z=math.log(2 * math.pi))
        self.fault = fault
        self.cache = {}

    def reduced_energy(self, state, context=None):
        x = state["x"]
        beta = (context or {}).get("beta", 1.0)
        if self.fault == "cache keyed by text":
            key = str(x.shape)
            if key not in self.cache:
                self.cache[key] = 0.5 * x.square().sum(1)
            return self.cache[key]
        if self.fault == "NaN is zero":
            x = torch.nan_to_num(x)
        if self.fault == "wrong shape":
            return (0.5 * x.square().sum(1))[:, None]
        return beta * 0.5 * x.square().sum(1).double()

    def energy_and_force(self, state, context=None):
        if self.fault == "force":
            energy, force = super().energy_and_force(state, context)
            return energy, {"x": force["x"] * 0.999}
        if self.fault == "force without context":
            return self.reduced_energy(state, context).detach(), super().energy_and_force(state)[1]
        if self.fault == "attached":
            return self.reduced_energy(state.replace(x=state["x"].requires_grad_()), context), {"x": -state["x"]}
        return super().energy_and_force(state, context)

    def sample(self, n, rng, context=None):
        x = torch.randn(n, 2, dtype=torch.float64, generator=None if self.fault == "stream" else rng)
        return self.state(x * (1.1 if self.fault == "width" else 1.0))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cache keyed by text", "reverse order|float32|other rows|NaN"),
        ("NaN is zero", "a NaN in field 'x' gives the energy"),
        ("wrong shape", "expected a real energy of shape"),
        ("force", "force along a random direction"),
        ("force without context", "force along a random direction"),
        ("attached", "detached"),
        ("width", "samples against the energy"),
        ("stream", "different 'x' for the same random stream"),
    ],
)
def test_faulty_targets_fail(fault, message):
    contexts = ({"beta": 1.0}, {"beta": 0.5}) if fault == "force without context" else (None,)
    with pytest.raises(AssertionError, match=message):
        check_target(Faulty(fault), contexts=contexts)


def test_sampler_that_ignores_temperature_fails():
    target = Faulty("none")
    check_target(target)
    with pytest.raises(AssertionError, match="samples against the energy"):
        assert_sampler(target, n=2000, rng=make_rng(0), context={"beta": 0.5})


def test_assert_target_and_force_stand_alone():
    target = DoubleWell().double()
    state = target.sample(4, make_rng(0))
    assert_target(target, make_rng(0), state=state)
    assert_force(target, state, rng=make_rng(0))
    with pytest.raises(ValueError, match="at least 2 points"):
        assert_target(target, make_rng(0), state=state.index(slice(0, 1)))
    with pytest.raises(ValueError, match="log Z is unknown"):
        assert_normalised(DoubleWellCluster(), n=10, rng=make_rng(0))


class Shear(Bijection):
    """y = A x with A lower triangular; the log-ratio may carry a wrong factor, the inverse a wrong shift."""

    def __init__(self, factor=1.0, shift=0.0):
        super().__init__()
        self.register_buffer("matrix", torch.tensor([[1.2, 0.0], [0.3, 0.7]], dtype=torch.float64))
        self.factor, self.shift = factor, shift

    def ratio(self, state):
        log_det = self.factor * self.matrix.diagonal().double().log().sum()
        return log_det.expand(len(state))

    def forward(self, state, run):
        return state.replace(x=state["x"] @ self.matrix.T), self.ratio(state)

    def reverse(self, state, run):
        x = torch.linalg.solve(self.matrix, (state["x"] + self.shift).T).T
        return state.replace(x=x), -self.ratio(state)


def pair():
    return tuple(h.double() for h in harmonic_pair(2))


def points(n=6):
    return pair()[0].sample(n, make_rng(7))


def test_right_bijection_passes():
    check_transition(Shear(), points(), Run(make_rng(0)))


def test_float32_states_have_their_own_tolerance():
    state, run = points().to(dtype=torch.float32), Run(make_rng(0))
    assert_invertible(Shear().float(), state, run)
    assert_log_ratio(Shear().float(), state, run)
    with pytest.raises(AssertionError, match="but the Jacobian gives"):
        assert_log_ratio(Shear(0.9).float(), state, run)


@pytest.mark.parametrize("factor", [-1.0, 0.5, 0.0])
def test_wrong_log_determinant_fails(factor):
    """Such a map is consistent with its own inverse: only the Jacobian and the weights tell."""
    wrong, base, target = Shear(factor), *pair()
    assert_invertible(wrong, points(), Run(make_rng(0)))
    with pytest.raises(AssertionError, match="but the Jacobian gives"):
        assert_log_ratio(wrong, points(), Run(make_rng(0)))
    with pytest.raises(AssertionError, match=r"E\[w\]|E\[1/w\]"):
        assert_unbiased(Generator(base, [wrong]), target, n=20_000, rng=make_rng(1))
    with pytest.raises(AssertionError, match="Crooks"):
        assert_crooks(Generator(base, [wrong]), target, n=20_000, rng=make_rng(1))
    assert_unbiased(Generator(base, [Shear()]), target, n=20_000, rng=make_rng(1))


def test_wrong_inverse_fails():
    with pytest.raises(AssertionError, match=r"reverse\(forward\(x\)\) misses"):
        assert_invertible(Shear(shift=1e-5), points(), Run(make_rng(0)))


class MeanFreeScale(Bijection):
    """y = 1.5 x on mean-free positions."""

    def __init__(self, d):
        super().__init__()
        self.d = d

    def forward(self, state, run):
        ratio = torch.full((len(state),), self.d * math.log(1.5), dtype=torch.float64)
        return state.replace(positions=1.5 * state["positions"]), ratio

    def reverse(self, state, run):
        ratio = torch.full((len(state),), -self.d * math.log(1.5), dtype=torch.float64)
        return state.replace(positions=state["positions"] / 1.5), ratio


def test_mean_free_log_ratio_counts_only_free_dimensions():
    base = MeanFreeGaussian(4, 3).double()
    state, run = base.sample(3, make_rng(0)), Run(make_rng(0))
    target = MeanFreeGaussian(4, 3, scale=1.4).double()
    check_transition(MeanFreeScale(9), state, run, base=base, target=target)
    with pytest.raises(AssertionError, match="but the Jacobian gives"):
        assert_log_ratio(MeanFreeScale(12), state, run)
    with pytest.raises(AssertionError, match="Crooks"):
        assert_crooks(Generator(base, [MeanFreeScale(12)]), target, n=2000, rng=make_rng(0))


class Projective(Bijection):
    """q → A q / |A q| on unit quaternions; log-ratio log det A − 4 log |A q|."""

    def __init__(self):
        super().__init__()
        a = torch.eye(4, dtype=torch.float64) + 0.2 * torch.randn(4, 4, dtype=torch.float64, generator=make_rng(3))
        self.register_buffer("a", a)

    def forward(self, state, run):
        y = state["q"] @ self.a.T
        norm = y.norm(dim=-1)
        return state.replace(q=y / norm[..., None]), torch.linalg.slogdet(self.a)[1] * 2 - 4 * norm.log().sum(1)

    def reverse(self, state, run):
        x = torch.linalg.solve(self.a, state["q"].reshape(-1, 4).T).T.reshape(state["q"].shape)
        norm = x.norm(dim=-1)
        return state.replace(q=x / norm[..., None]), -torch.linalg.slogdet(self.a)[1] * 2 - 4 * norm.log().sum(1)


def test_log_ratio_on_spheres():
    q = torch.randn(5, 2, 4, dtype=torch.float64, generator=make_rng(0))
    state = State({"q": q / q.norm(dim=-1, keepdim=True)}, {"q": Space("sphere", (2, 4), 6)})
    assert_reverse_ratio(Projective(), state, Run(make_rng(0)))
    assert_log_ratio(Projective(), state, Run(make_rng(0)))


def test_unknown_subspace_is_named():
    state = State({"q": torch.zeros(2, 5, dtype=torch.float64)}, {"q": Space("line", (5,), 3)})

    class Same(Bijection):
        def forward(self, state, run):
            return state, torch.zeros(len(state), dtype=torch.float64)

        reverse = forward

    with pytest.raises(ValueError, match="'q': 3 of 5 entries"):
        assert_log_ratio(Same(), state, Run(make_rng(0)))


KERNELS = {
    "MALA": lambda: MALA(0.05),
    "MALA, several steps": lambda: MALA(0.05, n_steps=3),
    "HMC": lambda: HMC(0.2, n_leapfrog=3),
    "random walk": lambda: RandomWalkMetropolis(0.5),
    "overdamped Langevin": lambda: OverdampedLangevin(0.05),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_keep_the_contract(name):
    target = pair()[1]
    check_transition(KERNELS[name]().double(), points(), run_at(target, make_rng(0)))


class DriftedMetropolis(DetailedBalance):
    """A Langevin proposal accepted with exp(−Δu) alone: the known wrong kernel."""

    def __init__(self, step_size, *, level=1.0, exact=False):
        super().__init__(level=level)
        self.step_size, self.exact = step_size, exact

    def step(self, state, run):
        u, force, state = run.energy_and_force(state)
        mean = state["x"] + self.step_size * force["x"]
        y = state.replace(x=mean + math.sqrt(2 * self.step_size) * run.normal(mean))
        v, back, y = run.energy_and_force(y)
        log_accept = u - v
        if self.exact:
            away = (y["x"] - mean).square().sum(1)
            home = (state["x"] - y["x"] - self.step_size * back["x"]).square().sum(1)
            log_accept = log_accept + (away - home) / (4 * self.step_size)
        return y.where(run.uniform(u).log() < log_accept, state)


def test_drifted_proposal_accepted_with_the_energy_alone_fails():
    target, base = DoubleWell().double(), Gaussian(2).double()
    right, wrong = DriftedMetropolis(0.02, exact=True), DriftedMetropolis(0.02)
    n = 20_000
    assert_leaves_invariant(right, target, n=n, rng=make_rng(0))
    assert_detailed_balance(right, target, n=n, rng=make_rng(0))
    with pytest.raises(AssertionError, match="change of a mean under an invariant kernel"):
        assert_leaves_invariant(wrong, target, n=n, rng=make_rng(0))
    with pytest.raises(AssertionError, match="detailed balance"):
        assert_detailed_balance(wrong, target, n=n, rng=make_rng(0))
    # the ratio of a single path is right, the weights of whole paths are not
    assert_reverse_ratio(wrong, target.sample(8, make_rng(0)), run_at(target, make_rng(0)))

    def annealed(exact):
        return Generator(base, [DriftedMetropolis(0.1, level=i / 5, exact=exact) for i in range(1, 6)])

    first, second = (h.double() for h in harmonic_pair(2, displacement=1.5))
    assert_crooks(Generator(first, list(annealed(exact=True).transitions)), second, n=n, rng=make_rng(0))
    with pytest.raises(AssertionError, match="Crooks"):
        assert_crooks(Generator(first, list(annealed(exact=False).transitions)), second, n=n, rng=make_rng(0))


class Noisy(Transition):
    """y = x + noise, with a log-ratio that is right (0), or not."""

    def __init__(self, *, forward_ratio=0.0, reverse_ratio=0.0, dtype=torch.float64):
        super().__init__()
        self.forward_ratio, self.reverse_ratio, self.dtype = forward_ratio, reverse_ratio, dtype

    def move(self, state, run, ratio):
        x = state["x"]
        return state.replace(x=x + 0.3 * run.normal(x)), torch.full((len(state),), ratio, dtype=self.dtype)

    def forward(self, state, run):
        return self.move(state, run, self.forward_ratio)

    def reverse(self, state, run):
        return self.move(state, run, self.reverse_ratio)

    def log_ratio(self, x, y, run):
        return torch.zeros(len(x), dtype=torch.float64)


def test_stochastic_ratios():
    state, run = points(), Run(make_rng(0))
    check_transition(Noisy(), state, run)
    with pytest.raises(AssertionError, match="forward returns r"):
        assert_reverse_ratio(Noisy(forward_ratio=0.1), state, run)
    with pytest.raises(AssertionError, match="reverse returns −r"):
        assert_reverse_ratio(Noisy(reverse_ratio=0.1), state, run)
    with pytest.raises(AssertionError, match=r"log-ratio in torch\.float32"):
        assert_dtypes(Noisy(dtype=torch.float32), state, run)
    base, target = pair()
    # the same error in both directions is seen by the weights only
    with pytest.raises(AssertionError, match="Crooks"):
        assert_crooks(Generator(base, [Noisy(forward_ratio=0.2, reverse_ratio=-0.2)]), target, n=8000, rng=make_rng(0))


def test_a_ratio_that_cannot_be_checked_is_refused():
    class Opaque(Noisy):
        log_ratio = None

    with pytest.raises(TypeError, match="test it with assert_crooks"):
        assert_reverse_ratio(Opaque(), points(), Run(make_rng(0)))


class Resample(BatchStep):
    """Multinomial resampling at every level, right, or with ancestors drawn uniformly."""

    def __init__(self, level, *, wrong=False):
        super().__init__()
        self.level, self.wrong = level, wrong

    def choose(self, log_weights, rng):
        weights = torch.ones_like(log_weights) if self.wrong else torch.softmax(log_weights, 0)
        return torch.multinomial(weights, len(weights), replacement=True, generator=rng)


def test_populations_with_resampling():
    base, target = (h.double() for h in harmonic_pair(2, displacement=1.5))

    def annealed(wrong):
        steps = [(Resample(k / 4, wrong=wrong), MALA(0.1, level=k / 4).double()) for k in range(1, 5)]
        return Generator(base, [step for pair_ in steps for step in pair_])

    assert_unbiased(annealed(wrong=False), target, n=20_000, rng=make_rng(0))
    with pytest.raises(AssertionError, match=r"E\[w\]"):
        assert_unbiased(annealed(wrong=True), target, n=20_000, rng=make_rng(0))
    with pytest.raises(ValueError, match="no reverse"):
        assert_crooks(annealed(wrong=False), target, n=10, rng=make_rng(0))


def test_unbiased_refuses_what_is_too_uncertain():
    base, target = Gaussian(2).double(), Gaussian(2, mean=6.0).double()
    with pytest.raises(AssertionError, match=r"says nothing|standard errors"):
        assert_unbiased(Generator(base, [Noisy()]), target, n=500, rng=make_rng(0))
    with pytest.raises(AssertionError, match="overlap"):
        assert_crooks(Generator(base, []), target, n=500, rng=make_rng(0))
    with pytest.raises(ValueError, match="known log Z"):
        assert_unbiased(Generator(base, []), DoubleWellCluster(), n=10, rng=make_rng(0))


def test_openmm_parity():
    openmm = pytest.importorskip("openmm")
    system = openmm.System()
    force = openmm.HarmonicBondForce()
    for _ in range(3):
        system.addParticle(12.0)
    force.addBond(0, 1, 0.15, 1000.0)
    force.addBond(1, 2, 0.13, 2000.0)
    system.addForce(force)

    def bonds(k):
        def energy(x):
            r = (x[:, 1:] - x[:, :-1]).norm(dim=2)
            equilibrium = torch.tensor([0.15, 0.13], dtype=torch.float64)
            return (0.5 * torch.tensor([1000.0, k], dtype=torch.float64) * (r - equilibrium) ** 2).sum(1)

        return energy

    positions = 0.1 * torch.randn(3, 3, 3, dtype=torch.float64, generator=make_rng(0))
    assert_energy_matches_openmm(bonds(2000.0), system, positions)
    with pytest.raises(AssertionError, match="energy of conformation 0"):
        assert_energy_matches_openmm(bonds(2001.0), system, positions)

    def wrong_force(x):
        u = bonds(2000.0)(x)
        return u.detach() + 1.01 * (u - u.detach())

    with pytest.raises(AssertionError, match="force on atom"):
        assert_energy_matches_openmm(wrong_force, system, positions)


def test_equivariance_failures():
    x = torch.randn(3, 4, 3, dtype=torch.float64, generator=make_rng(0))
    with pytest.raises(AssertionError, match="a rotation changes"):
        assert_equivariant(lambda p: p[..., 0].square().sum(1), x, rng=make_rng(0))
    with pytest.raises(AssertionError, match="a translation changes"):
        assert_equivariant(lambda p: p.square().sum((1, 2)), x, rng=make_rng(0))
    with pytest.raises(AssertionError, match="permutation of atoms"):
        assert_equivariant(lambda p: (p[:, 0] - p[:, 1]).norm(dim=1), x, rng=make_rng(0), permuted=[[1, 2, 3]])
    handed = lambda p: torch.linalg.det(p[:, 1:] - p[:, :1])  # noqa: E731
    assert_equivariant(handed, x, rng=make_rng(0))
    with pytest.raises(AssertionError, match="rotation with reflection"):
        assert_equivariant(handed, x, rng=make_rng(0), reflection=True)
    shifted = lambda p: p - p.mean(1, keepdim=True) + torch.eye(3)[0]  # noqa: E731
    with pytest.raises(AssertionError, match="a rotation changes"):
        assert_equivariant(shifted, x, rng=make_rng(0), output="equivariant")


def test_equivariance_in_a_box():
    box = torch.tensor([2.0, 2.0, 3.0])
    x = 2 * torch.rand(3, 4, 3, dtype=torch.float64, generator=make_rng(0))

    def nearest(p):
        r = p[:, :, None] - p[:, None]
        return r - box * torch.round(r / box)

    squared = lambda p: nearest(p).square().sum((1, 2, 3))  # noqa: E731
    for reflection in (False, True):
        assert_equivariant(squared, x, rng=make_rng(0), permuted=[range(4)], box=box, reflection=reflection)
    with pytest.raises(AssertionError, match="a rotation"):
        assert_equivariant(squared, x, rng=make_rng(0))
    with pytest.raises(AssertionError, match="choice of images"):
        assert_equivariant(lambda p: (p[:, 0] - p[:, 1]).square().sum(1), x, rng=make_rng(0), box=box)
    with pytest.raises(AssertionError, match="a rotation"):
        assert_equivariant(lambda p: nearest(p)[..., 0].square().sum((1, 2)), x, rng=make_rng(0), box=box)


class Springs(VectorField):
    """v_i = Σ_j (x_j − x_i), with one fault."""

    is_gradient = True

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, positions, t=0.0):
        v = positions.shape[1] * (positions.mean(1, keepdim=True) - positions)
        if self.fault == "twist":
            v = v + positions.roll(1, 1) - positions
        if self.fault == "mean":
            v = v + 1.0
        if self.fault == "clock":
            v = v * (1.0 if isinstance(t, float) else 2.0)
        return 0.0 * v if self.fault == "zero" else v

    def divergence(self, positions, t=0.0):
        exact = super().divergence(positions, t)
        return 1.01 * exact if self.fault == "divergence" else exact


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("twist", "transposing the Jacobian"),
        ("mean", "a rotation"),
        ("clock", "one time for all rows"),
        ("zero", "all velocities are zero"),
        ("divergence", "divergence instead of autograd"),
    ],
)
def test_faults_of_vector_fields(fault, message):
    x = torch.randn(3, 4, 3, dtype=torch.float64, generator=make_rng(0))
    check_vector_field(Springs(None), x, rng=make_rng(1), permuted=[range(4)])
    with pytest.raises(AssertionError, match=message):
        check_vector_field(Springs(fault), x, rng=make_rng(1))


def test_harmonic_base_generator_is_unbiased():
    """The identity between two harmonic systems is plain importance sampling."""
    base, target = pair()
    assert isinstance(base, Harmonic)
    assert_unbiased(Generator(base, []), target, n=20_000, rng=make_rng(0))
    assert_crooks(Generator(base, []), target, n=20_000, rng=make_rng(0))
