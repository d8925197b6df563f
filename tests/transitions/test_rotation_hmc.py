"""RotationHMC: exact in the normal part, balanced for any scale, and steps that do not shrink with the dimension."""

import math

import pytest
import torch

from boltzflow.generators import annealed_importance
from boltzflow.run import make_rng
from boltzflow.targets import DoubleWell, Gaussian, MeanFreeGaussian, VonMises, harmonic_pair
from boltzflow.testing import assert_crooks, assert_unbiased, run_at
from boltzflow.transitions import HMC, RotationHMC


def level(target, seed=1):
    return run_at(target, make_rng(seed))


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_weights_are_exact_in_both_directions(scale):
    base, target = (end.double() for end in harmonic_pair(3))
    generator = annealed_importance(base, RotationHMC(0.3, n_rotations=2, scales={"x": scale}), [0.3, 0.7, 1.0])
    assert_unbiased(generator, target, n=10_000, rng=make_rng(1))
    assert_crooks(generator, target, n=3_000, rng=make_rng(2))


def test_samples_of_the_target_stay_samples_of_it():
    target = DoubleWell().double()
    kernel = RotationHMC(0.25, n_rotations=2, n_steps=3, scales={"x": 0.7})
    before = target.sample(10_000, make_rng(3))
    after = kernel.step(before, level(target))
    for value in (lambda s: s["x"][:, 0], lambda s: s["x"][:, 0] ** 4, lambda s: s["x"][:, 1] ** 2):
        change = value(after) - value(before)
        assert abs(float(change.mean() / (change.std() / math.sqrt(len(change))))) < 4
        assert change.abs().mean() > 0.05
    assert 0.3 < kernel.acceptance_rate() < 0.98


def test_the_normal_density_of_its_scale_is_solved_exactly_at_any_step():
    target = Gaussian(1000, scale=0.5).double()
    start = target.sample(50, make_rng(3))
    kernel = RotationHMC(1.2, n_rotations=4, scales={"x": 0.5})
    state, odds = kernel.propose(start, level(target))
    torch.testing.assert_close(odds, torch.zeros_like(odds), atol=1e-9, rtol=0)
    assert (state["x"] - start["x"]).square().mean() > 0.1
    # leapfrog of the same velocities, masses and angles loses energy to every coordinate
    masses = {"x": torch.tensor(4.0).double()}
    _, lost = HMC(1.2, n_leapfrog=4, masses=masses).propose(start, level(target))
    assert lost.abs().mean() > 10


def test_the_centre_of_mass_stays():
    target = MeanFreeGaussian(4, 2, scale=1.2).double()
    state = RotationHMC(0.4, n_rotations=3).step(target.sample(50, make_rng(1)), level(target))
    torch.testing.assert_close(state["positions"].mean(1), torch.zeros(50, 2, dtype=torch.float64))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="n_rotations"):
        RotationHMC(0.1, n_rotations=0)
    with pytest.raises(ValueError, match=r"scales\['x'\]"):
        RotationHMC(0.1, scales={"x": 0.0})
    circle = VonMises(2).double()
    with pytest.raises(ValueError, match="expected line"):
        RotationHMC(0.1).propose(circle.sample(3, make_rng(1)), level(circle))
