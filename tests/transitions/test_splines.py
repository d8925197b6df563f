import os
import subprocess
import sys

import pytest
import torch
import zuko

from boltzflow.transitions import compiled
from boltzflow.transitions.spline_kernels import conditioned_spline, n_spline_parameters
from boltzflow.transitions.splines import rq_spline, rq_spline_circle, rq_spline_line, wrap_unit

PI = torch.pi


def knots(bins, n, *, seed=0, minimum=1e-3, spread=3.0):
    """Random widths, heights and derivatives; float64."""
    g = torch.Generator().manual_seed(seed)
    sizes = [
        minimum
        + (1 - bins * minimum) * torch.softmax(spread * torch.randn(bins, n, generator=g, dtype=torch.float64), 0)
        for _ in range(2)
    ]
    return *sizes, torch.exp(1.5 * torch.randn(bins + 1, n, generator=g, dtype=torch.float64))


def mixed(d, n, *, bins=4, seed=0, dtype=torch.float64, spread=1.0):
    """Points of mixed kinds inside and outside the bent part of a line, raw parameters, and the masks of the kinds."""
    g = torch.Generator().manual_seed(seed)
    raw = spread * torch.randn(n_spline_parameters(bins), d, n, generator=g, dtype=dtype)
    kind = torch.arange(d) % 3
    line, circle = (kind == 0)[:, None], (kind == 1)[:, None]
    u = torch.rand(d, n, generator=g, dtype=dtype)
    return torch.where(line, 14 * u - 7, torch.where(circle, 2 * PI * u - PI, u)), raw, line, circle


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(compiled.compiler, "off", True)


def test_equals_zuko():
    g = torch.Generator().manual_seed(1)
    raw = [torch.randn(200, k, generator=g, dtype=torch.float64) for k in (8, 8, 7)]
    oracle = zuko.transforms.MonotonicRQSTransform(*raw, bound=3.0)
    widths, heights = (t.diff(dim=-1).t() / 6.0 for t in (oracle.horizontal, oracle.vertical))
    inner = oracle.derivatives[:, 1:-1].t()
    x = 8 * torch.rand(200, generator=g, dtype=torch.float64) - 4
    expected, ladj = oracle.call_and_ladj(x)
    y, log_derivative = rq_spline_line(x, widths, heights, inner, bound=3.0)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_derivative, ladj, rtol=0, atol=1e-12)
    back, log_back = rq_spline_line(expected, widths, heights, inner, bound=3.0, inverse=True)
    torch.testing.assert_close(back, oracle.inv(expected), rtol=0, atol=1e-11)
    torch.testing.assert_close(log_back, -ladj, rtol=0, atol=1e-10)


def test_round_trip_of_many_points():
    w, h, d = knots(8, 100_000)
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y, forward = rq_spline(x, w, h, d)
    back, backward = rq_spline(y, w, h, d, inverse=True)
    # an ulp of y is dx/dy ulps of x
    error = (back - x).abs() / torch.clamp(torch.exp(-forward), min=1.0)
    assert error.max() < 1e-14
    image, _ = rq_spline(back, w, h, d)
    assert (image - y).abs().max() < 1e-12
    curvature = torch.clamp(torch.exp(-forward), min=1.0) / torch.minimum(w, h).min(0).values
    assert ((forward + backward).abs() / curvature).max() < 1e-13
    w, h, d = knots(8, 100_000, spread=1.0)
    d = d.clamp(min=0.1)
    y, forward = rq_spline(x, w, h, d)
    back, _ = rq_spline(y, w, h, d, inverse=True)
    # relative to x where that is well posed, i.e. where the relative error of y is not blown up
    assert ((back - x).abs() / x * torch.clamp(x * torch.exp(forward) / y, max=1.0)).max() < 1e-12


