"""The sum over waves of an Ewald sum: Coulomb energy of smeared charges in a periodic box."""

import math

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.forcefield.box import volume

__all__ = ["TOLERANCE", "reciprocal_energy", "screening"]

TOLERANCE = 1e-9
"""Relative size of what both sums leave out: erfc(alpha cutoff) and exp(-(k/2 alpha)^2), before prefactors."""


def screening(cutoff: float) -> tuple[float, float]:
    """Return alpha (1/nm) and the largest wave number (1/nm) that make both sums of an Ewald sum exact to `TOLERANCE`.

    Args:
        cutoff: of the direct sum in nm.
    """
    reach = math.sqrt(-math.log(2 * TOLERANCE))
    return reach / cutoff, 2 * reach * reach / cutoff


def _phases(s: Float[Tensor, "batch n_atoms"], waves: Float[Tensor, "n_waves"]) -> Tensor:
    """Return exp(2 pi i n s), (batch, n_waves, n_atoms)."""
    angle = 2 * math.pi * waves[None, :, None] * s[:, None]
    return torch.complex(angle.cos(), angle.sin())


def reciprocal_energy(
    x: Float[Tensor, "3 n_atoms batch"],
    box: Float[Tensor, "3 3 1 _"],
    charge: Float[Tensor, "n_atoms"],
    *,
    alpha: float,
    largest: float,
) -> Float64[Tensor, "batch"]:
    """Return sum_k exp(-(k / 2 alpha)^2) / k^2 |sum_j q_j exp(i k x_j)|^2 2 pi / V over the waves k != 0.

    Args:
        x: positions in nm.
        box: vectors in nm.
        charge: q, in elementary charges.
        alpha: in 1/nm.
        largest: wave number in 1/nm beyond which waves are left out.

    Returns:
        Energies in e^2/nm: times the Coulomb constant, kJ/mol.

    References:
        Ewald, Ann. Phys. 369, 253 (1921); Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 2.2.
    """
    boxes = box[:, :, 0].permute(2, 0, 1)
    inverse = torch.linalg.inv(boxes)
    s = (x.permute(2, 1, 0) @ inverse).unbind(2)
    # |n_i| <= k |a_i| / 2 pi for every wave k = 2 pi sum_i n_i b_i; of each pair k, -k one is enough.
    sizes = (largest / (2 * math.pi) * boxes.detach().norm(dim=2).amax(0)).floor().long().tolist()
    waves = [
        torch.arange(0 if axis == 0 else -n, n + 1, dtype=x.dtype, device=x.device) for axis, n in enumerate(sizes)
    ]
    first, second, third = (_phases(part, n) for part, n in zip(s, waves, strict=True))
    planes = (charge * first[:, :, None] * second[:, None]).flatten(1, 2)
    structure = planes @ third.transpose(1, 2)
    n = torch.cartesian_prod(*waves)
    squared = (2 * math.pi * n @ inverse.transpose(1, 2)).square().sum(2)
    counted = (squared <= largest * largest) & (n != 0).any(1)
    squared = torch.where(counted, squared, 1.0)
    weight = torch.where(counted, torch.exp(-squared / (4 * alpha * alpha)) / squared, 0.0)
    weight = weight * torch.where(n[:, 0] == 0, 1.0, 2.0)
    power = (structure.real.square() + structure.imag.square()).flatten(1)
    return (weight * power).sum(1, dtype=torch.float64) * (2 * math.pi / volume(box)[0].double())
