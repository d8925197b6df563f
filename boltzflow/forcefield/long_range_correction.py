"""What the cutoff of a Custom force between pairs leaves out, as OpenMM integrates it."""

import math
from collections.abc import Callable

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.operations import Operand
from boltzflow.forcefield.term import switching, tracked

__all__ = ["long_range_correction"]

PairEnergy = Callable[[Float64[Tensor, "1 n_points"], Int[Tensor, "n_kinds 2"]], Operand]

_TOLERANCE = 1e-5
_LEVELS = (3, 10)
"""Refinements of a midpoint rule, each into thirds: at least, and at most."""


def long_range_correction(
    energy: PairEnergy,
    parameters: Float[Tensor, "n_atoms n_parameters"],
    counted: Int[Tensor, "n_counted 2"],
    *,
    cutoff: float,
    switch: float,
) -> Float64[Tensor, ""]:
    """Return energy times volume (kJ/mol nm^3) of the interactions that a cutoff leaves out.

    2 pi N^2 times the mean of the integral of U(r) r^2 beyond the cutoff, and of what the switch takes away before it.
    The mean goes over all pairs of atoms, each with itself included; pairs that are not counted add 0.

    Args:
        energy: energies (n_kinds, n_points) of pairs of atoms at distances in nm.
        parameters: of the atoms; those with equal ones are alike, but where gradients are asked for.
        counted: pairs that interact, none for all; exclusions are among them.
        cutoff: in nm.
        switch: distance in nm from which the interaction is switched off, 0 without switching.

    Raises:
        UnsupportedForceError: an integral does not converge.

    References:
        Shirts et al., J. Phys. Chem. B 111, 13052 (2007), eq. 5, for a general interaction.
    """
    pairs, weight = _kinds(parameters, counted)

    def beyond(t: Tensor, rows: Tensor) -> Tensor:
        r = cutoff / t
        return energy(r, pairs[rows]) * r**4 / cutoff

    def switched(t: Tensor, rows: Tensor) -> Tensor:
        r = switch + t * (cutoff - switch)
        return energy(r, pairs[rows]) * (1 - switching(r, switch, cutoff)) * r**2 * (cutoff - switch)

    where = f"beyond the cutoff of {cutoff:g} nm; does the energy fall faster than 1/r^3?"
    total = _integral(beyond, pairs, where)
    if switch:
        where = f"from {switch:g} to {cutoff:g} nm; is the energy finite there?"
        total = total + _integral(switched, pairs, where)
    n_atoms = len(parameters)
    return 4 * math.pi * n_atoms / (n_atoms + 1) * (weight * total).sum()


def _kinds(parameters: Tensor, counted: Tensor) -> tuple[Int[Tensor, "n_kinds 2"], Float64[Tensor, "n_kinds"]]:
    """Return two atoms of each kind of pair, and how many pairs are of that kind."""
    n_atoms = len(parameters)
    atoms = torch.arange(n_atoms, device=parameters.device)
    kind = first = atoms
    if not tracked(parameters):
        column = parameters.new_ones(n_atoms, 1)  # atoms without parameters are all alike
        _, kind = torch.cat([column, parameters], 1).unique(dim=0, return_inverse=True)
        first = kind.new_full((int(kind.max()) + 1,), n_atoms).scatter_reduce(0, kind, atoms, "amin")
        # Of two kinds, OpenMM takes the one that appears first for the first atom.
        first, order = first.sort()
        kind = order.argsort()[kind]
    n = len(first)
    i, j = torch.triu_indices(n, n, device=kind.device)
    if len(counted):
        low, high = kind[counted.T].sort(0).values
        weight = torch.bincount(low * n + high, minlength=n * n)[i * n + j]
    else:
        size = torch.bincount(kind, minlength=n)
        weight = torch.where(i == j, size[i] * (size[i] + 1) // 2, size[i] * size[j])
    some = weight > 0
    return torch.stack([first[i], first[j]], 1)[some], weight[some].double()


def _integral(of: Callable[[Tensor, Tensor], Tensor], pairs: Int[Tensor, "n 2"], where: str) -> Float64[Tensor, "n"]:
    """Return the integrals from 0 to 1 by midpoints, refined as by OpenMM: until they change by less than 1e-5."""
    n, device = len(pairs), pairs.device
    total, active = torch.zeros(n, dtype=torch.float64, device=device), torch.arange(n, device=device)
    for level in range(_LEVELS[1] + 1):
        points = 3**level
        index = torch.arange(points, device=device)
        t = (index[None, index % 3 != 1] + 0.5).double() / points
        old = total[active]
        new = of(t, active).expand(len(active), -1).sum(1) / points + old / 3
        total = total.index_put((active,), new)
        change = ((new - old) / new).detach().abs()
        settled = (change < _TOLERANCE) | (new == 0)
        if (~settled & (change.isnan() | ((level > 7) & (change > 1e-3)))).any():
            break
        if level >= _LEVELS[0]:
            active = active[~settled]
        if not len(active):
            return total
    raise UnsupportedForceError(f"the long-range correction has no finite integral {where} Switch the correction off")
