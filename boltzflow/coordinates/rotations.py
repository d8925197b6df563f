"""Rotations in three dimensions: exponential, logarithm, and what a step on the group does to volumes."""

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["rotation_exp", "rotation_hat", "rotation_log", "rotation_right_jacobian"]


def rotation_hat(vector: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
    """The skew matrix [w] of a vector, [w] x = w × x."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def rotation_exp(vector: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
    """The rotation about a vector by its length in rad, exp [w]; differentiable everywhere.

    Example:
        >>> rotation_exp(torch.tensor([0.0, 0.0, torch.pi / 2])).round()[:2, :2]
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    first, second, _ = _series(vector)
    skew = rotation_hat(vector)
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return eye + first[..., None, None] * skew + second[..., None, None] * (skew @ skew)


def rotation_log(rotation: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 3"]:
    """The vector of `rotation_exp` of at most π in length, by the quaternion; at π either of the two.

    Args:
        rotation: Orthonormal matrices of determinant 1.

    References:
        Quaternion without cancellation: Shepperd, J. Guid. Control 1, 223 (1978).
    """
    m = rotation
    diagonal = m.diagonal(dim1=-2, dim2=-1)
    trace = diagonal.sum(-1, keepdim=True)
    # four times the squares of the components; the largest is at least 1
    squares = torch.cat([1.0 + trace, 1.0 - trace + 2.0 * diagonal], -1)
    which = squares.detach().argmax(-1, keepdim=True)
    d = torch.stack([m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1)
    a = torch.stack([m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]], -1)
    one, (dx, dy, dz), (xy, xz, yz) = squares.unbind(-1), d.unbind(-1), a.unbind(-1)
    products = torch.stack(
        [
            torch.stack([one[0], dx, dy, dz], -1),
            torch.stack([dx, one[1], xy, xz], -1),
            torch.stack([dy, xy, one[2], yz], -1),
            torch.stack([dz, xz, yz, one[3]], -1),
        ],
        -2,
    )
    # row k is 4 q_k q
    row = products.gather(-2, which[..., None].expand(*which.shape, 4)).squeeze(-2)
    q = 0.5 * row / squares.gather(-1, which).sqrt()
    q = torch.where(q[..., :1] < 0, -q, q)
    scalar, axis = q[..., 0], q[..., 1:]
    square = axis.square().sum(-1)
    small = square < 1e-8
    sine = torch.where(small, 1.0, square).sqrt()
    angle = 2.0 * torch.atan2(sine, scalar) / sine
    near = (2.0 - (2.0 / 3.0) * square / scalar.square().clamp_min(0.5)) / scalar.clamp_min(0.5)
    return torch.where(small, near, angle)[..., None] * axis


def rotation_right_jacobian(vector: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
    """J with exp [w + δ] = exp [w] exp [J δ] to first order in δ.

    References:
        A micro Lie theory for state estimation in robotics (Solà, Deray, Atchuthan, 2018), eq. 143,
        https://arxiv.org/abs/1812.01537
    """
    _, second, third = _series(vector)
    skew = rotation_hat(vector)
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return eye - second[..., None, None] * skew + third[..., None, None] * (skew @ skew)


def _series(vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sin θ/θ, (1 − cos θ)/θ² and (θ − sin θ)/θ³, with their limits and derivatives at 0."""
    square = vector.square().sum(-1)
    small = square < 1e-3
    s = torch.where(small, 1.0, square)
    theta = s.sqrt()
    x = torch.where(small, square, 0.0)
    near = (
        1 - x / 6 * (1 - x / 20 * (1 - x / 42)),
        0.5 - x / 24 * (1 - x / 30 * (1 - x / 56)),
        1 / 6 - x / 120 * (1 - x / 42 * (1 - x / 72)),
    )
    far = (torch.sin(theta) / theta, (1 - torch.cos(theta)) / s, (theta - torch.sin(theta)) / (s * theta))
    first, second, third = (torch.where(small, a, b) for a, b in zip(near, far, strict=True))
    return first, second, third
