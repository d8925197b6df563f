import pytest
import torch

from boltzflow.networks import MLP, CoordinateFeatures, Linear, ResidualMLP
from boltzflow.networks.linear import silu_rows


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("make", [MLP, ResidualMLP])
@pytest.mark.parametrize("layer", [torch.nn.Linear, Linear])
def test_shapes_gradients_and_zero_init(make, layer):
    network = make(3, 5, layer=layer)
    out = network(torch.randn(7, 3))
    assert out.shape == (7, 5)
    assert network.n_out == 5
    out.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())
    assert make(3, 5, zero_init=True, layer=layer)(torch.randn(7, 3)).abs().max() == 0
    trunk = make(3, layer=layer)
    assert trunk(torch.randn(7, 3)).shape == (7, trunk.n_out) == (7, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 33])
def test_linear_equals_torch(dtype, batch):
    ours, theirs = Linear(5, 4, dtype=dtype), torch.nn.Linear(5, 4, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    for x in (torch.randn(batch, 5, dtype=dtype), torch.randn(5, batch, dtype=dtype).t()):
        results = []
        for layer in (ours, theirs):
            layer.zero_grad()
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            (y * torch.cos(y)).sum().backward()
            results.append((y, leaf.grad, layer.weight.grad, layer.bias.grad))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def silu_network(dtype):
    torch.manual_seed(3)
    layers = [Linear(6, 5, dtype=dtype), Linear(5, 7, dtype=dtype), Linear(7, 4, dtype=dtype)]
    plain = [torch.nn.Linear(a.in_features, a.out_features, dtype=dtype) for a in layers]
    for ours, theirs in zip(layers, plain, strict=True):
        theirs.load_state_dict(ours.state_dict())
    silu = torch.nn.SiLU
    return layers, torch.nn.Sequential(plain[0], silu(), plain[1], silu(), plain[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silu_rows_are_the_network(dtype):
    layers, plain = silu_network(dtype)
    x = torch.randn(9, 6, dtype=dtype)
    results = []
    for function, modules in (
        (lambda x: silu_rows(x, layers).t(), layers),
        (plain, [m for m in plain if hasattr(m, "weight")]),
    ):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        (y * torch.cos(y)).sum().backward()
        results.append([y, leaf.grad, *[p.grad for m in modules for p in (m.weight, m.bias)]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_silu_rows_have_second_derivatives_and_leave_frozen_parameters_alone():
    layers, plain = silu_network(torch.float64)
    x = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    first, expected = (
        torch.autograd.grad(f(x).pow(3).sum(), x, create_graph=True)[0] for f in (lambda x: silu_rows(x, layers), plain)
    )
    second, expected_second = (torch.autograd.grad(g.pow(2).sum(), x)[0] for g in (first, expected))
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected_second)
    layers[1].requires_grad_(requires_grad=False)
    silu_rows(x, layers).sum().backward()
    assert layers[1].weight.grad is None
    assert layers[0].weight.grad is not None


def test_coordinate_features():
    features = CoordinateFeatures(["line", "circle", "interval", "circle"], harmonics=2)
    x = torch.tensor([[0.3, 1.0, 0.75, -2.0]], dtype=torch.float64)
    turned = x + 2 * torch.pi * torch.tensor([0.0, 1.0, 0.0, -2.0], dtype=torch.float64)
    angles = torch.tensor([1.0, -2.0], dtype=torch.float64)
    expected = torch.cat(
        [
            torch.tensor([0.3, 0.25 * 12**0.5], dtype=torch.float64),
            *[f(n * angles) for n in (1, 2) for f in (torch.cos, torch.sin)],
        ]
    )
    out = features.double()(x)
    assert out.shape == (1, features.n_out)
    torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(features(turned), out, rtol=0, atol=1e-12)


def test_period_of_the_features():
    features = CoordinateFeatures(["circle"], period=1.0)
    torch.testing.assert_close(features(torch.tensor([[0.25]])), features(torch.tensor([[3.25]])), rtol=0, atol=1e-5)
