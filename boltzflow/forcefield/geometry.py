"""Distances, angles and dihedral angles, also between nearest images, with gradients that stay finite everywhere."""

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["TINY_SQUARED", "angle", "dihedral", "distance", "nearest_image"]

# Added to squared lengths under a square root: far below any physical length (1e-12 nm), it makes the gradient at
# exactly zero distance zero instead of NaN.
TINY_SQUARED = 1e-24


def nearest_image(d: Float[Tensor, "3 *shape"], box: Float[Tensor, "3 3 *cells"] | None) -> Float[Tensor, "3 *shape"]:
    """Return the displacements ``d`` (nm) modulo the vectors of a periodic box, as OpenMM chooses the image.

    Args:
        d: in nm.
        box: its three vectors (first axis) in OpenMM's reduced form, broadcast against ``d``; None returns ``d``.
    """
    if box is None:
        return d
    for k in (2, 1, 0):
        d = d - box[k] * (d[k] / box[k, k] + 0.5).detach().floor()
    return d


def distance(
    a: Float[Tensor, "3 n batch"], b: Float[Tensor, "3 n batch"], box: Float[Tensor, "3 3 _ _"] | None = None
) -> Float[Tensor, "n batch"]:
    """Return the distances (nm) between the points ``a`` and ``b``, or their nearest images in a box."""
    return (nearest_image(a - b, box).square().sum(0) + TINY_SQUARED).sqrt()


def angle(
    a: Float[Tensor, "3 n batch"],
    b: Float[Tensor, "3 n batch"],
    c: Float[Tensor, "3 n batch"],
    box: Float[Tensor, "3 3 _ _"] | None = None,
) -> Float[Tensor, "n batch"]:
    """Return the angles (rad, 0 to pi) at the vertex ``b``, between nearest images in a box."""
    v, w = nearest_image(a - b, box), nearest_image(c - b, box)
    # atan2 keeps its accuracy where acos loses it, at 0 and pi.
    sine = (torch.linalg.cross(v, w, dim=0).square().sum(0) + TINY_SQUARED).sqrt()
    return torch.atan2(sine, (v * w).sum(0))


def dihedral(
    a: Float[Tensor, "3 n batch"],
    b: Float[Tensor, "3 n batch"],
    c: Float[Tensor, "3 n batch"],
    d: Float[Tensor, "3 n batch"],
    box: Float[Tensor, "3 3 _ _"] | None = None,
) -> Float[Tensor, "n batch"]:
    """Return the dihedral angles (rad, -pi to pi) about the axis from ``b`` to ``c``.

    The sign is that of IUPAC: 0 is cis, and clockwise is positive when looking from ``b`` to ``c``. In a box,
    each point is taken at the image nearest to the one before.
    """
    u, v, w = (nearest_image(step, box) for step in (b - a, c - b, d - c))
    m, n = torch.linalg.cross(u, v, dim=0), torch.linalg.cross(v, w, dim=0)
    sine = (v.square().sum(0) + TINY_SQUARED).sqrt() * (u * n).sum(0)
    cosine = (m * n).sum(0)
    # On a straight line the angle is 0 and has gradient zero, where that of atan2(0, 0) would be NaN.
    cosine = torch.where((sine == 0) & (cosine == 0), 1.0, cosine)
    return torch.atan2(sine, cosine)
