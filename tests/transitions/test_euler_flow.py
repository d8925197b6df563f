"""Euler steps along a field: exact determinants in boxes and clusters, exact inverses, failures that are counted."""

import math

import pytest
import torch

from boltzflow.errors import NonFiniteEnergyError
from boltzflow.generators import Generator
from boltzflow.networks import PairField, VectorField
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import MeanFreeGaussian, Target
from boltzflow.targets.target import Base
from boltzflow.testing import check_transition
from boltzflow.transitions import EulerFlow
from boltzflow.transitions.transition import Bijection

TYPES = [0, 0, 1, 1]


def flow(*, std, n_steps=2, seed=1, **options):
    field = PairField(TYPES, 2, n_basis=6, n_times=2, **options)
    made = EulerFlow(field, n_steps=n_steps).double()
    torch.nn.init.normal_(field.weights, std=std, generator=make_rng(seed))
    return made


def in_a_box(n=5):
    x = 3.0 * torch.rand(n, len(TYPES), 2, dtype=torch.float64, generator=make_rng(2))
    return State({"positions": x}, {"positions": Space("box", (len(TYPES), 2))})


def run():
    return Run(make_rng(3))


@pytest.mark.parametrize("n_steps", [1, 3])
def test_contract_in_a_box(n_steps):
    made = flow(std=0.1, n_steps=n_steps, box=[3.0, 4.0])
    check_transition(made, in_a_box(), run())
    assert made(in_a_box(), run())[1].abs().max() > 0.1


def test_contract_of_a_cluster():
    base, target = (MeanFreeGaussian(len(TYPES), 2, scale=s).double() for s in (1.0, 1.1))
    made = flow(std=0.05, reach=4.0)
    check_transition(made, base.sample(5, make_rng(1)), run(), base=base, target=target)


class Swirl(VectorField):
    """Particles about the first one, sideways: not a gradient."""

    def forward(self, positions, t=0.0):
        r = positions - positions[:, :1]
        v = 0.3 * torch.sin(r.flip(-1)) * torch.tensor([1.0, -1.0], dtype=r.dtype)
        return v - v.mean(1, keepdim=True)


def test_contract_of_a_field_that_is_no_gradient():
    check_transition(EulerFlow(Swirl(), n_steps=2), in_a_box(3), run())


def test_one_step_is_what_it_says():
    made, state = flow(std=0.1, n_steps=1, box=3.0), in_a_box()
    y, ratio = made(state, run())
    expected = state["positions"] + made.field(state["positions"], 0.0)
    torch.testing.assert_close(y["positions"], expected)
    eye = torch.eye(8, dtype=torch.float64)
    log_det = torch.linalg.slogdet(eye + made.field.jacobian(state["positions"])).logabsdet
    torch.testing.assert_close(ratio, log_det, rtol=0.0, atol=1e-12)


class InALine(Target):
    """Two particles in a periodic line of length 1, attracted to the distance 0.3."""

    def __init__(self):
        super().__init__({"positions": Space("box", (2, 1))})
        grid = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
        self.log_z = math.log(torch.exp(-self._pair(grid)).mean())

    def _pair(self, r):
        r = (r - torch.round(r)).abs()
        return 20.0 * (r - 0.3).square()

    def reduced_energy(self, state, context=None):
        x = state["positions"][..., 0]
        return self._pair(x[:, 0] - x[:, 1])


class Anywhere(Base):
    def __init__(self):
        super().__init__({"positions": Space("box", (2, 1))}, log_z=0.0)

    def reduced_energy(self, state, context=None):
        return state["positions"].flatten(1).sum(1) * 0.0

    def sample(self, n, rng, context=None):
        return self.state(torch.rand(n, 2, 1, dtype=torch.float64, generator=rng))


