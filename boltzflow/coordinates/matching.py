"""Matching of particle configurations: the permutations and rotations that bring them close to others."""

from collections.abc import Sequence
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment

from boltzflow._typing import Float, Tensor
from boltzflow.coordinates.matching_kernel import MatchingKernel, library

__all__ = ["couple", "match", "matched_distances"]

Rotations = Literal["none", "proper", "all"]


def match(
    positions: Float[Tensor, "batch n_particles dim"],
    reference: Float[Tensor, "batch n_particles dim"],
    *,
    permuted: Sequence[Sequence[int]] = (),
    rotations: Rotations = "proper",
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
        ValueError: If the shapes differ, or a particle is in two groups or does not exist.

    References:
        Equivariant flow matching (Klein, Krämer, Noé, 2023), section 4, https://arxiv.org/abs/2306.15030; rotations:
        Kabsch, Acta Cryst. A 32, 922 (1976).
    """
    if positions.shape != reference.shape:
        raise ValueError(f"match: expected two equal shapes, got {(*positions.shape,)} and {(*reference.shape,)}.")
    x, y = positions.detach(), reference.detach()
    permuted = _checked("match", permuted, x.shape[1])
    if permuted and _compiled(x):
        kernel = MatchingKernel(*x.shape[1:], permuted=permuted, rotations=rotations, rounds=rounds)
        order = kernel.orders(x, y).to(x.device)
        x = x.gather(1, order[..., None].expand_as(x))
        return x if rotations == "none" else x @ _rotations(x, y, proper=rotations == "proper")
    for _ in range(rounds if permuted else 1):
        for group in (torch.as_tensor(group, device=x.device) for group in permuted):
            members = x[:, group]
            # −2 x·y differs from the squared distance by terms that no permutation changes
            costs = (-members @ y[:, group].mT).mT.double().cpu().numpy()
            order = torch.stack([torch.from_numpy(linear_sum_assignment(cost)[1]) for cost in costs]).to(x.device)
            x = x.index_copy(1, group, members.gather(1, order[..., None].expand_as(members)))
        if rotations != "none":
            x = x @ _rotations(x, y, proper=rotations == "proper")
    return x


def matched_distances(
    positions: Float[Tensor, "columns n_particles dim"],
    reference: Float[Tensor, "rows n_particles dim"],
    *,
    permuted: Sequence[Sequence[int]] = (),
    rotations: Rotations = "proper",
    rounds: int = 2,
) -> Float[Tensor, "rows columns"]:
    """Squared distances of every reference from all positions, matched to it.

    Args:
        positions: (columns, N, D).
        reference: (rows, N, D).
        permuted: As in `match`.
        rotations: As in `match`.
        rounds: As in `match`.

    Returns:
        (rows, columns); in two and three dimensions compiled, to the precision of float32.

    Raises:
        ValueError: If the configurations differ in shape, or the groups are none.
    """
    if positions.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"matched_distances: expected configurations of one shape, got {(*positions.shape[1:],)} and "
            f"{(*reference.shape[1:],)}."
        )
    options = {"permuted": _checked("matched_distances", permuted, positions.shape[1]), "rotations": rotations}
    rounds = rounds if permuted else 1
    if _compiled(positions):
        kernel = MatchingKernel(*positions.shape[1:], rounds=rounds, **options)
        return kernel.distances(positions, reference).to(positions)
    rows = []
    for one in reference.detach():
        at = one.expand_as(positions)
        rows.append((match(positions, at, rounds=rounds, **options) - at).square().sum((1, 2)))
    return torch.stack(rows)


def couple(
    positions: Float[Tensor, "batch n_particles dim"],
    reference: Float[Tensor, "batch n_particles dim"],
    *,
    permuted: Sequence[Sequence[int]] = (),
    rotations: Rotations = "proper",
    rounds: int = 1,
) -> Float[Tensor, "batch n_particles dim"]:
    """Pair the rows of two batches by the distances that are left after matching, and match each to its partner.

    The optimal transport between two batches of configurations that are meant up to permutations and rotations: all
    pairs of rows are matched, the sum of their squared distances is minimised by one assignment, and the pairs that it
    makes are matched once more, in 8 rounds. Every configuration comes once, permuted and rotated.

    Args:
        positions: (batch, N, D), mean-free where both are meant up to translations.
        reference: (batch, N, D).
        permuted: As in `match`.
        rotations: As in `match`.
        rounds: Of assignment and rotation for all pairs of rows.

    Returns:
        (batch, N, D), in the order of `reference`, without autograd history.

    Raises:
        ValueError: If the shapes differ, or a particle is in two groups or does not exist.

    References:
        Equivariant flow matching (Klein, Krämer, Noé, 2023), section 4, https://arxiv.org/abs/2306.15030

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[3.0, 0.0], [-3.0, 0.0]]])
        >>> y = torch.tensor([[[0.0, 2.5], [0.0, -2.5]], [[0.0, -1.5], [0.0, 1.5]]])
        >>> couple(x, y, permuted=[[0, 1]]).round(decimals=3)[:, 0].abs()
        tensor([[0., 3.],
                [0., 1.]])
    """
    options = {"permuted": permuted, "rotations": rotations}
    if positions.shape != reference.shape:
        raise ValueError(f"couple: expected two equal shapes, got {(*positions.shape,)} and {(*reference.shape,)}.")
    cost = matched_distances(positions, reference, rounds=rounds, **options)
    partner = torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(positions.device)
    return match(positions[partner], reference, rounds=max(rounds, 8), **options)


def _compiled(x: Tensor) -> bool:
    return x.shape[-1] in (2, 3) and library() is not None


def _checked(who: str, permuted: Sequence[Sequence[int]], n: int) -> list[list[int]]:
    """The groups as lists."""
    groups = [list(group) for group in permuted]
    members = [k for group in groups for k in group]
    if not all(0 <= k < n for k in members) or len(set(members)) < len(members):
        raise ValueError(
            f"{who} permuted: expected groups of the particles 0 to {n - 1}, none of them twice, got {groups}."
        )
    return groups


def _rotations(x: Tensor, y: Tensor, *, proper: bool) -> Float[Tensor, "batch dim dim"]:
    """R that minimises |x R − y|² of every row."""
    u, _, vh = torch.linalg.svd(x.mT @ y)
    if not proper:
        return u @ vh
    flip = torch.ones_like(u[:, 0])
    flip[:, -1] = torch.linalg.det(u @ vh).sign()
    return u * flip[:, None, :] @ vh
