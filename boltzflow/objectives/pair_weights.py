"""Weights of the pairs of a batch by which they count as in entropic transport, with both marginals as they were."""

import math

import torch

from boltzflow._typing import Float, Float64, Tensor

__all__ = ["pair_log_weights"]

_MAX_ROUNDS = 1000


def pair_log_weights(
    cost: Float[Tensor, "batch batch"], *, entropy: float, tolerance: float = 1e-6
) -> Float64[Tensor, " batch"]:
    """Log of the weights u_i exp(−c_ii/ε) v_i of pairs (i, i), ε = entropy times the mean of c.

    exp(−c/ε) alone tilts both marginals: rows of data that lie far from most of the base count too little, and so do
    rows of the base. u and v, one number per row, undo both: u_i exp(−c_ij/ε) v_j has mean 1 over i and over j, so that
    over all pairings of the batch every row counts once. They come from alternating corrections of the marginals, of
    which the first is the one that has a closed form for a normal base.

    Args:
        cost: c, (batch, batch), of row i of the base and row j of the data.
        entropy: Small values single out short pairs, of which there are few; large ones weigh all alike.
        tolerance: Of the mean over i, at which the corrections end.

    Returns:
        (batch,); the mean of the weights is 1 over pairings.

    Raises:
        ValueError: If the entropy is not positive.

    References:
        Weighted Conditional Flow Matching (Calvo-Ordoñez et al., 2025), https://arxiv.org/abs/2507.22270; corrections:
        Sinkhorn, Ann. Math. Stat. 35, 876 (1964).

    Example:
        >>> pair_log_weights(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), entropy=1.0).exp().round(decimals=4)
        tensor([1.7616, 1.7616], dtype=torch.float64)
    """
    if not entropy > 0:
        raise ValueError(f"pair_log_weights entropy: expected a positive number, got {entropy}.")
    c = cost.detach().double()
    log_k = -c / (entropy * c.mean())
    # the first corrections by logarithms, for costs of any size; the others are factors near 1
    v = math.log(len(c)) - torch.logsumexp(log_k, 0)
    u = math.log(len(c)) - torch.logsumexp(log_k + v, 1)
    plan = (log_k + u[:, None] + v).exp() / len(c)
    a = b = torch.ones(len(c), dtype=torch.float64, device=c.device)
    for _ in range(_MAX_ROUNDS):
        b = 1.0 / (a @ plan)
        a = 1.0 / (plan @ b)
        if bool((b * (a @ plan) - 1.0).abs().max() < tolerance):
            break
    return u + a.log() + log_k.diagonal() + v + b.log()
