"""Flow perturbation: an exact bijection with noise, unbiased over isotropic directions, against exact determinants."""

import math

import pytest
import torch

from boltzflow.errors import NonFiniteEnergyError
from boltzflow.generators import Generator
from boltzflow.networks import PairField, ShallowField, VectorField
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import MeanFreeGaussian, harmonic_pair
from boltzflow.testing import assert_crooks, assert_unbiased, check_transition
from boltzflow.transitions import DrawNoise, DropNoise, EulerFlow, FlowPerturbation, PerturbedFlow

D = 4


def run(seed=3):
    return Run(make_rng(seed))


def shallow(d=D, *, size=1.0):
    made, rng = ShallowField(d, 12).double(), make_rng(1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=rng)
    with torch.no_grad():
        made.last.weight.mul_(size)
    return made


def ends(d=D):
    return tuple(end.double() for end in harmonic_pair(d))


def generator(flow, base):
    return Generator(base, [DrawNoise(flow.n_noises, name=flow.name), flow, DropNoise(flow.n_noises, name=flow.name)])


class Linear(VectorField):
    """v = x M."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, positions, t=0.0):
        return positions @ self.matrix


class Backwards(VectorField):
    """The field of the way back: its explicit steps are the inverses of the implicit ones."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, positions, t=0.0):
        return -self.field(positions, 1.0 - t)


def exactly(flow, state):
    """The map of a perturbed flow and its log-determinant."""
    return EulerFlow(Backwards(flow.field), n_steps=flow.n_steps, name=flow.name).reverse(state, run())


def repeated(state, n):
    return State({k: v.repeat_interleave(n, 0) for k, v in state.fields.items()}, state.spaces)


def flat(x):
    return State({"x": x}, {"x": Space("line", (x.shape[1],))})


@pytest.mark.parametrize("per_step", [True, False])
def test_contract_of_the_bijection(per_step):
    flow = FlowPerturbation(shallow(), n_steps=2, per_step=per_step, name="x")
    base, target = ends()
    joint, _ = DrawNoise(flow.n_noises, name="x")(base.sample(4, make_rng(1)), run())
    check_transition(flow, joint, run())
    assert generator(flow, base).is_bijective is False
    assert_crooks(generator(flow, base), target, n=2000, rng=make_rng(4))
    ratio = flow(joint, run())[1]
    assert ratio.abs().max() > 0.1
    turned = flow(joint, run())[0]["x_noise"]
    torch.testing.assert_close(turned.norm(dim=2), joint["x_noise"].norm(dim=2))


@pytest.mark.parametrize("n_directions", [1, 3])
def test_contract_with_directions_inside(n_directions):
    flow = PerturbedFlow(shallow(), n_steps=2, n_directions=n_directions, name="x")
    base, target = ends()
    check_transition(flow, base.sample(4, make_rng(1)), run(), base=base, target=target)


def test_contract_without_a_centre_of_mass():
    base, target = (MeanFreeGaussian(3, 2, scale=s).double() for s in (1.0, 1.1))
    field = PairField([0, 1, 1], 2, reach=4.0, n_basis=6).double()
    torch.nn.init.normal_(field.weights, std=0.03, generator=make_rng(1))
    flow = FlowPerturbation(field, n_steps=2)
    joint, _ = DrawNoise(2)(base.sample(4, make_rng(1)), run())
    check_transition(flow, joint, run())
    assert_crooks(generator(flow, base), target, n=500, rng=make_rng(4))
    check_transition(
        PerturbedFlow(field, n_directions=2), base.sample(4, make_rng(1)), run(), base=base, target=target, n=500
    )


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("particles", [False, True])
def test_the_mean_over_directions_is_the_exact_determinant(per_step, particles):
    """T10: with particles in d = (N − 1) D dimensions, not N D."""
    if particles:
        field = PairField([0, 1, 1, 0], 2, reach=4.0, n_times=2).double()
        torch.nn.init.normal_(field.weights, std=0.05, generator=make_rng(1))
        flow = FlowPerturbation(field, n_steps=3, per_step=per_step)
        state = MeanFreeGaussian(4, 2).double().sample(4, make_rng(2))
    else:
        flow = FlowPerturbation(shallow(), n_steps=3, per_step=per_step, name="x")
        state = ends()[0].sample(4, make_rng(2))
    exact, log_det = exactly(flow, state)
    n = 2000
    joint, _ = DrawNoise(flow.n_noises, name=flow.name)(repeated(state, n), run())
    with torch.no_grad():
        found, ratio = flow(joint, run())
    torch.testing.assert_close(found.index(slice(0, None, n))[flow.name], exact[flow.name])
    relative = (ratio - log_det.repeat_interleave(n)).exp().reshape(4, n)
    z = (relative.mean(1) - 1.0) / (relative.std(1) / math.sqrt(n))
    assert z.abs().max() < 4
    assert log_det.abs().min() > 0.02
    assert relative.std(1).max() < 1.0
    # in another dimension the mean would be seen to be wrong
    d = state.spaces[flow.name].dimension
    wrong = (ratio * (d + 2) / d - log_det.repeat_interleave(n)).exp().reshape(4, n)
    assert ((wrong.mean(1) - 1.0) / (wrong.std(1) / math.sqrt(n))).abs().max() > 6


