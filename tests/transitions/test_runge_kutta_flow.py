"""Runge-Kutta steps: exact determinants and inverses of the very steps, and the order with which they converge."""

import math

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.networks import PairField, ShallowField, TorusField
from boltzflow.objectives import FlowMatching, Step
from boltzflow.run import Run, make_rng
from boltzflow.targets import Gaussian, MeanFreeGaussian, VonMises
from boltzflow.testing import check_transition
from boltzflow.transitions import EulerFlow, RungeKuttaFlow
from boltzflow.transitions.transition import Bijection

METHODS = ["midpoint", "rk4"]


def filled(module, size=0.3):
    rng = make_rng(3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(size * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return module


def run():
    return Run(make_rng(2))


@pytest.mark.parametrize("method", METHODS)
def test_contract(method):
    state = Gaussian(3).double().sample(6, make_rng(1))
    made = RungeKuttaFlow(filled(ShallowField(3, 8).double(), 0.3), n_steps=2, method=method, name="x")
    check_transition(made, state, run())
    angles = VonMises(2).double().sample(6, make_rng(1))
    check_transition(RungeKuttaFlow(filled(TorusField(2, 6).double()), method=method, name="x"), angles, run())


@pytest.mark.parametrize("method", METHODS)
def test_inverse_and_log_determinant_to_the_last_digits(method):
    base = MeanFreeGaussian(5, 2).double()
    made = RungeKuttaFlow(filled(PairField([0] * 5, 2, reach=4.0).double(), 0.03), n_steps=3, method=method)
    state = base.sample(20, make_rng(1))
    with torch.no_grad():
        y, ratio = made(state, run())
        x, minus = made.reverse(y, run())
    assert (x["positions"] - state["positions"]).abs().max() < 1e-12
    assert (minus + ratio).abs().max() < 1e-12
    jacobian = torch.autograd.functional.jacobian(
        lambda x: made(state.replace(positions=x), run())[0]["positions"].sum(0), state["positions"]
    )
    jacobian = jacobian.permute(2, 0, 1, 3, 4).reshape(20, 10, 10)
    assert (torch.linalg.slogdet(jacobian).logabsdet - ratio).abs().max() < 1e-10
    assert ratio.abs().max() > 0.1


def test_they_converge_with_their_order():
    field, state = filled(ShallowField(2, 16).double(), 0.5), Gaussian(2).double().sample(50, make_rng(1))
    with torch.no_grad():
        exact, log_det = RungeKuttaFlow(field, n_steps=400, name="x")(state, run())
        for flow, order in ((EulerFlow, 1), (METHODS[0], 2), (METHODS[1], 4)):
            errors = []
            for n in (4, 8):
                made = (
                    EulerFlow(field, n_steps=n, name="x")
                    if flow is EulerFlow
                    else RungeKuttaFlow(field, n_steps=n, method=flow, name="x")
                )
                y, ratio = made(state, run())
                errors.append([(y["x"] - exact["x"]).abs().mean(), (ratio - log_det).abs().mean()])
            for coarse, fine in zip(*errors, strict=True):
                assert abs(math.log2(coarse / fine) - order) < 0.5


def test_it_has_the_derivatives_of_its_inverse_and_is_trained_by_matching():
    field = filled(ShallowField(2, 4).double(), 0.4)
    made, state = (
        RungeKuttaFlow(field, n_steps=2, method="midpoint", name="x"),
        Gaussian(2).double().sample(4, make_rng(1)),
    )
    y = state["x"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: made.reverse(state.replace(x=y), run())[0]["x"], y, atol=1e-6)
    loss, _ = FlowMatching(Generator(Gaussian(2), [made]).double())(Step(make_rng(1), data=state))
    assert torch.autograd.grad(loss, field.last.weight)[0].abs().max() > 0


def test_folds_are_failures_and_methods_are_checked():
    made = RungeKuttaFlow(filled(ShallowField(2, 8).double(), 6.0), n_steps=1, method="midpoint", name="x")
    with torch.no_grad():
        _, ratio = made(Gaussian(2).double().sample(200, make_rng(1)), run())
    assert 0 < int(torch.isnan(ratio).sum()) < 200
    with pytest.raises((ValueError, TypeError), match="heun"):
        RungeKuttaFlow(ShallowField(2, 4), method="heun")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["forward_with_score", "reverse_with_score"])
def test_scores_are_those_of_any_bijection(method, way):
    made = RungeKuttaFlow(filled(PairField([0] * 4, 2, reach=4.0).double(), 0.03), n_steps=2, method=method)
    state = MeanFreeGaussian(4, 2).double().sample(6, make_rng(1))
    score = {"positions": torch.randn(6, 4, 2, generator=make_rng(4), dtype=torch.float64)}
    score["positions"] -= score["positions"].mean(1, keepdim=True)
    y, ratio, found = getattr(made, way)(state, run(), score)
    expected_y, expected_ratio, expected = getattr(Bijection, way)(made, state, run(), score)
    torch.testing.assert_close(y["positions"], expected_y["positions"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ratio, expected_ratio.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["positions"], expected["positions"], rtol=1e-9, atol=1e-9)
    assert (found["positions"] - score["positions"]).abs().max() > 1e-2
