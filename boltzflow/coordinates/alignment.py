"""Rigid alignment of configurations by proper rotations."""

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["align", "rmsd"]


def align(
    positions: Float[Tensor, "batch n_atoms 3"],
    reference: Float[Tensor, "n_atoms 3"],
    *,
    weights: Float[Tensor, " n_atoms"] | None = None,
) -> Float[Tensor, "batch n_atoms 3"]:
    """Move each configuration by the rotation and translation that bring it closest to the reference.

    Only proper rotations are used: a mirror image stays one. Where the optimum is not unique (collinear atoms) one of
    the optima is returned.

    Args:
        positions: (batch, n_atoms, 3) nm.
        reference: (n_atoms, 3) nm.
        weights: (n_atoms,) non-negative weights of the squared distances, for example masses; by default equal.

    Returns:
        (batch, n_atoms, 3) nm.

    References:
        A discussion of the solution for the best rotation to relate two sets of vectors (Kabsch, 1978).
    """
    w = torch.ones_like(reference[:, 0]) if weights is None else weights
    w = (w / w.sum())[:, None]
    centre = (w * reference).sum(0)
    x = positions - (w * positions).sum(1, keepdim=True)
    u, _, vh = torch.linalg.svd(torch.einsum("bni,nj->bij", w * x, reference - centre))
    flip = torch.ones_like(x[:, 0])
    flip[:, 2] = torch.linalg.det(u @ vh)
    return x @ (u * flip[:, None, :] @ vh) + centre


def rmsd(
    positions: Float[Tensor, "batch n_atoms 3"],
    reference: Float[Tensor, "n_atoms 3"],
    *,
    weights: Float[Tensor, " n_atoms"] | None = None,
) -> Float[Tensor, " batch"]:
    """Return the root-mean-square distance to the reference after ``align``, in nm; arguments as there."""
    w = torch.ones_like(reference[:, 0]) if weights is None else weights
    squared = (align(positions, reference, weights=weights) - reference).square().sum(-1)
    return ((w / w.sum()) * squared).sum(1).sqrt()
