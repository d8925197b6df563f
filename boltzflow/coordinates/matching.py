"""Matching of particle configurations: the permutation and rotation that bring one close to another."""

from collections.abc import Sequence
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment

from boltzflow._typing import Float, Tensor

__all__ = ["match"]


def match(
    positions: Float[Tensor, "batch n_particles dim"],
    reference: Float[Tensor, "batch n_particles dim"],
    *,
    permuted: Sequence[Sequence[int]] = (),
    rotations: Literal["none", "proper", "all"] = "proper",
    rounds: int = 2,
) -> Float[Tensor, "batch n_particles dim"]:
    """Permute and rotate each configuration about the origin so that it comes close to its own reference.

    Alternates optimal assignments within every group with optimal rotations; neither step increases the sum of squared
    distances, and the last one is a rotation. The optimum over both at once is not guaranteed.

    Args:
        positions: (batch, N, D), mean-free where both are meant up to translations.
        reference: (batch, N, D).
        permuted: Groups of interchangeable particles, as indices; the others keep their places.
        rotations: "proper", "all" for reflections as well, or "none".
        rounds: Of assignment and rotation; one without groups.

    Returns:
        (batch, N, D), without autograd history.

    Raises:
        ValueError: If the shapes differ.

    References:
        Equivariant flow matching (Klein, Krämer, Noé, 2023), section 4, https://arxiv.org/abs/2306.15030; rotations:
        Kabsch, Acta Cryst. A 32, 922 (1976).
    """
    if positions.shape != reference.shape:
        raise ValueError(f"match: expected two equal shapes, got {(*positions.shape,)} and {(*reference.shape,)}.")
    x, y = positions.detach(), reference.detach()
    groups = [torch.as_tensor(list(group), device=x.device) for group in permuted]
    for _ in range(rounds if groups else 1):
        for group in groups:
            members = x[:, group]
            # −2 x·y differs from the squared distance by terms that no permutation changes
            costs = (-members @ y[:, group].mT).mT.double().cpu().numpy()
            order = torch.stack([torch.from_numpy(linear_sum_assignment(cost)[1]) for cost in costs]).to(x.device)
            x = x.index_copy(1, group, members.gather(1, order[..., None].expand_as(members)))
        if rotations != "none":
            x = x @ _rotations(x, y, proper=rotations == "proper")
    return x


def _rotations(x: Tensor, y: Tensor, *, proper: bool) -> Float[Tensor, "batch dim dim"]:
    """R that minimises |x R − y|² of every row."""
    u, _, vh = torch.linalg.svd(x.mT @ y)
    if not proper:
        return u @ vh
    flip = torch.ones_like(u[:, 0])
    flip[:, -1] = torch.linalg.det(u @ vh).sign()
    return u * flip[:, None, :] @ vh
