"""The constrained step: multipliers, bounds and dual in closed form on Gaussians."""

import math

import pytest
import torch

from boltzflow.objectives import constrained_step

N = 100_000
S, MEAN, SIGMA = 2.0, 1.5, 0.4
"""q = N(0, S²), p = N(MEAN, SIGMA²)."""


def quantiles():
    """Points of q with equal weights, so that means over them are quadratures."""
    return S * torch.special.ndtri((torch.arange(N) + 0.5).double() / N)


def log_p(x):
    return -0.5 * ((x - MEAN) / SIGMA) ** 2 - 17.0  # not normalised


def log_q(x):
    return -0.5 * (x / S) ** 2 - math.log(S) - 0.5 * math.log(2 * math.pi)


def exact(trust, entropy):
    """Mean and deviation of q' ∝ q^(λ/(1+λ+η)) p^(1/(1+λ+η)), KL(q'‖q) and H(q) − H(q')."""
    precision = (trust / S**2 + 1 / SIGMA**2) / (1 + trust + entropy)
    deviation = precision**-0.5
    mean = MEAN / SIGMA**2 / (1 + trust + entropy) / precision
    kl = math.log(S / deviation) + (deviation**2 + mean**2) / (2 * S**2) - 0.5
    return mean, deviation, kl, math.log(S / deviation)


@pytest.mark.parametrize(
    ("max_kl", "max_entropy_loss", "binds"),
    [
        (0.3, math.inf, (True, False)),
        (0.2, 0.1, (True, True)),
        (50.0, 0.2, (False, True)),
        (50.0, 50.0, (False, False)),
    ],
)
def test_both_bounds_hold_in_closed_form(max_kl, max_entropy_loss, binds):
    x = quantiles()
    found = constrained_step(log_p(x), log_q(x), max_kl=max_kl, max_entropy_loss=max_entropy_loss)
    assert (found.trust > 0, found.entropy > 0) == binds
    mean, deviation, kl, entropy_loss = exact(found.trust, found.entropy)
    assert found.kl == pytest.approx(kl, abs=1e-3)
    assert found.entropy_loss == pytest.approx(entropy_loss, abs=1e-3)
    if binds[0]:
        assert found.kl == pytest.approx(max_kl, rel=1e-6)
    else:
        assert kl <= max_kl
    if binds[1]:
        assert found.entropy_loss == pytest.approx(max_entropy_loss, rel=1e-6)
    else:
        assert entropy_loss <= max_entropy_loss
    w = found.log_ratio.exp()
    assert w.mean().item() == pytest.approx(1.0, rel=1e-10)
    assert (w * x).mean().item() == pytest.approx(mean, abs=2e-3)
    assert ((w * x.square()).mean() - mean**2).sqrt().item() == pytest.approx(deviation, abs=2e-3)


def test_the_multipliers_maximise_the_dual_and_leave_no_gap():
    x, max_kl, max_loss = quantiles(), 0.2, 0.1
    p, q = log_p(x), log_q(x)
    found = constrained_step(p, q, max_kl=max_kl, max_entropy_loss=max_loss)

    def dual(trust, entropy):
        scale = 1 + trust + entropy
        log_mean = torch.logsumexp((p - (1 + entropy) * q) / scale, 0) - math.log(N)
        return (-scale * log_mean - trust * max_kl + entropy * (-q.mean() - max_loss)).item()

    best = dual(found.trust, found.entropy)
    for a in (-1e-2, 0.0, 1e-2):
        for b in (-1e-2, 0.0, 1e-2):
            assert dual(found.trust * (1 + a), found.entropy * (1 + b)) <= best + 1e-9
    w = found.log_ratio.exp()
    primal = (w * (q + found.log_ratio - p)).mean().item()  # KL(q'‖p) up to log Z
    assert primal == pytest.approx(best, abs=1e-6)


def test_samples_without_density_have_no_weight():
    x = quantiles()
    p = torch.where(x > 0, log_p(x), -torch.inf)
    found = constrained_step(p, log_q(x), max_kl=1.0)
    assert found.kl == pytest.approx(1.0, rel=1e-6)
    assert (found.log_ratio[x <= 0] == -torch.inf).all()
    # half of the samples lack density, which alone is a divergence of log 2: the step is as small as it can be
    least = constrained_step(p, log_q(x), max_kl=0.1)
    assert least.kl == pytest.approx(math.log(2), abs=1e-4)
    # energies of clashes
    rough = constrained_step(-(x.abs() * 12).exp(), log_q(x), max_kl=0.3)
    assert rough.kl == pytest.approx(0.3, rel=1e-5)


def test_bad_bounds_are_refused():
    x = quantiles()[:10]
    for bounds in ({"max_kl": 0.0}, {"max_kl": 1.0, "max_entropy_loss": 0.0}):
        with pytest.raises(ValueError, match="expected positive bounds"):
            constrained_step(log_p(x), log_q(x), **bounds)
    with pytest.raises(ValueError, match="no sample has density"):
        constrained_step(torch.full_like(x, -torch.inf), log_q(x), max_kl=1.0)