@pytest.mark.parametrize("d", [3, 10, 30])
def test_isotropic_directions_average_to_the_determinant(d):
    matrix = torch.randn(d, d, dtype=torch.float64, generator=make_rng(d)) * 0.3 / math.sqrt(d)
    flow = FlowPerturbation(Linear(matrix), name="x")
    state = flat(torch.randn(20_000, d, dtype=torch.float64, generator=make_rng(1)))
    with torch.no_grad():
        ratio = flow(DrawNoise(name="x")(state, run())[0], run())[1]
    w = (ratio + torch.linalg.slogdet(torch.eye(d) - matrix).logabsdet).exp()
    assert abs(float((w.mean() - 1.0) / (w.std() / math.sqrt(len(w))))) < 4
    assert w.std() > 0.1


def test_rademacher_noise_is_biased_and_refused():
    """A = diag(0.5 … 1.5): log|det A| is −0.563, which signs never show."""
    stretch = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)
    flow = FlowPerturbation(Linear(torch.diag(1.0 - stretch)), name="x")
    state = flat(torch.randn(20_000, 10, dtype=torch.float64, generator=make_rng(1)))
    joint, _ = DrawNoise(name="x")(state, run())
    w = flow(joint, run())[1].exp()
    exact = -stretch.log().sum()
    assert abs(float((w.mean() - exact.exp()) / (w.std() / math.sqrt(len(w))))) < 4
    signs = flow(joint.replace(x_noise=joint["x_noise"].sign()), run())[1]
    torch.testing.assert_close(signs, torch.full_like(signs, -5.0 * math.log(stretch.square().mean())))
    assert exact > 0.5
    assert signs[0] < -0.4
    for make in (DrawNoise, lambda noise: PerturbedFlow(shallow(), noise=noise)):
        with pytest.raises(ValueError, match="isotropic noise"):
            make(noise="rademacher")


def test_variance_of_one_direction():
    """T4: Var = (d/2) CV² d/(d + 2), CV that of the squared singular values of A, where they are close together."""
    d = 40
    matrix = 0.1 / math.sqrt(d) * torch.randn(d, d, dtype=torch.float64, generator=make_rng(5))
    flow = FlowPerturbation(Linear(matrix), name="x")
    state = flat(torch.randn(20_000, d, dtype=torch.float64, generator=make_rng(1)))
    found = flow(DrawNoise(name="x")(state, run())[0], run())[1].var()
    squared = torch.linalg.svdvals(torch.eye(d) - matrix).square()
    expected = d / 2 * squared.var(correction=0) / squared.mean().square() * d / (d + 2)
    assert float(found) == pytest.approx(float(expected), rel=0.05)


def test_variance_falls_as_one_over_the_steps():
    """T3: at every number of steps unbiased, and L · Var the same."""
    d, n = 20, 10_000
    matrix = 0.35 / math.sqrt(d) * torch.randn(d, d, dtype=torch.float64, generator=make_rng(5))
    state = flat(torch.randn(n, d, dtype=torch.float64, generator=make_rng(1)))
    scaled = []
    for steps in (1, 5, 20):
        flow = FlowPerturbation(Linear(matrix), n_steps=steps, name="x")
        ratio = flow(DrawNoise(steps, name="x")(state, run())[0], run())[1]
        log_det = -steps * torch.linalg.slogdet(torch.eye(d) - matrix / steps).logabsdet
        w = (ratio - log_det).exp()
        assert abs(float((w.mean() - 1.0) / (w.std() / math.sqrt(n)))) < 4
        scaled.append(steps * float(ratio.var()))
    assert scaled[1] == pytest.approx(scaled[2], rel=0.1)
    assert scaled[0] == pytest.approx(scaled[2], rel=0.25)


def test_orthogonal_directions_are_unbiased_and_better_than_one():
    state = ends()[0].sample(1, make_rng(2))
    spread = {}
    for k in (1, 2, D):
        flow = PerturbedFlow(shallow(), n_steps=2, n_directions=k, name="x")
        log_det = exactly(flow, state)[1]
        with torch.no_grad():
            w = (flow(repeated(state, 4000), run())[1] - log_det).exp()
        assert abs(float((w.mean() - 1.0) / (w.std() / math.sqrt(len(w))))) < 4
        spread[k] = float(w.var())
    assert spread[2] < 0.45 * spread[1]
    assert spread[D] < 0.2 * spread[1]


