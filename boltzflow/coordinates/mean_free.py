"""Mean-free coordinates: the subspace of configurations with their centre at the origin, d = (N - 1) D."""

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["from_mean_free", "mean_free_basis", "project_mean_free", "to_mean_free"]


def project_mean_free(positions: Float[Tensor, "*batch n_particles dim"]) -> Float[Tensor, "*batch n_particles dim"]:
    """Subtract the unweighted mean over the particles."""
    return positions - positions.mean(dim=-2, keepdim=True)


def mean_free_basis(
    n_particles: int, *, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Float[Tensor, "n_particles n_free"]:
    """Return orthonormal columns (n_particles, n_particles - 1) that span the vectors with zero sum.

    Column k is (1, ..., 1, -(k + 1), 0, ..., 0) / sqrt((k + 1)(k + 2)) with k + 1 ones (Helmert's matrix), so that the
    volume of the mean-free subspace is that of the d = (n_particles - 1) * dim coordinates.
    """
    k = torch.arange(1, n_particles, dtype=dtype, device=device)
    row = torch.arange(n_particles, dtype=dtype, device=device)[:, None]
    return ((row < k).to(dtype) - k * (row == k)) / (k * (k + 1)).sqrt()


def to_mean_free(positions: Float[Tensor, "batch n_particles dim"]) -> Float[Tensor, "batch n_coordinates"]:
    """Return the d = (n_particles - 1) * dim orthonormal coordinates of the mean-free part; an isometry on it."""
    basis = mean_free_basis(positions.shape[1], dtype=positions.dtype, device=positions.device)
    return torch.einsum("bnd,nk->bkd", positions, basis).flatten(1)


def from_mean_free(
    coordinates: Float[Tensor, "batch n_coordinates"], *, dim: int = 3
) -> Float[Tensor, "batch n_particles {dim}"]:
    """Return the mean-free positions with the given orthonormal coordinates; the inverse of ``to_mean_free``.

    Args:
        coordinates: (batch, (n_particles - 1) * dim).
        dim: dimension of space.

    Returns:
        (batch, n_particles, dim) with zero mean.

    Raises:
        ValueError: if the number of coordinates is no multiple of ``dim``.
    """
    if coordinates.shape[1] % dim:
        raise ValueError(f"coordinates: expected a multiple of dim={dim} columns, got {coordinates.shape[1]}")
    free = coordinates.unflatten(1, (-1, dim))
    basis = mean_free_basis(free.shape[1] + 1, dtype=free.dtype, device=free.device)
    return torch.einsum("bkd,nk->bnd", free, basis)
