"""Replica swaps: detailed balance of a pair, permutations."""

import math

import torch

from boltzflow.run import make_rng
from boltzflow.transitions.swap import swap_neighbours


def test_swap_probability_is_metropolis_and_walkers_stay_a_permutation():
    n = 50_000
    betas = torch.tensor([1.0, 0.6, 0.5], dtype=torch.float64)
    walkers = torch.tensor([2, 0, 1])[:, None].expand(3, n).contiguous()
    u = torch.tensor([1.7, 4.0, 0.5], dtype=torch.float64)[:, None].expand(3, n)  # by walker; rungs hold 0.5, 1.7, 4.0
    swapped, accept = swap_neighbours(walkers, u, betas, parity=0, rng=make_rng(1))
    expected = math.exp(0.4 * (0.5 - 1.7))
    z = (float(accept.double().mean()) - expected) / math.sqrt(expected * (1 - expected) / n)
    assert accept.shape == (1, n)
    assert abs(z) < 3.5
    assert (swapped.sort(0).values == torch.arange(3)[:, None]).all()
    assert (swapped[2] == 1).all()
    swapped, accept = swap_neighbours(walkers, u, betas, parity=1, rng=make_rng(1))
    assert (swapped[0] == 2).all()
    assert torch.equal(swapped[1] == 1, accept[0])


def test_infinite_energy_moves_only_up():
    u = torch.tensor([[torch.inf], [1.0]], dtype=torch.float64)
    betas = torch.tensor([1.0, 0.5], dtype=torch.float64)
    swapped, accept = swap_neighbours(torch.tensor([[0], [1]]), u, betas, parity=0, rng=make_rng(0))
    assert accept.all()
    _, accept = swap_neighbours(swapped, u, betas, parity=0, rng=make_rng(0))
    assert not accept.any()
