"""Autoregressive flows: contract in both directions, what every point may see, and the cache of the serial one."""

import pytest
import torch

from boltzflow.networks import CausalTransformer
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.testing import check_transition
from boltzflow.transitions import AutoregressiveFlow


@pytest.fixture(autouse=True)
def _same_initial_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def randomised(module, seed=1, scale=0.2):
    rng = make_rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return module


def flow(types=(0, 1, 0, 2), n_dimensions=3, **options):
    made = AutoregressiveFlow(list(types), n_dimensions, width=16, n_layers=2, head_width=8, **options)
    return randomised(made.double(), scale=0.08)


def positions(n=6, shape=(4, 3)):
    x = torch.randn(n, *shape, dtype=torch.float64, generator=make_rng(2))
    return State({"positions": x}, {"positions": Space("line", shape)})


def run():
    return Run(make_rng(3))


@pytest.mark.parametrize("backwards", [False, True])
def test_contract_on_atoms(backwards):
    made = flow(backwards=backwards)
    check_transition(made, positions(), run())
    assert made(positions(), run())[1].abs().max() > 0.05


def test_contract_on_a_flat_field():
    check_transition(flow([0] * 5, 1), positions(shape=(5,)), run())


@pytest.mark.parametrize("backwards", [False, True])
def test_both_directions_are_the_same_map(backwards):
    made, state = flow(backwards=backwards), positions()
    with torch.no_grad():
        y, ratio = made.forward(state, run())
        x, minus_ratio = made.reverse(y, run())
    torch.testing.assert_close(x["positions"], state["positions"], rtol=0.0, atol=1e-10)
    torch.testing.assert_close(minus_ratio, -ratio, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_point_moves_with_itself_and_those_before_it(backwards):
    made = flow(backwards=backwards)
    y = positions(1)["positions"]

    def back(values):
        return made.reverse(State({"positions": values}, positions().spaces), run())[0]["positions"]

    jacobian = torch.autograd.functional.jacobian(back, y)[0, :, :, 0].abs().sum((1, 3))  # of point i by point j
    seen = jacobian > 0
    expected = torch.ones(4, 4, dtype=torch.bool).tril()
    assert torch.equal(seen, expected.flip(0, 1) if backwards else expected)


def test_the_cache_gives_what_recomputation_gives():
    network = randomised(CausalTransformer([0, 1, 1, 0, 2], 3, 4, width=16, n_layers=3, head_width=8).double())
    points = torch.randn(7, 5, 3, dtype=torch.float64, generator=make_rng(4))
    with torch.no_grad():
        together, cache = network(points), None
        for i in range(5):
            one, cache = network.step(points[:, i - 1] if i else torch.zeros_like(points[:, 0]), i, cache)
            torch.testing.assert_close(one, together[:, i], rtol=0.0, atol=1e-10)
    assert together.std() > 0.1


def test_a_new_one_moves_nothing():
    made, state = AutoregressiveFlow([0] * 4, 3, width=8, n_layers=1, head_width=8).double(), positions()
    y, ratio = made(state, run())
    assert torch.equal(y["positions"], state["positions"])
    assert torch.equal(ratio, torch.zeros_like(ratio))


def test_gradients_reach_every_parameter_both_ways():
    made, state = flow(), positions()
    for step in (made.forward, made.reverse):
        y, ratio = step(state, run())
        loss = y["positions"].square().sum() + ratio.sum()
        gradients = torch.autograd.grad(loss, list(made.parameters()))
        assert all(bool(torch.isfinite(g).all()) for g in gradients)
        assert all(float(g.abs().max()) > 0 for g in gradients)


@pytest.mark.parametrize("wrong", [{"width": 12}, {"n_layers": 0}, {"types": []}])
def test_bad_sizes_are_named(wrong):
    arguments = {"types": [0] * 3, "width": 16, "n_layers": 1, "head_width": 8} | wrong
    with pytest.raises(ValueError, match="multiple of head_width"):
        CausalTransformer(arguments.pop("types"), 3, 6, **arguments)