@pytest.mark.parametrize("inverse", [False, True])
def test_knots_ends_and_smallest_bins(inverse):
    # all but one bin at the minimum, in opposite places: slopes from 1e-3 to 1e3
    bins, least = 8, 1e-3
    w = torch.full((bins, 1), least, dtype=torch.float64)
    h = w.clone()
    w[0], h[-1] = 1 - 7 * least, 1 - 7 * least
    d = torch.full((bins + 1, 1), least, dtype=torch.float64)
    edges = torch.cat([torch.zeros(1, 1, dtype=torch.float64), (h if inverse else w).cumsum(0)])
    edges[-1] = 1.0
    x = torch.cat(
        [edges, edges - 1e-13, edges + 1e-13, torch.tensor([[5e-324], [1e-300], [1 - 2.0**-53]], dtype=torch.float64)]
    )
    x = x[(x >= 0) & (x <= 1)]
    wide = [t.expand(-1, len(x)) for t in (w, h, d)]
    y, forward = rq_spline(x, *wide, inverse=inverse)
    back, _ = rq_spline(y, *wide, inverse=not inverse)
    assert torch.isfinite(forward).all()
    assert ((y >= 0) & (y <= 1)).all()
    assert ((back - x).abs() * torch.clamp(torch.exp(forward), max=1.0)).max() < 1e-15
    order = x.argsort()
    assert (y[order].diff() >= 0).all()
    images = rq_spline(edges[:, 0], *[t.expand(-1, bins + 1) for t in (w, h, d)], inverse=inverse)[0]
    torch.testing.assert_close(
        images,
        torch.cat([torch.zeros(1, dtype=torch.float64), (w if inverse else h)[:, 0].cumsum(0)]),
        rtol=0,
        atol=1e-15,
    )


