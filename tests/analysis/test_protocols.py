"""Several generators and a reference as one estimate: exact, with errors that cover, where each alone is wrong."""

import math

import numpy as np
import pytest
import torch

from boltzflow import cite
from boltzflow.analysis import combine_protocols, two_sided
from boltzflow.errors import LowOverlapError, NonFiniteEnergyError, NormalisationError
from boltzflow.generators import Generator, annealed_importance, smc
from boltzflow.statistics import Groups, mbar, protocol_weights
from boltzflow.targets import Gaussian, GaussianMixture, harmonic_pair
from boltzflow.transitions import HMC, RandomWalkMetropolis
from boltzflow.workflow import cross_log_weights
from tests.analysis.test_two_sided import exact, gaussian_work

LOG_Z = 0.5 * math.log(2 * math.pi)
STATES = ((-0.8, 0.9), (1.0, 1.3))  # mean and width of two protocols, beside the target u = x²/2


def samples(rng, n_k):
    """log w of normal samples of the states, and of the target, under every state."""
    x = np.concatenate([m + s * rng.normal(size=n) for (m, s), n in zip((*STATES, (0, 1)), n_k, strict=True)])
    log_q = np.stack([-0.5 * ((x - m) / s) ** 2 - math.log(s) - LOG_Z for m, s in STATES])
    return x, -0.5 * x**2 - log_q


@pytest.mark.parametrize("n_k", [(120, 40, 60), (60, 120, 0)], ids=["with a reference", "without"])
def test_log_z_is_exact_in_the_mean_and_intervals_cover_it(n_k):
    rng = np.random.default_rng(1)
    found = [protocol_weights(samples(rng, n_k)[1], n_k) for _ in range(400)]
    z = np.array([one.log_z.z_score(LOG_Z) for one in found])
    # 400 z-scores: mean 0 ± 0.05, spread 1 ± 0.035, 380 ± 4.4 intervals cover
    assert abs(z.mean()) < 0.2
    assert 0.88 < z.std() < 1.12
    assert sum(low < LOG_Z < high for low, high in (one.log_z.interval() for one in found)) >= 365
    sums = np.mean([one.overlap.sum(1) for one in found], axis=0)
    assert sums == pytest.approx([1.0] * 3, abs=0.01)


def test_known_normalisations_leave_less_noise_than_mbar_without_them():
    rng, n_k = np.random.default_rng(2), (400, 300, 200)
    mine, free = [], []
    for _ in range(150):
        log_w = samples(rng, n_k)[1]
        mine.append(protocol_weights(log_w, n_k).log_z.value)
        free.append(-mbar(np.vstack([log_w, np.zeros(900)]), n_k).Delta_f[0, 2])
    assert abs(np.mean(free) - LOG_Z) < 4 * np.std(free) / math.sqrt(150)
    assert np.std(mine) < np.std(free)
    found = protocol_weights(log_w, n_k)
    other = mbar(np.vstack([log_w, np.zeros(900)]), n_k)
    assert found.overlap == pytest.approx(other.overlap, abs=0.03)


def test_weights_are_those_of_the_target():
    rng, n_k = np.random.default_rng(3), (4000, 4000, 2000)
    x, log_w = samples(rng, n_k)
    found = protocol_weights(log_w, n_k)
    w = np.exp(found.log_weights)
    assert w.mean() == pytest.approx(math.exp(found.log_z.value), rel=1e-9)
    assert (w * x).sum() / w.sum() == pytest.approx(0.0, abs=0.05)
    assert (w * x**2).sum() / w.sum() == pytest.approx(1.0, abs=0.06)
    shifted = protocol_weights(log_w - np.array([[2.0], [-1.0]]), n_k, log_z_k=(2.0, -1.0))
    assert shifted.log_z.value == pytest.approx(found.log_z.value)


def test_one_protocol_and_a_reference_are_the_two_sided_estimate():
    ensemble, reference, back = gaussian_work(1.5, 300, 1)
    mine = combine_protocols([ensemble], reference, path_log_weights=np.append(ensemble.log_weights, back)[None])
    both = two_sided(ensemble, reference, path_log_weights=back)
    assert mine.log_z.value == pytest.approx(both.log_z.value)
    assert mine.log_z.error == pytest.approx(both.log_z.error)
    assert mine.n_shared == pytest.approx(both.n_shared)


