"""Toy densities against values from quadrature, closed forms and the literature."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from boltzflow.run import make_rng
from boltzflow.targets import (
    DoubleWell,
    DoubleWellCluster,
    Funnel,
    GaussianMixture,
    Harmonic,
    LennardJonesCluster,
    ManyWell,
    gmm9,
    gmm25,
    gmm40,
    harmonic_pair,
    mw52,
    mw54,
)


def within(samples, expected, limit=4.0):
    error = samples.double().std() / math.sqrt(len(samples))
    assert abs(samples.double().mean() - expected) < limit * error


def test_double_well_constants():
    target = DoubleWell().double()
    assert target.log_z == pytest.approx(10.293480, abs=1e-6)
    assert target.log_z - math.log(2 * math.pi) == pytest.approx(8.455603, abs=1e-6)
    assert target.well.below(0.0) == pytest.approx(0.1556929, abs=1e-7)
    assert math.log(target.well.below(math.inf) - target.well.below(0.0)) - math.log(target.well.below(0.0)) == (
        pytest.approx(1.690631, abs=2e-6)
    )
    assert target.well.minima == pytest.approx((-1.710828, 1.752520), abs=2e-6)
    x = torch.tensor([[-1.710828, 0.0], [1.752520, 0.0], [-0.041691, 0.0]], dtype=torch.float64)
    expected = torch.tensor([-8.139247, -9.871173, 0.010420], dtype=torch.float64)
    torch.testing.assert_close(target.reduced_energy(target.state(x)), expected, atol=1e-6, rtol=0)


def test_double_well_with_other_parameters_agrees_with_quadrature():
    target = DoubleWell(a=1.0, b=-2.0, c=0.3)
    z, _ = quad(lambda x: math.exp(-(x - 2 * x**2 + 0.3 * x**4)), -np.inf, np.inf)
    assert target.log_z == pytest.approx(math.log(z * math.sqrt(2 * math.pi)), abs=1e-8)


def test_double_well_samples():
    target = DoubleWell().double()
    x = target.sample(50_000, make_rng(0))["x"]
    within((x[:, 0] < 0).double(), 0.1556929)
    within(x[:, 0], 1.187961)
    within(x[:, 1], 0.0)
    within(x[:, 1].square(), 1.0)
    n = len(x)
    ordered = x[:, 0].sort().values[:: n // 200]
    cdf = np.array([target.well.below(float(v)) for v in ordered])
    assert np.abs(cdf - np.arange(0, n, n // 200) / n).max() * math.sqrt(n) < 1.95


@pytest.mark.parametrize(("dimension", "log_z"), [(2, 10.2934797), (32, 164.695675), (64, 329.39135), (512, 2635.1308)])
def test_many_well_log_z(dimension, log_z):
    assert ManyWell(dimension).log_z == pytest.approx(log_z, rel=1e-7)


def test_many_well_samples_and_energy():
    target = ManyWell().double()
    x = target.sample(20_000, make_rng(1))["x"]
    within((x[:, ::2] > 0).double().mean(1), 0.8443071)
    pairs = x[:3].reshape(3, 16, 2)
    expected = -0.5 * pairs[..., 0] - 6 * pairs[..., 0] ** 2 + pairs[..., 0] ** 4 + 0.5 * pairs[..., 1] ** 2
    torch.testing.assert_close(target.reduced_energy(target.state(x[:3])), expected.sum(1))
    with pytest.raises(ValueError, match="even number"):
        ManyWell(3)


def test_delta_many_wells():
    assert mw54().log_z == pytest.approx(-0.541056, abs=1e-6)
    assert mw52().log_z == pytest.approx(42.8172, abs=1e-4)
    target = mw52().double()
    x = target.sample(5, make_rng(0))["x"]
    expected = (x[:, :5] ** 2 - 2).square().sum(1) + 0.5 * x[:, 5:].square().sum(1)
    torch.testing.assert_close(target.reduced_energy(target.state(x)), expected)


def test_mixtures_are_those_of_the_literature():
    first = torch.tensor([[-0.2995, 21.4577], [-32.9218, -29.4376]])
    torch.testing.assert_close(gmm40().means[:2], first, atol=1e-4, rtol=0)
    assert gmm40().scale[0].item() == pytest.approx(1.3132616)
    assert len(gmm9().means) == 9
    assert len(gmm25().means) == 25
    assert gmm25().means.abs().max() == 10
    assert gmm9().scale.square().unique().item() == pytest.approx(0.3)


@pytest.mark.parametrize("make", [gmm9, gmm25, gmm40])
def test_mixture_integrates_to_one(make):
    target = make().double()
    extent = target.means.abs().max().item() + 10
    axis = torch.linspace(-extent, extent, 701, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = torch.exp(-target.reduced_energy(target.state(grid)))
    # the trapezoidal rule on a smooth, vanishing density is exact here
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1.0, abs=1e-9)


def test_mixture_weights_and_modes():
    means = torch.tensor([[-4.0, 0.0, 1.0], [4.0, 0.0, 1.0]], dtype=torch.float64)
    target = GaussianMixture(means, scale=torch.tensor([0.5, 1.0]).double(), weights=torch.tensor([1.0, 3.0]))
    state = target.sample(20_000, make_rng(2))
    within((target.component(state) == 1).double(), 0.75)
    overlapping = GaussianMixture(0.1 * means, scale=1.0, weights=torch.tensor([1.0, 3.0]))
    responsibilities = overlapping.responsibilities(overlapping.sample(20_000, make_rng(4)))
    within(responsibilities[:, 1], 0.75)
    torch.testing.assert_close(responsibilities.sum(1), torch.ones(20_000, dtype=torch.float64))
    within(state["x"][target.component(state) == 0][:, 1].square(), 0.25)
    with pytest.raises(ValueError, match="positive scales"):
        GaussianMixture(means, scale=0.0)


def test_funnel():
    target = Funnel().double()
    x = target.sample(20_000, make_rng(3))["x"]
    within(x[:, 0].square(), 9.0)
    within((x[:, 1:] * (-x[:, :1] / 2).exp()).square().mean(1), 1.0)
    neck = torch.distributions.Normal(torch.tensor(0.0).double(), 3.0).log_prob(x[:, 0])
    rest = torch.distributions.Normal(0.0, (x[:, :1] / 2).exp()).log_prob(x[:, 1:]).sum(1)
    torch.testing.assert_close(-target.reduced_energy(target.state(x)), neck + rest)


def test_harmonic():
    rng = make_rng(4)
    a = torch.randn(5, 5, dtype=torch.float64, generator=rng)
    precision = a @ a.T + 0.5 * torch.eye(5, dtype=torch.float64)
    mean = torch.randn(5, dtype=torch.float64, generator=rng)
    target = Harmonic(precision, mean=mean, offset=-2.0)
    normal = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    state = target.sample(20_000, rng)
    torch.testing.assert_close(target.log_prob(state), normal.log_prob(state["x"]))
    covariance = torch.linalg.inv(precision)
    for i in range(5):
        within((state["x"] - mean)[:, 0] * (state["x"] - mean)[:, i], covariance[0, i])
    with pytest.raises(ValueError, match="positive definite"):
        Harmonic(-precision)


def test_harmonic_pair_free_energy_by_perturbation():
    first, second = (h.double() for h in harmonic_pair((2, 2), displacement=0.3))
    state = first.sample(50_000, make_rng(5))
    weight = (first.reduced_energy(state) - second.reduced_energy(state)).exp()
    within(weight, math.exp(second.log_z - first.log_z))


@pytest.mark.parametrize(("pair_sum", "factor"), [("ordered", 2.0), ("unordered", 1.0)])
def test_lennard_jones_conventions(pair_sum, factor):
    """A regular tetrahedron of edge r_min: six pairs at −ε each, doubled if ordered."""
    target = LennardJonesCluster(4, pair_sum=pair_sum, epsilon=1.5, r_min=2.0, stiffness=0.7).double()
    x = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64) / math.sqrt(2)
    expected = factor * -6 * 1.5 + 0.5 * 0.7 * x.square().sum()
    energy = target.reduced_energy(target.state((x + 3.0)[None]))
    torch.testing.assert_close(energy, expected[None])
    assert target.dimension == 9
    assert pair_sum in target.name


def test_coinciding_particles():
    x = torch.zeros(1, 13, 3, dtype=torch.float64)
    lj = LennardJonesCluster().double()
    assert lj.reduced_energy(lj.state(x)).item() == math.inf
    dw = DoubleWellCluster().double()
    energy, force = dw.energy_and_force(dw.state(x[:, :4, :2]))
    assert energy.item() == pytest.approx(6 * (0.9 * 256 - 4 * 16))
    assert torch.isfinite(force["positions"]).all()


def test_dw4_by_a_short_virial_run():
    """Metropolis sampling of DW4: the virial is d = 6 and ⟨u⟩ is the reference value."""
    target, rng = DoubleWellCluster().double(), make_rng(6)
    x = 3 * torch.randn(2000, 4, 2, dtype=torch.float64, generator=rng)
    u = target.reduced_energy(target.state(x))
    for step in range(1500):
        # a wide proposal now and then carries particles over the barriers
        width = 0.25 if step % 4 else 2.0
        y = x.clone()
        y[:, step % 4] += width * torch.randn(2000, 2, dtype=torch.float64, generator=rng)
        v = target.reduced_energy(target.state(y))
        accept = torch.rand(2000, dtype=torch.float64, generator=rng) < (u - v).exp()
        x, u = torch.where(accept[:, None, None], y, x), torch.where(accept, v, u)
    energy, force = target.energy_and_force(target.state(x))
    within(-((x - x.mean(1, keepdim=True)) * force["positions"]).sum((1, 2)), 6.0)
    within(energy, -22.539)