def test_outside_the_domain():
    w, h, d = knots(4, 4)
    x = torch.tensor([-1e-9, 1 + 1e-9, torch.nan, torch.inf], dtype=torch.float64)
    y, log_derivative = rq_spline(x, w, h, d)
    assert torch.isnan(y).all()
    assert torch.isnan(log_derivative).all()
    x = torch.tensor([-7.0, 5.5, torch.nan, 1e30], dtype=torch.float64)
    y, log_derivative = rq_spline_line(x, w, h, d[1:-1])
    torch.testing.assert_close(y, x, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(log_derivative, x - x, equal_nan=True, rtol=0, atol=0)


def test_circle_is_continuous_across_the_cut():
    w, h, d = (t[..., :1].expand(-1, 3) for t in knots(5, 1))
    eps = 1e-12
    x = torch.tensor([PI - eps, -PI + eps, 3 * PI - eps], dtype=torch.float64)
    y, log_derivative = rq_spline_circle(x, w, h, d[1:], shift=0.7)
    assert (torch.sin(y - y[0])).abs().max() < 1e-9
    assert (log_derivative - log_derivative[0]).abs().max() < 1e-7
    assert ((y > -PI) & (y <= PI)).all()
    torch.testing.assert_close(y[0], y[2], rtol=0, atol=1e-13)
    back, log_back = rq_spline_circle(y, w, h, d[1:], shift=0.7, inverse=True)
    torch.testing.assert_close(
        back, torch.tensor([PI - eps, -PI + eps, PI - eps], dtype=torch.float64), rtol=0, atol=1e-13
    )
    torch.testing.assert_close(log_back, -log_derivative, rtol=0, atol=1e-11)
    assert wrap_unit(torch.tensor([0.0, 1.0, 0.25, -0.25, 2.0])).tolist() == [1.0, 1.0, 0.25, 0.75, 1.0]


@pytest.mark.parametrize("inverse", [False, True])
def test_closed_form_gradient(eager, inverse):
    x, raw, line, circle = mixed(3, 4, bins=3)
    x, raw = x.requires_grad_(), raw.requires_grad_()

    def f(x, raw):
        return conditioned_spline(x, raw, line, circle, inverse=inverse)

    assert torch.autograd.gradcheck(f, (x, raw))
    assert torch.autograd.gradgradcheck(f, (x, raw))


@pytest.mark.parametrize("inverse", [False, True])
def test_log_derivative_is_that_of_autograd(eager, inverse):
    x, raw, line, circle = mixed(6, 50)
    x.requires_grad_()
    y, log_derivative = conditioned_spline(x, raw, line, circle, inverse=inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_derivative, slope.log(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        slope,
        torch.autograd.grad(conditioned_spline(x, raw, line, circle, inverse=inverse, fused=False)[0].sum(), x)[0],
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mixed_kinds_round_trip(eager, dtype):
    x, raw, line, circle = mixed(30, 2000, dtype=dtype, bins=8)
    y, forward = conditioned_spline(x, raw, line, circle)
    back, backward = conditioned_spline(y, raw, line, circle, inverse=True)
    difference = torch.where(circle, torch.sin(back - x), back - x)
    # an ulp of the image is dx/dy ulps of the point, and the domains are up to 14 long
    eps = torch.finfo(dtype).eps
    assert (difference.abs() / torch.clamp(torch.exp(-forward), min=1.0)).max() < 50 * eps
    assert ((forward + backward).abs() / torch.clamp(torch.exp(-forward), min=1.0)).max() < 1e4 * eps
    assert y.dtype == forward.dtype == dtype


def test_zero_is_the_identity(eager):
    x, raw, line, circle = mixed(6, 100)
    y, log_derivative = conditioned_spline(x, torch.zeros_like(raw), line, circle)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
    assert log_derivative.abs().max() < 1e-14


def test_rows_outside_an_interval_send_no_gradient(eager):
    x = torch.tensor([[-0.1, 0.5, 1.1]], dtype=torch.float64, requires_grad=True)
    raw = torch.randn(13, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    none = torch.zeros(1, 1, dtype=torch.bool)
    y, _ = conditioned_spline(x, raw, none, none)
    assert torch.isnan(y[0]).tolist() == [True, False, True]
    y[:, 1].sum().backward()
    assert raw.grad[..., 0].abs().max() == raw.grad[..., 2].abs().max() == 0
    assert x.grad[0, 1] > 0


@pytest.mark.parametrize("rows", [12, 3 * 1000 + 1])
def test_impossible_bins_raise(rows):
    none = torch.zeros(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="min_bin"):
        conditioned_spline(torch.zeros(1, 1), torch.zeros(rows, 1, 1), none, none)


def test_compiled_equals_eager_for_any_batch(monkeypatch):
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    for inverse in (False, True):
        for n in (5, 64, 37):
            x, raw, line, circle = mixed(3, n, bins=2)
            results = []
            for off in (True, False):
                monkeypatch.setattr(compiled.compiler, "off", off)
                leaf = [x.clone().requires_grad_(), raw.clone().requires_grad_()]
                y, log_derivative = conditioned_spline(*leaf, line, circle, inverse=inverse)
                results.append([y, log_derivative])
                if inverse:  # one direction will do: each of them takes seconds to compile
                    results[-1] += torch.autograd.grad((y * torch.cos(y)).sum() + log_derivative.sum(), leaf)
            assert not compiled.compiler.off, "the compiled kernels were given up"
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    # forward, inverse and the inverse's backward: one graph each, whatever the batch
    assert counters["unique_graphs"] - before <= 3


def test_without_a_compiler_one_line_is_logged(tmp_path):
    code = """
import logging, torch
logging.basicConfig(format="%(message)s")
from boltzflow.transitions.spline_kernels import conditioned_spline
none = torch.zeros(2, 1, dtype=torch.bool)
for _ in range(3):
    y, _ = conditioned_spline(torch.full((2, 5), 0.3), torch.zeros(7, 2, 5), none, none)
print("kept", torch.allclose(y, torch.full((2, 5), 0.3)))
"""
    environment = {
        **os.environ,
        "PATH": str(tmp_path),
        "CXX": str(tmp_path / "none"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    environment.pop("BOLTZFLOW_COMPILE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "kept True" in done.stdout, done.stderr
    assert done.stderr.count("Kernels run uncompiled") == 1