@pytest.mark.parametrize("inside", [False, True])
def test_weights_are_unbiased_both_ways(inside):
    base, target = ends()
    if inside:
        made = Generator(base, [PerturbedFlow(shallow(size=0.3), n_steps=4, n_directions=2, name="x")])
    else:
        made = generator(FlowPerturbation(shallow(size=0.3), n_steps=4, name="x"), base)
    assert_unbiased(made, target, n=4000, rng=make_rng(7))
    ensemble = made.sample(4000, target, seed=1)
    assert abs(ensemble.log_z().z_score(target.log_z)) < 4


def test_derivatives_by_the_parameters():
    flow = FlowPerturbation(shallow(3), n_steps=2, name="x")
    joint, _ = DrawNoise(2, name="x")(ends(3)[0].sample(2, make_rng(1)), run())
    rng = make_rng(6)
    turn = [1e-5 * torch.randn(p.shape, dtype=torch.float64, generator=rng) for p in flow.parameters()]

    def seen(step):
        state, ratio = step(joint, run())
        return ratio.sum() + (state["x"] * torch.arange(3)).sum() + state["x_noise"].sin().sum()

    @torch.no_grad()
    def moved(step, sign):
        for p, dp in zip(flow.parameters(), turn, strict=True):
            p.add_(sign * dp)
        value = seen(step)
        for p, dp in zip(flow.parameters(), turn, strict=True):
            p.sub_(sign * dp)
        return value

    for step in (flow.forward, flow.reverse):
        gradients = torch.autograd.grad(seen(step), list(flow.parameters()))
        found = sum(float((g * dp).sum()) for g, dp in zip(gradients, turn, strict=True))
        expected = float(moved(step, 1.0) - moved(step, -1.0)) / 2.0
        assert found == pytest.approx(expected, rel=1e-6)


def test_steps_that_do_not_contract_are_failures_and_are_counted():
    flow = FlowPerturbation(shallow(size=8.0), name="x")
    joint, _ = DrawNoise(name="x")(ends()[0].sample(200, make_rng(1)), run())
    y, ratio = flow(joint, run())
    failed = torch.isnan(ratio)
    assert 0 < int(failed.sum()) < 200
    assert torch.isfinite(y["x"]).all()
    torch.where(failed, 0.0, ratio).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters())
    with torch.no_grad():
        back, minus = flow.reverse(y.index(~failed), run())
    torch.testing.assert_close(back["x"], joint["x"][~failed])
    torch.testing.assert_close(minus, -ratio[~failed].detach())
    with pytest.raises(NonFiniteEnergyError, match="the model gave NaN"):
        generator(flow, ends()[0]).sample(500, ends()[1], seed=1)


def test_a_drift_of_the_centre_is_removed():
    class Drifting(VectorField):
        def forward(self, positions, t=0.0):
            return 0.1 * positions.sin() + 1.0

    state = MeanFreeGaussian(3, 2).double().sample(4, make_rng(2))
    flow = FlowPerturbation(Drifting())
    joint, _ = DrawNoise()(state, run())
    torch.testing.assert_close(flow(joint, run())[0]["positions"].mean(1), torch.zeros(4, 2, dtype=torch.float64))
    check_transition(flow, joint, run())


def test_bad_input_is_refused():
    state = ends()[0].sample(2, make_rng(1))
    with pytest.raises(ValueError, match=r"put DrawNoise\(2, name='x'\) before it"):
        FlowPerturbation(shallow(), n_steps=2, name="x")(state, run())
    with pytest.raises(ValueError, match="already"):
        DrawNoise(name="x")(DrawNoise(name="x")(state, run())[0], run())
    with pytest.raises(ValueError, match="put DrawNoise before"):
        DropNoise(name="x")(state, run())
    with pytest.raises(ValueError, match="at most the dimension 4"):
        PerturbedFlow(shallow(), n_directions=5, name="x")(state, run())
    with pytest.raises(ValueError, match="expected 'normal', got 'uniform'"):
        DrawNoise(noise="uniform")
    with pytest.raises(ValueError, match="n_steps"):
        FlowPerturbation(shallow(), n_steps=0)
    sphere = State({"x": torch.eye(4)}, {"x": Space("sphere", (4,), 3)})
    with pytest.raises(ValueError, match="lives on 'sphere'"):
        PerturbedFlow(shallow(), name="x")(sphere, run())