def test_weights_are_exact_in_a_periodic_box():
    field = PairField([0, 0], 1, box=1.0, n_basis=6)
    torch.nn.init.normal_(field.weights, std=0.1, generator=make_rng(4))
    generator = Generator(Anywhere(), [EulerFlow(field, n_steps=2)]).double()
    target = InALine()
    ensemble = generator.sample(20_000, target, seed=1, batch_size=20_000)
    assert ensemble.log_z().error < 0.02
    assert abs(ensemble.log_z().z_score(target.log_z)) < 4
    # half of the weights' logarithm would be missed by far
    assert generator.rollout(1000, target, make_rng(1)).log_ratios[0].std() > 0.1


def test_the_inverse_has_the_derivatives_of_the_solution():
    made, state = flow(std=0.1, box=3.0), in_a_box(3)
    y = made(state, run())[0]["positions"].detach().requires_grad_()
    x = made.reverse(state.replace(positions=y), run())[0]["positions"]
    seen = torch.randn(x.shape, dtype=torch.float64, generator=make_rng(5))
    by_y, by_weights = torch.autograd.grad((x * seen).sum(), [y, made.field.weights])
    step = 1e-5 * torch.randn(y.shape, dtype=torch.float64, generator=make_rng(6))
    turn = 1e-5 * torch.randn(made.field.weights.shape, dtype=torch.float64, generator=make_rng(7))

    @torch.no_grad()
    def value(sign):
        made.field.weights.add_(sign * turn)
        found = (made.reverse(state.replace(positions=y + sign * step), run())[0]["positions"] * seen).sum()
        made.field.weights.sub_(sign * turn)
        return found

    expected = (value(1.0) - value(-1.0)) / 2.0
    assert float((by_y * step).sum() + (by_weights * turn).sum()) == pytest.approx(float(expected), rel=1e-6)


def test_folds_are_failures_and_are_counted():
    made = flow(std=3.0, n_steps=1, box=3.0)
    state = in_a_box(200)
    smallest = torch.linalg.eigvalsh(torch.eye(8) + made.field.jacobian(state["positions"]))[:, 0]
    ratio = made(state, run())[1]
    assert 0 < int(torch.isnan(ratio).sum()) < 200
    assert torch.equal(torch.isnan(ratio), smallest <= 0)
    made.zero_grad()
    torch.where(torch.isnan(ratio), 0.0, ratio).sum().backward()
    assert torch.isfinite(made.field.weights.grad).all()
    back, minus = made.reverse(state, run())
    solved = ~torch.isnan(minus)
    assert 0 < int(solved.sum()) < 200
    assert not torch.isnan(back["positions"][solved]).any()
    again, ratio = made(back.index(solved), run())
    torch.testing.assert_close(again["positions"], state["positions"][solved])
    torch.testing.assert_close(ratio, -minus[solved])


def test_a_generator_of_folds_raises():
    field = PairField([0, 0], 1, box=1.0, n_basis=6)
    torch.nn.init.normal_(field.weights, std=5.0, generator=make_rng(4))
    with pytest.raises(NonFiniteEnergyError, match="the model gave NaN"):
        Generator(Anywhere(), [EulerFlow(field)]).double().sample(500, InALine(), seed=1)


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="n_steps"):
        EulerFlow(Swirl(), n_steps=0)


@pytest.mark.parametrize("make", [lambda: flow(std=0.1, n_steps=2, box=3.0), lambda: EulerFlow(Swirl(), n_steps=2)])
def test_scores_are_those_of_any_bijection(make):
    made, state = make(), in_a_box()
    score = {"positions": torch.randn(5, len(TYPES), 2, dtype=torch.float64, generator=make_rng(4))}
    y, ratio, found = made.forward_with_score(state, run(), score)
    expected_y, expected_ratio, expected = Bijection.forward_with_score(made, state, run(), score)
    torch.testing.assert_close(y["positions"], expected_y["positions"])
    torch.testing.assert_close(ratio, expected_ratio.detach())
    torch.testing.assert_close(found["positions"], expected["positions"], rtol=1e-9, atol=1e-9)
    assert not found["positions"].requires_grad
