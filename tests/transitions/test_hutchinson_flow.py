"""Hutchinson's estimate as a weight: unbiased for the divergence, biased in its exponential, unlike perturbation."""

import math

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.networks import VectorField
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import Gaussian, MeanFreeGaussian
from boltzflow.testing import assert_dtypes
from boltzflow.transitions import ApproximateHutchinsonFlow, PerturbedFlow

D, STEPS = 6, 10


class Shear(VectorField):
    """v = x M with M strictly triangular: no divergence, and a determinant of 1 at any number of steps."""

    def __init__(self, strength=1.5):
        super().__init__()
        noise = torch.randn(D, D, dtype=torch.float64, generator=make_rng(1))
        self.register_buffer("matrix", strength * noise.triu(1) / math.sqrt(D))

    def forward(self, positions, t=0.0):
        return positions @ self.matrix


def points(n):
    x = torch.randn(n, D, dtype=torch.float64, generator=make_rng(2))
    return State({"x": x}, {"x": Space("line", (D,))})


def z_of(log_w):
    w = log_w.exp()
    return float((w.mean() - 1.0) / (w.std() / math.sqrt(len(w))))


@pytest.mark.parametrize("probes", ["rademacher", "normal"])
def test_its_exponential_is_biased_where_perturbation_is_not(probes):
    """The divergence and the log-determinant of every step are 0: what is left is the bias of the exponential."""
    flow = ApproximateHutchinsonFlow(Shear(), n_steps=STEPS, probes=probes, name="x")
    state, run = points(20_000), Run(make_rng(3))
    with torch.no_grad():
        y, log_w = flow(state, run)
        exact = PerturbedFlow(Shear(), n_steps=STEPS, name="x")(state, run)[1]
    assert abs(float(log_w.mean() / (log_w.std() / math.sqrt(len(log_w))))) < 4
    assert z_of(log_w) > 8
    assert log_w.exp().mean() == pytest.approx(float((0.5 * log_w.var()).exp()), rel=0.05)
    assert abs(z_of(exact)) < 4
    back, _ = flow.reverse(y, run)
    torch.testing.assert_close(back["x"], state["x"])


def test_half_the_variance_corrects_most_of_it():
    state = points(20_000)
    bias = {}
    for corrected in (False, True):
        flow = ApproximateHutchinsonFlow(Shear(), n_steps=STEPS, n_probes=3, minus_half_variance=corrected, name="x")
        with torch.no_grad():
            bias[corrected] = float(flow(state, Run(make_rng(3)))[1].exp().mean()) - 1.0
    assert bias[False] > 0.05
    assert abs(bias[True]) < 0.3 * bias[False]


def test_the_trace_without_a_centre_of_mass():
    class Growth(VectorField):
        def forward(self, positions, t=0.0):
            return 0.1 * positions

    state = MeanFreeGaussian(3, 2).double().sample(4000, make_rng(1))
    flow = ApproximateHutchinsonFlow(Growth(), probes="normal")
    assert_dtypes(flow, state.index(slice(0, 8)), Run(make_rng(2)))
    trace = flow(state, Run(make_rng(2)))[1]
    assert abs(float((trace.mean() - 0.4) / (trace.std() / math.sqrt(4000)))) < 4
    with pytest.raises(ValueError, match="without a centre of mass expected 'normal'"):
        ApproximateHutchinsonFlow(Growth())(state, Run(make_rng(2)))


def test_ensembles_say_that_they_are_approximate():
    base = Gaussian(D).double()
    flow = ApproximateHutchinsonFlow(Shear(), name="x")
    assert "ApproximateHutchinsonFlow" in Generator(base, [flow]).sample(10, base, seed=1).provenance.methods


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="expected 'rademacher' or 'normal'"):
        ApproximateHutchinsonFlow(Shear(), probes="uniform")
    with pytest.raises(ValueError, match="at least 2 to estimate a variance"):
        ApproximateHutchinsonFlow(Shear(), minus_half_variance=True)
