"""Systematic resampling: copies, threshold, expectation, bad weights."""

import pytest
import torch

from boltzflow.errors import NonFiniteEnergyError
from boltzflow.run import make_rng
from boltzflow.transitions.resampling import SystematicResampling


def test_copies_are_the_floor_or_ceiling_of_their_expectation():
    rng = make_rng(1)
    log_w = 2 * torch.randn(500, generator=rng, dtype=torch.float64)
    log_w[:20] = -torch.inf
    expected = 500 * torch.softmax(log_w, 0)
    ancestors = SystematicResampling(threshold=1.0).choose(log_w, rng)
    copies = torch.bincount(ancestors, minlength=500).double()
    assert ancestors.dtype == torch.int64
    assert copies.sum() == 500
    assert (copies[:20] == 0).all()
    assert ((copies >= expected.floor() - 1e-9) & (copies <= expected.ceil() + 1e-9)).all()


def test_mean_copies_are_proportional_to_the_weights():
    log_w = torch.tensor([0.3, -1.0, 1.7, 0.0, -0.4], dtype=torch.float64)
    step = SystematicResampling(threshold=1.0)
    rng = make_rng(2)
    copies = torch.stack([torch.bincount(step.choose(log_w, rng), minlength=5) for _ in range(4000)]).double()
    z = (copies.mean(0) - 5 * torch.softmax(log_w, 0)) / (copies.std(0) / 4000**0.5)
    assert z.abs().max() < 3.5


def test_threshold_decides_and_even_weights_are_left():
    log_w = torch.zeros(100, dtype=torch.float64)
    assert SystematicResampling(threshold=1.0).choose(log_w, make_rng(0)) is None
    log_w[:40] = -torch.inf  # effective sample size 60
    assert SystematicResampling(threshold=0.5).choose(log_w, make_rng(0)) is None
    assert SystematicResampling(threshold=0.7).choose(log_w, make_rng(0)) is not None


@pytest.mark.parametrize("bad", [[0.0, torch.nan], [0.0, torch.inf], [-torch.inf, -torch.inf]])
def test_weights_that_cannot_be_normalised_raise(bad):
    with pytest.raises(NonFiniteEnergyError, match="log-weights"):
        SystematicResampling().choose(torch.tensor(bad, dtype=torch.float64), make_rng(0))


def test_bad_threshold_raises():
    with pytest.raises(ValueError, match="threshold"):
        SystematicResampling(threshold=1.5)
