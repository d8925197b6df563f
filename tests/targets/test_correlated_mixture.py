"""Mixtures of correlated Gaussians: normalised, sampled exactly; the published wells with their exact energies."""

import math

import pytest
import torch

from boltzflow.run import make_rng
from boltzflow.targets import CorrelatedMixture, perturbation_wells
from boltzflow.testing import check_target


def small():
    angle = torch.tensor(0.7)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    rotations = torch.stack([torch.eye(2), turn])
    variances = torch.tensor([[1.0, 0.2], [0.3, 2.0]])
    return CorrelatedMixture(
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), rotations, variances, weights=torch.tensor([1.0, 3.0])
    )


def test_contract():
    check_target(small().double(), n=4000)


def test_density_is_that_of_torch():
    target = perturbation_wells(10).double()
    state = target.sample(5, make_rng(1))
    log_p = [
        torch.distributions.MultivariateNormal(m, r @ torch.diag(v) @ r.T).log_prob(state["x"]) + w.log()
        for m, r, v, w in zip(target.means, target.rotations, target.variances, target.weights, strict=True)
    ]
    torch.testing.assert_close(-target.reduced_energy(state), torch.logsumexp(torch.stack(log_p), 0))


def test_mean_energy_of_the_published_wells():
    """T7: 3.7482 in 10 dimensions, 476.486 in 1000; and the weight 1/4 of the left well."""
    target = perturbation_wells(10).double()
    assert target.separated_mean_energy() == pytest.approx(3.7482, abs=1e-4)
    state = target.sample(50_000, make_rng(2))
    u = target.reduced_energy(state)
    assert abs(float(u.mean()) - target.separated_mean_energy()) < 4 * float(u.std()) / math.sqrt(len(u))
    left = (state["x"][:, 0] < 0).double().mean()
    assert abs(float(left) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(u))
    torch.testing.assert_close(target.responsibilities(state)[:, 0].mean(), left, rtol=0.01, atol=0.0)


def test_mean_energy_in_a_thousand_dimensions():
    target = perturbation_wells(1000).double()
    assert target.separated_mean_energy() == pytest.approx(476.486, abs=1e-3)
    u = target.reduced_energy(target.sample(1000, make_rng(2)))
    assert abs(float(u.mean()) - target.separated_mean_energy()) < 4 * float(u.std()) / math.sqrt(1000)


def test_bad_input_is_refused():
    eye = torch.eye(2)[None]
    with pytest.raises(ValueError, match="positive variances"):
        CorrelatedMixture(torch.zeros(1, 2), eye, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="orthogonal"):
        CorrelatedMixture(torch.zeros(1, 2), 2 * eye, torch.ones(1, 2))
