"""What the cutoff of a Custom force between pairs leaves out, as OpenMM integrates it."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from boltzflow._typing import Float64, Int, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.operations import Operand
from boltzflow.forcefield.registry import tensor
from boltzflow.forcefield.term import switching

__all__ = ["long_range_correction"]

PairEnergy = Callable[[Float64[Tensor, "1 n_points"], Int[Tensor, "n_kinds 2"]], Operand]

_TOLERANCE = 1e-5
_LEVELS = (3, 10)
"""Refinements of a midpoint rule, each into thirds: at least, and at most."""


def long_range_correction(force: Any, energy: PairEnergy, *, cutoff: float, switch: float) -> float:
    """Return energy times volume (kJ/mol nm^3) of the interactions that a cutoff leaves out.

    2 pi N^2 times the mean of the integral of U(r) r^2 beyond the cutoff, and of what the switch takes away before it.
    The mean goes over all pairs of atoms, each with itself included; pairs outside the interaction groups count as 0,
    and exclusions as if they interacted.

    Args:
        force: an openmm.CustomNonbondedForce.
        energy: energies (n_kinds, n_points) of pairs of atoms at distances in nm.
        cutoff: in nm.
        switch: distance in nm from which the interaction is switched off, 0 without switching.

    Raises:
        UnsupportedForceError: an integral does not converge.

    References:
        Shirts et al., J. Phys. Chem. B 111, 13052 (2007), eq. 5, for a general interaction.
    """
    count = _kinds(force)
    pairs = tensor([atoms for atoms, _ in count.values()], None, (2,))
    weight = tensor([n for _, n in count.values()], torch.float64)

    def beyond(t: Tensor, rows: Tensor) -> Operand:
        r = cutoff / t
        return energy(r, pairs[rows]) * r**4 / cutoff

    def switched(t: Tensor, rows: Tensor) -> Operand:
        r = switch + t * (cutoff - switch)
        return energy(r, pairs[rows]) * (1 - switching(r, switch, cutoff)) * r**2 * (cutoff - switch)

    total = _integral(
        beyond, len(pairs), f"beyond the cutoff of {cutoff:g} nm; does the energy fall faster than 1/r^3?"
    )
    if switch:
        total = total + _integral(
            switched, len(pairs), f"from {switch:g} to {cutoff:g} nm; is the energy finite there?"
        )
    n_atoms = force.getNumParticles()
    return float(4 * math.pi * n_atoms / (n_atoms + 1) * (weight * total).sum())


def _kinds(force: Any) -> dict[tuple[int, int], tuple[tuple[int, int], int]]:
    """Return, for each pair of kinds of atoms, two atoms of these kinds and how many pairs there are."""
    atoms = [tuple(force.getParticleParameters(k)) for k in range(force.getNumParticles())]
    kinds = {parameters: number for number, parameters in enumerate(dict.fromkeys(atoms))}
    kind = [kinds[parameters] for parameters in atoms]
    member = {number: atom for atom, number in enumerate(kind)}
    count: Counter[tuple[int, int]] = Counter()
    if not force.getNumInteractionGroups():
        n = Counter(kind)
        for a in n:
            count[a, a] = n[a] * (n[a] + 1) // 2
            count.update({(a, b): n[a] * n[b] for b in n if b > a})
    for group in range(force.getNumInteractionGroups()):
        first, second = (set(atoms) for atoms in force.getInteractionGroupParameters(group))
        count.update(
            (min(kind[a], kind[b]), max(kind[a], kind[b]))
            for a in first
            for b in second
            if not (a >= b and b in first and a in second)
        )
    return {(a, b): ((member[a], member[b]), n) for (a, b), n in sorted(count.items())}


def _integral(of: Callable[[Tensor, Tensor], Operand], n: int, where: str) -> Float64[Tensor, "n"]:
    """Return n integrals from 0 to 1 by midpoints, refined as by OpenMM: until a step changes one by less than 1e-5."""
    total, active = torch.zeros(n, dtype=torch.float64), torch.arange(n)
    for level in range(_LEVELS[1] + 1):
        points = 3**level
        index = torch.arange(points)
        t = (index[None, index % 3 != 1] + 0.5).double() / points
        old = total[active]
        new = of(t, active).expand(len(active), -1).sum(1) / points + old / 3
        total[active] = new
        change = (new - old).abs() / new.abs()
        settled = (change < _TOLERANCE) | (new == 0)
        if (~settled & (change.isnan() | ((level > 7) & (change > 1e-3)))).any():
            break
        if level >= _LEVELS[0]:
            active = active[~settled]
        if not len(active):
            return total
    raise UnsupportedForceError(f"the long-range correction has no finite integral {where} Switch the correction off")
