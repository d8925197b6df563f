"""Fitting the density of torsion blocks: it learns a known one, helps, repeats, and refuses bad frames."""

import math

import pytest
import torch

from boltzflow.run import make_rng
from boltzflow.testing import run_at
from boltzflow.training import fit_torsion_density
from boltzflow.transitions import TorsionBlockFlow, TorsionDensity
from boltzflow.transitions.compiled import uncompiled
from tests.transitions.polymer import Polymer, chain_blocks

SETTINGS = {"bins": 8, "hidden": (32,), "fused": False, "batch_size": 256, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def trained():
    target, blocks = Polymer(), chain_blocks(("pivot",))
    frames = target.sample(4000, make_rng(1))["positions"]
    with uncompiled():
        return target, blocks, frames, fit_torsion_density(blocks, frames, rng=make_rng(2), steps=150, **SETTINGS)


def test_the_likelihood_comes_near_to_the_exact_conditional(trained):
    target, blocks, _, fit = trained
    assert abs(fit.uniform - 2 * math.log(2 * math.pi)) < 1e-12
    # the entropy of each block given the third torsion, by quadrature
    n = 48
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * math.pi - math.pi
    joint = torch.exp(-target.torsion_energy(torch.cartesian_prod(grid, grid, grid))).reshape(n, n, n)
    joint = joint / joint.sum() / (2 * math.pi / n) ** 3
    cell = (2 * math.pi / n) ** 3
    whole = -float((joint * joint.log()).sum()) * cell
    entropies = []
    for given in (2, 0):  # pivots are the torsions 0, 1 given 2, and 1, 2 given 0
        marginal = joint.sum(dim=[k for k in range(3) if k != given]) * (2 * math.pi / n) ** 2
        entropies.append(whole + float((marginal * marginal.log()).sum()) * 2 * math.pi / n)
    assert len(blocks) == 2
    exact = sum(entropies) / 2
    assert exact - 0.06 < fit.held_out < exact + 0.25
    assert fit.uniform - fit.held_out > 0.7


def test_a_trained_density_is_accepted_more_often_than_a_uniform_one(trained):
    target, blocks, _, fit = trained
    assert not any(p.requires_grad for p in fit.density.parameters())
    assert {p.dtype for p in fit.density.parameters()} == {torch.float64}
    state = target.sample(2000, make_rng(3))
    uniform = TorsionDensity.of(blocks, bins=8, hidden=(32,), fused=False).double().requires_grad_(False)
    rates = []
    for density in (uniform, fit.density):
        kernel = TorsionBlockFlow(blocks, density)
        kernel.step(state, run_at(target, make_rng(4)))
        rates.append(float(kernel.last_acceptance.mean()))
    assert rates[0] < 0.4
    assert rates[1] > 0.65


def test_the_same_stream_gives_the_same_density(trained):
    _, blocks, frames, _ = trained
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = (
        fit_torsion_density(blocks, frames[:100], rng=make_rng(5), steps=3, **SETTINGS).density for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)  # the global stream is left alone


def test_frames_that_cannot_be_learned_from_are_refused(trained):
    _, blocks, frames, _ = trained
    with pytest.raises(ValueError, match="at least two frames"):
        fit_torsion_density(blocks, frames[:1], rng=make_rng(1), steps=1)
    broken = frames[:20].clone()
    broken[3, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        fit_torsion_density(blocks, broken, rng=make_rng(1), steps=1)
