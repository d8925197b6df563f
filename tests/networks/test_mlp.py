import pytest
import torch

from boltzflow.networks import MLP, CoordinateFeatures, Linear, ResidualMLP
from boltzflow.networks import linear as linear_module
from boltzflow.networks.linear import affine_rows


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


def test_affine_rows_go_through_onednn_and_have_second_derivatives(monkeypatch):
    a, b, c = (torch.randn(*shape, requires_grad=True) for shape in ((4, 6), (5, 6), (4,)))

    def gradients():
        (first,) = torch.autograd.grad(affine_rows(a, b, c).pow(3).sum(), a, create_graph=True)
        return first, *torch.autograd.grad(first.pow(2).sum(), (a, b, c))

    fast = gradients()
    assert linear_module._ONEDNN is torch.backends.mkldnn.is_available()
    monkeypatch.setattr(linear_module, "_ONEDNN", False)
    for x, y in zip(fast, gradients(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-3)


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
