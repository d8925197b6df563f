"""Exponential and logarithm of rotations: inverse of each other, near 0 and near π as well, and their derivatives."""

import math

import pytest
import roma
import torch

from boltzflow.coordinates import rotation_exp, rotation_hat, rotation_log, rotation_right_jacobian
from boltzflow.run import make_rng


def vectors(length, n=200):
    w = torch.randn(n, 3, dtype=torch.float64, generator=make_rng(1))
    return length * w / w.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-5, 0.02, 0.04, 1.0, 3.0, math.pi - 1e-6])
def test_they_are_inverse_and_those_of_roma(length):
    w = vectors(length)
    matrix = rotation_exp(w)
    torch.testing.assert_close(matrix, roma.rotvec_to_rotmat(w), rtol=0, atol=1e-14)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3).double().expand(200, 3, 3), rtol=0, atol=1e-14)
    torch.testing.assert_close(rotation_log(matrix), w, rtol=1e-12, atol=1e-12)


def test_half_turns_have_one_of_two_logarithms():
    w = vectors(math.pi)
    found = rotation_log(rotation_exp(w))
    torch.testing.assert_close(found.norm(dim=1), w.norm(dim=1), rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation_exp(found), rotation_exp(w), rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1e-6, 0.02, 0.5, 2.5])
def test_derivatives(length):
    w = vectors(length, 3)
    assert torch.autograd.gradcheck(rotation_exp, w.requires_grad_())
    assert torch.autograd.gradcheck(lambda v: rotation_log(rotation_exp(v)), w)
    delta = 1e-6 * vectors(1.0, 3).flip(0)
    with torch.no_grad():
        found = rotation_log(rotation_exp(w - delta).mT @ rotation_exp(w + delta)) / 2
        expected = (rotation_right_jacobian(w) @ delta[..., None])[..., 0]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-14)


def test_the_skew_matrix_is_the_cross_product():
    a, b = vectors(1.3), vectors(0.7).flip(0)
    torch.testing.assert_close((rotation_hat(a) @ b[..., None])[..., 0], torch.linalg.cross(a, b))


def test_gradients_at_zero():
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(rotation_log(rotation_exp(zero))[0, 1], zero)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 1.0, 0.0]]).double())
