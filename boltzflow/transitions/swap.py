"""Replica exchange: Metropolis swaps between neighbouring temperatures of independent ladders."""

import torch

from boltzflow._typing import Bool, Float64, Int, Tensor

__all__ = ["exchange_neighbours", "swap_neighbours"]


def swap_neighbours(
    walker_at: Int[Tensor, "n_rungs n_chains"],
    reduced_energies: Float64[Tensor, "n_rungs n_chains"],
    betas: Float64[Tensor, " n_rungs"],
    *,
    parity: int,
    rng: torch.Generator,
) -> tuple[Int[Tensor, "n_rungs n_chains"], Bool[Tensor, "n_pairs n_chains"]]:
    """Try to exchange the walkers on rungs (k, k+1) for k = parity, parity + 2, ... of every ladder at once.

    Walkers keep their configuration, energy and force, and change temperature: nothing is copied or evaluated.

    Args:
        walker_at: Walker on every rung of every ladder.
        reduced_energies: u of every walker (not rung) at β = 1, indexed as walkers are.
        betas: Inverse temperature of every rung relative to the first.
        parity: 0 or 1.
        rng: Random stream.

    Returns:
        The new walkers by rung, and which of the pairs were exchanged, shape (number of pairs tried, n_chains).

    References:
        Hukushima and Nemoto, J. Phys. Soc. Jpn. 65, 1604 (1996), Eq. 7.
    """
    lower = torch.arange(parity, len(betas) - 1, 2, device=walker_at.device)
    u = reduced_energies.gather(0, walker_at)
    log_odds = (betas[lower] - betas[lower + 1])[:, None] * (u[lower] - u[lower + 1])
    return exchange_neighbours(walker_at, log_odds, parity=parity, rng=rng)


def exchange_neighbours(
    walker_at: Int[Tensor, "n_rungs n_chains"],
    log_odds: Float64[Tensor, "n_pairs n_chains"],
    *,
    parity: int,
    rng: torch.Generator,
) -> tuple[Int[Tensor, "n_rungs n_chains"], Bool[Tensor, "n_pairs n_chains"]]:
    """Exchange the walkers on rungs (k, k+1), k = parity, parity + 2, ..., with probability min(1, exp(log_odds)).

    Args:
        walker_at: Walker on every rung of every ladder.
        log_odds: Of every pair that is tried: its energy on its rungs minus that after the exchange; NaN rejects.
        parity: 0 or 1.
        rng: Random stream.

    Returns:
        As `swap_neighbours`.
    """
    lower = torch.arange(parity, len(walker_at) - 1, 2, device=walker_at.device)
    uniform = torch.rand(log_odds.shape, dtype=torch.float64, device=rng.device, generator=rng).to(log_odds.device)
    accept = uniform.log() < log_odds
    swapped = walker_at.clone()
    swapped[lower] = torch.where(accept, walker_at[lower + 1], walker_at[lower])
    swapped[lower + 1] = torch.where(accept, walker_at[lower], walker_at[lower + 1])
    return swapped, accept