def test_errors_are_between_groups():
    rng, n_k = np.random.default_rng(4), (200, 200, 0)
    log_w = samples(rng, n_k)[1]
    plain = protocol_weights(log_w, n_k).log_z.error
    copies = [Groups.of(np.arange(800) // 4, 800)] * 2
    fourfold = protocol_weights(np.repeat(log_w, 4, axis=1), (800, 800, 0), groups=copies).log_z.error
    assert fourfold == pytest.approx(plain, rel=0.01)


def test_flows_of_one_mode_each_have_both_together():
    """Neither overlaps with the other, so that without their normalisations nothing would join them."""
    means = torch.tensor([[-6.0, 0.0], [6.0, 0.0]], dtype=torch.float64)
    target = GaussianMixture(means, scale=1.0, weights=torch.tensor([0.7, 0.3])).double()
    flows = [Generator(Gaussian(2, mean=mean, scale=1.1).double(), []) for mean in means]
    ensembles = [flow.sample(1000, target, seed=k) for k, flow in enumerate(flows)]
    assert abs(ensembles[1].log_z().z_score(0.0)) > 20
    found = combine_protocols(ensembles, path_log_weights=cross_log_weights(flows, ensembles, target))
    assert abs(found.log_z.z_score(0.0)) < 4
    assert found.overlap[0, 1] < 1e-6
    left = found.ensemble.expectation(lambda s: s["x"][:, 0] < 0)
    assert abs(left.z_score(0.7)) < 4
    assert "veach1995" in cite(found.ensemble)


def test_stochastic_protocols_of_different_schedules_and_a_reference():
    base, target = (t.double() for t in harmonic_pair(2))
    fast = annealed_importance(base, RandomWalkMetropolis(0.5), [0.5, 1.0])
    slow = annealed_importance(base, HMC(0.2, n_leapfrog=2), [0.25, 0.5, 0.75, 1.0])
    reference = exact(target, 400, 3)
    ensembles = [g.sample(400, target, seed=k) for k, g in enumerate((fast, slow))]
    log_w = cross_log_weights([fast, slow], ensembles, target, reference, seed=5)
    found = combine_protocols(ensembles, reference, path_log_weights=log_w)
    assert abs(found.log_z.z_score(target.log_z)) < 3.5
    assert found.log_z.error < min(e.log_z().error for e in ensembles)
    assert len(found.ensemble) == 1200
    u = found.ensemble.mean_reduced_energy()
    assert abs(u.z_score(exact(target, 20_000, 9).mean_reduced_energy())) < 3.5
    with pytest.raises(NormalisationError, match="no normalisation"):
        found.ensemble.log_z()


def test_what_cannot_be_combined_is_refused():
    ensemble, reference, back = gaussian_work(1.0, 50, 1)
    log_w = np.append(ensemble.log_weights, back)[None]
    with pytest.raises(ValueError, match=r"shape \(1, 100\).*cross_log_weights makes them"):
        combine_protocols([ensemble], reference, path_log_weights=log_w[:, ::-1])
    with pytest.raises(ValueError, match="reweight one of them"):
        combine_protocols([ensemble], reference._like(target="other"), path_log_weights=log_w)
    with pytest.raises(ValueError, match="reference has weights"):
        combine_protocols([ensemble], reference._like(log_weights=np.arange(50.0)), path_log_weights=log_w)
    relative = ensemble._like(log_z_base=None, normalisation=None)
    with pytest.raises(NormalisationError, match="got absolute, relative to b"):
        combine_protocols([ensemble, relative], path_log_weights=np.ones((2, 100)))
    assert combine_protocols([relative], reference, path_log_weights=log_w).log_z.note == "relative to b"
    base, target = (t.double() for t in harmonic_pair(2))
    resampled = smc(base, HMC(0.1, n_leapfrog=2), [0.5, 1.0], threshold=1.0).sample(50, target, seed=1)
    with pytest.raises(ValueError, match=r"resampled on the way.*annealed_importance"):
        combine_protocols([resampled], path_log_weights=np.zeros((1, 50)))
    for bad in (np.nan, -np.inf):
        spoilt = np.vstack([log_w, log_w])
        spoilt[1, 3] = bad
        with pytest.raises(NonFiniteEnergyError, match="1 of 100 samples have a log-weight of NaN, or of -inf"):
            protocol_weights(spoilt, (50, 50, 0))
    apart, reference, back = gaussian_work(9.0, 500, 1)
    with pytest.raises(LowOverlapError, match=r"share \S+ effective samples.*Add a protocol that reaches"):
        combine_protocols([apart], reference, path_log_weights=np.append(apart.log_weights, back)[None])


def test_samples_of_weight_zero_count():
    log_w = np.array([[0.0, -np.inf, 0.3, -np.inf], [0.1, -np.inf, 0.2, -np.inf]])
    found = protocol_weights(log_w, (2, 2, 0))
    assert (found.log_weights == -np.inf).tolist() == [False, True, False, True]
    assert found.log_z.value == pytest.approx(math.log(0.5) + 0.15, abs=0.05)
    outside = protocol_weights(np.array([[0.0, 0.0, np.inf, np.inf], [np.inf, 0.1, 0.0, 0.2]]), (2, 2, 0))
    weights = [2.0, 2 / (1 + math.exp(-0.1)), 2.0, 2 * math.exp(0.2)]
    assert np.exp(outside.log_weights) == pytest.approx(weights)
    assert outside.log_z.value == pytest.approx(math.log(np.mean(weights)))
