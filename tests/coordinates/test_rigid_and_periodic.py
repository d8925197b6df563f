"""Tests of alignment, mean-free coordinates and angles on the circle."""

import math

import pytest
import torch

from boltzflow.coordinates import (
    align,
    circular_difference,
    from_mean_free,
    mean_free_basis,
    project_mean_free,
    rmsd,
    to_mean_free,
    wrap,
)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def rotations(n: int, rng: torch.Generator) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(n, 3, 3, generator=rng, dtype=torch.float64))
    return q * torch.linalg.det(q)[:, None, None]


def test_alignment_undoes_rigid_motions(rng: torch.Generator) -> None:
    reference = torch.randn(7, 3, generator=rng, dtype=torch.float64)
    moved = reference @ rotations(50, rng) + torch.randn(50, 1, 3, generator=rng, dtype=torch.float64)
    assert (align(moved, reference) - reference).abs().max() < 1e-12
    assert rmsd(moved, reference).max() < 1e-12


def test_alignment_is_optimal_and_proper(rng: torch.Generator) -> None:
    reference = torch.randn(7, 3, generator=rng, dtype=torch.float64)
    weights = torch.rand(7, generator=rng, dtype=torch.float64)
    for x in (reference + torch.randn(7, 3, generator=rng, dtype=torch.float64), -reference):
        aligned = align(x[None], reference, weights=weights)
        best = rmsd(x[None], reference, weights=weights)
        centre = (weights[:, None] * aligned[0]).sum(0) / weights.sum()
        others = (aligned - centre) @ rotations(2000, rng) + centre
        distance = ((weights / weights.sum()) * (others - reference).square().sum(-1)).sum(1).sqrt()
        assert (distance >= best - 1e-12).all()
        corners = [torch.linalg.det(y[[1, 2, 3]] - y[0]) for y in (x, aligned[0])]
        assert corners[0].item() == pytest.approx(corners[1].item())
    assert rmsd(-reference[None], reference) > 0.1


@pytest.mark.parametrize(("n", "dim"), [(2, 1), (4, 2), (13, 3)])
def test_mean_free_coordinates_are_an_isometry_of_dimension_n_minus_one(n: int, dim: int, rng: torch.Generator) -> None:
    basis = mean_free_basis(n)
    assert torch.allclose(basis.T @ basis, torch.eye(n - 1, dtype=torch.float64), atol=1e-14)
    assert basis.sum(0).abs().max() < 1e-13
    x = torch.randn(5, n, dim, generator=rng, dtype=torch.float64)
    coordinates = to_mean_free(x)
    assert coordinates.shape == (5, (n - 1) * dim)
    assert torch.allclose(coordinates.square().sum(1), project_mean_free(x).square().sum((1, 2)))
    assert torch.allclose(from_mean_free(coordinates, dim=dim), project_mean_free(x), atol=1e-13)
    assert torch.allclose(to_mean_free(from_mean_free(coordinates, dim=dim)), coordinates, atol=1e-13)


def test_wrong_number_of_mean_free_coordinates_raises() -> None:
    with pytest.raises(ValueError, match="multiple of dim=3 columns, got 4"):
        from_mean_free(torch.zeros(1, 4))


def test_wrapping_keeps_the_angle_and_the_range() -> None:
    angle = torch.linspace(-20, 20, 1001, dtype=torch.float64)
    wrapped = wrap(angle)
    assert wrapped.min() >= -math.pi
    assert wrapped.max() < math.pi
    assert torch.allclose(wrapped.sin(), angle.sin())
    assert torch.allclose(wrapped.cos(), angle.cos())
    difference = circular_difference(torch.tensor([3.1]), torch.tensor([-3.1]))
    assert difference.item() == pytest.approx(6.2 - 2 * math.pi, abs=1e-6)
