"""Small Generators on analytic targets, as functions that tests call."""

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.run import make_rng
from boltzflow.targets import DoubleWell, Gaussian, harmonic_pair
from boltzflow.transitions.affine import Affine, AffineCoupling
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.langevin import OverdampedLangevin
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.resampling import SystematicResampling


def coupling(first, *, scale=0.3):
    """An affine coupling of two lines with random weights."""
    step = AffineCoupling(["line"] * 2, torch.tensor([first, not first]), field="x", hidden=(8,)).double()
    rng = make_rng(3, int(first))
    with torch.no_grad():
        for p in step.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return step


def flow(base):
    """Two couplings and an affine map."""
    shift, scale = torch.tensor([0.3, 0.2]), torch.tensor([0.9, 0.8])
    return Generator(base, [coupling(True), Affine(shift, scale, field="x", learnable=True), coupling(False)]).double()


def stochastic(base):
    """A coupling between Metropolis, Langevin and Hamiltonian steps at several levels."""
    steps = [
        MALA(0.1, n_steps=2, level=0.3),
        coupling(True, scale=0.15),
        OverdampedLangevin(0.05, level=0.6),
        OverdampedLangevin(0.05, level=0.8),
        HMC(0.3, n_leapfrog=3, level=1.0),
    ]
    return Generator(base, steps).double()


def annealed(base, *, n_levels=8, threshold=0.5, step_size=0.05):
    """Sequential Monte Carlo: resampling when it is due, then a MALA step, at every level."""
    steps = []
    for k in range(1, n_levels + 1):
        level = k / n_levels
        steps += [SystematicResampling(threshold=threshold, level=level), MALA(step_size, n_steps=2, level=level)]
    return Generator(base, steps).double()


@pytest.fixture
def pair():
    """Two harmonic systems in two dimensions."""
    first, second = harmonic_pair(2)
    return first.double(), second.double()


@pytest.fixture
def wells():
    """A Gaussian that covers the double well."""
    return Gaussian(2, scale=torch.tensor([1.7, 1.0])).double(), DoubleWell().double()
