"""Weights: effective sizes with closed forms, Pareto k against arviz, quantiles, refusals."""

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

from boltzflow.errors import NonFiniteEnergyError
from boltzflow.statistics.means import weight_warnings
from boltzflow.statistics.weights import (
    checked_log_weights,
    forward_ess_fraction,
    kish_ess,
    log_mean_exp,
    log_sum_exp,
    normalised_weights,
    pareto_k,
    weighted_quantile,
)


def test_log_mean_exp_counts_zero_weights_and_survives_large_ones():
    values = torch.tensor([[1000.0, -torch.inf], [-1000.0, -1000.0]])
    assert torch.allclose(log_mean_exp(values), torch.tensor([1000.0 - np.log(2), -1000.0], dtype=torch.float64))
    assert log_sum_exp(values, 0)[0] == 1000.0
    assert log_mean_exp(values).dtype == torch.float64


def test_kish_ess_is_unfiltered_and_counts_zero_weights():
    assert kish_ess([0.0, 0.0, 0.0, -np.inf]) == pytest.approx(3.0)
    assert kish_ess(np.array([800.0, -800.0])) == pytest.approx(1.0)
    # Gaussian log-weights of standard deviation s: the ESS fraction is exp(−s²)
    log_w = np.random.default_rng(0).normal(0, 0.7, 200_000)
    assert kish_ess(log_w) / log_w.size == pytest.approx(np.exp(-0.49), rel=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_weights_are_named(bad):
    with pytest.raises(NonFiniteEnergyError, match=r"1 of 3 are NaN or \+inf"):
        checked_log_weights([0.0, bad, 1.0])


def test_all_zero_and_missing_weights_are_refused():
    with pytest.raises(NonFiniteEnergyError, match="all 2 are -inf"):
        kish_ess([-np.inf, -np.inf])
    with pytest.raises(ValueError, match="shape"):
        kish_ess([])


@pytest.mark.parametrize("n", [30, 224, 226, 1000, 20_000])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_pareto_k_agrees_with_arviz(n, spread):
    log_w = spread * np.random.default_rng(n).normal(size=n)
    assert pareto_k(log_w) == pytest.approx(float(array_stats.psislw(-log_w)[1]), abs=1e-10)


@pytest.mark.parametrize("k", [0.2, 0.6, 1.1])
def test_pareto_k_finds_the_shape_of_a_pareto_tail(k):
    uniform = np.random.default_rng(1).random(400_000)
    assert pareto_k(-k * np.log(uniform) + 500.0) == pytest.approx(k, abs=0.1)


def test_pareto_k_of_degenerate_tails():
    assert pareto_k(np.zeros(100)) == -np.inf
    assert pareto_k([0.0, 1.0, 2.0]) == np.inf
    assert pareto_k(np.repeat([0.0, 1.0, 2.0], 100)) == np.inf
    # one dominant row among many of weight zero
    assert pareto_k(np.r_[np.full(500, -np.inf), np.linspace(0, 40, 20)]) > 0.7


def test_warnings_speak_up_only_when_needed():
    rng = np.random.default_rng(2)
    assert weight_warnings(0.5 * rng.normal(size=1000)) == ()
    assert weight_warnings(np.zeros(20)) == ()
    first, second = weight_warnings(4.0 * rng.normal(size=1000))
    assert "k-hat" in first
    assert "Kish ESS" in second


def test_forward_ess_of_a_gaussian_pair_and_of_a_missed_mode():
    # p = N(0, 1), q = N(m, 1): w = p/q, E_p[w] = exp(m²), E_p[1/w] = 1
    x = np.random.default_rng(3).normal(size=400_000)
    m = 0.6
    assert forward_ess_fraction(-m * x + m**2 / 2 + 17.0) == pytest.approx(np.exp(-(m**2)), rel=0.01)
    # q misses a tenth of p almost everywhere: Kish ESS of its own samples would be 1, this falls
    missed = np.r_[np.full(900, np.log(0.9)), np.full(100, 10.0)]
    assert forward_ess_fraction(missed) < 0.01
    assert forward_ess_fraction([0.0, 0.0, -np.inf]) == 0.0


def test_forward_ess_takes_a_weighted_reference():
    rng = np.random.default_rng(4)
    x = rng.normal(0, 1.3, 400_000)
    own = -0.5 * x**2 + 0.5 * (x / 1.3) ** 2
    found = forward_ess_fraction(-0.6 * x, reference_log_weights=own)
    assert found == pytest.approx(np.exp(-0.36), rel=0.01)


def test_weighted_quantile_equals_repetition():
    values, counts = np.array([3.0, 1.0, 2.0, 5.0]), np.array([1, 3, 2, 4])
    many = weighted_quantile(np.repeat(values, counts * 1000), [0.1, 0.35, 0.9])
    assert many.tolist() == [1.0, 2.0, 5.0]
    x = np.random.default_rng(5).normal(size=100_000)
    shifted = weighted_quantile(x, [0.025, 0.5, 0.975], log_weights=0.5 * x)
    assert shifted == pytest.approx([0.5 - 1.96, 0.5, 0.5 + 1.96], abs=0.05)
    assert weighted_quantile([1.0, 9.0, 2.0], 1.0, log_weights=[0.0, -np.inf, 0.0]) == 2.0
    with pytest.raises(ValueError, match=r"levels in \[0, 1\]"):
        weighted_quantile(x, 1.2)


def test_weights_of_a_float32_tensor_are_float64():
    w = normalised_weights(torch.tensor([0.0, np.log(3.0)], dtype=torch.float32))
    assert w.dtype == np.float64
    assert w == pytest.approx([0.25, 0.75], rel=1e-6)
