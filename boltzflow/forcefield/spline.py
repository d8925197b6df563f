"""Cubic splines on uniform grids in one to three dimensions, with the coefficients that OpenMM computes."""

from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Int, Tensor

__all__ = ["evaluate_spline", "spline_coefficients"]


def _slopes(values: Float[Tensor, "n rest"], *, periodic: bool) -> Float[Tensor, "n rest"]:
    """Return the slopes of a cubic spline at its nodes, which are one apart; natural where it is not periodic."""
    n = len(values)
    matrix = 4 * torch.eye(n, dtype=values.dtype)
    node = torch.arange(n)
    # Added rather than assigned: with one or two nodes the neighbours on both sides are the same.
    ones = torch.ones(n, dtype=values.dtype)
    matrix.index_put_((node, (node + 1) % n), ones, accumulate=True)
    matrix.index_put_((node, (node - 1) % n), ones, accumulate=True)
    right = 3 * (values.roll(-1, 0) - values.roll(1, 0))
    if not periodic:
        for end, inner in ((0, 1), (n - 1, n - 2)):
            matrix[end] = 0
            matrix[end, end], matrix[end, inner] = 2, 1
        right[0], right[-1] = 3 * (values[1] - values[0]), 3 * (values[-1] - values[-2])
    return torch.linalg.solve(matrix, right)


def spline_coefficients(values: Float[Tensor, "..."], *, periodic: bool) -> Float[Tensor, "n_cells n_coefficients"]:
    """Return the polynomial of each cell of a grid.

    The tensor product of one-dimensional interpolating splines: the surface that OpenMM's bicubic and tricubic patches
    describe, whose mixed derivatives come from one-dimensional splines as well.

    Args:
        values: at the nodes, one axis for each of 1 to 3 dimensions.
        periodic: whether the first node follows the last (which is then not a copy of it); otherwise the second
            derivatives at the ends are zero.

    Returns:
        For each cell, in row-major order, the 4^d coefficients of the powers of the coordinates counted from the lower
        node in cell widths, the powers of the last axis fastest.
    """
    dimension = values.ndim
    for axis in range(dimension):
        # The nodes of this axis become its cells, and its powers a new last axis.
        front = values.movedim(axis, 0)
        f = front.flatten(1) if front.ndim > 1 else front[:, None]
        d = _slopes(f, periodic=periodic)
        if periodic:
            f0, f1, d0, d1 = f, f.roll(-1, 0), d, d.roll(-1, 0)
        else:
            f0, f1, d0, d1 = f[:-1], f[1:], d[:-1], d[1:]
        powers = torch.stack([f0, d0, 3 * (f1 - f0) - 2 * d0 - d1, 2 * (f0 - f1) + d0 + d1], -1)
        values = powers.reshape(len(f0), *front.shape[1:], 4).movedim(0, axis)
    return values.reshape(-1, 4**dimension)


def evaluate_spline(
    coefficients: Float[Tensor, "n_cells n_coefficients"],
    cell: Int[Tensor, "..."],
    fractions: Sequence[Float[Tensor, "..."]],
) -> Float[Tensor, "..."]:
    """Return the values of a spline.

    Args:
        coefficients: of `spline_coefficients`.
        cell: index of each point's cell.
        fractions: for each axis the coordinates within the cell, 0 to 1.

    Returns:
        Values in the shape of ``cell``, differentiable with respect to the fractions.
    """
    columns = coefficients.T
    terms = [column[cell] for column in columns]
    for fraction in reversed(fractions):  # Horner's scheme, one axis after the other, the last axis first
        terms = [
            a + fraction * (b + fraction * (c + fraction * d))
            for a, b, c, d in zip(terms[::4], terms[1::4], terms[2::4], terms[3::4], strict=True)
        ]
    return terms[0]
