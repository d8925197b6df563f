"""Pictures as densities: normalisation, force, exact samples, histograms, and what lies outside."""

import pytest
import torch

from boltzflow.errors import UnknownNameError
from boltzflow.run import make_rng
from boltzflow.targets import ImageDensity
from boltzflow.targets.image import EXTENT, PICTURES, picture
from boltzflow.testing import assert_force


@pytest.mark.parametrize("name", PICTURES)
def test_the_density_integrates_to_one_and_samples_follow_it(name):
    target = ImageDensity(name, n_nodes=61).double()
    n = 600
    middle = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * EXTENT - EXTENT
    x = torch.cartesian_prod(middle, middle)
    p = torch.exp(-target.reduced_energy(target.state(x))).reshape(n, n) * (2 * EXTENT / n) ** 2
    # the midpoint rule is exact up to the kinks at the nodes, which lie on its cells
    assert p.sum().item() == pytest.approx(1.0, abs=1e-9)
    expected = p.reshape(12, 50, 12, 50).sum((1, 3)).flatten()
    drawn = target.sample(40_000, make_rng(1))["x"]
    cell = ((drawn + EXTENT) / (2 * EXTENT) * 12).long().clamp(0, 11)
    counts = torch.bincount(cell[:, 0] * 12 + cell[:, 1], minlength=144).double()
    chi2 = ((counts - 40_000 * expected) ** 2 / (40_000 * expected).clamp_min(1e-12))[40_000 * expected > 5].sum()
    assert chi2 < 143 + 5 * (2 * 143) ** 0.5


def test_its_force_is_the_gradient_of_its_energy():
    target = ImageDensity("face").double()
    assert_force(target, target.sample(16, make_rng(2)), rng=make_rng(3))


def test_outside_and_nan_have_no_probability():
    target = ImageDensity("spiral").double()
    x = torch.tensor([[EXTENT + 0.1, 0.0], [0.0, -9.0], [torch.nan, 0.0], [EXTENT, EXTENT]]).double()
    u = target.reduced_energy(target.state(x))
    assert u[:3].isinf().all()
    assert u[3].isfinite()


def test_pictures_are_positive_and_differ():
    pictures = [picture(name) for name in PICTURES]
    assert all((p > 0).all() for p in pictures)
    assert not torch.equal(pictures[0], pictures[1])
    with pytest.raises(UnknownNameError, match="did you mean 'face'"):
        ImageDensity("fase")
