"""Recognises Lennard-Jones interactions among Custom forces: those that openmm.app builds for CHARMM's force fields."""

import re
from typing import Any

import torch

from boltzflow._typing import Float, Int, Tensor
from boltzflow.forcefield.nonbonded import Nonbonded
from boltzflow.forcefield.registry import tensor

__all__ = ["recognise_bonds", "recognise_pairs"]

# As the parser of LennardJonesForce in openmm/app/forcefield.py writes them, without blanks.
_PAIRS = "acoef(type1,type2)/r^12-bcoef(type1,type2)/r^6"
_BONDS = re.compile(r"([0-9.e+-]+)\*epsilon\*\(\(sigma/r\)\^12-\(sigma/r\)\^6\)")


def _text(force: Any) -> str:
    return "".join(force.getEnergyFunction().split()).rstrip(";")


def _term(
    pairs: Int[Tensor, "n 2"], sigma: Float[Tensor, "n"], epsilon: Float[Tensor, "n"], n_atoms: int, dtype: torch.dtype
) -> Nonbonded | None:
    """Return the pairs as exceptions among atoms that do not interact otherwise, or None where one is there twice."""
    active = epsilon != 0
    if len(pairs[active].sort(1).values.unique(dim=0)) != int(active.sum()):
        return None
    none = torch.zeros(n_atoms, dtype=dtype)
    return Nonbonded(
        charge=none,
        sigma=none,
        epsilon=none,
        exceptions=pairs[active],
        exception_parameters=torch.stack([torch.zeros_like(sigma), sigma, epsilon], 1)[active].to(dtype),
        dielectric=torch.ones((), dtype=dtype),
        cutoff=0.0,
        switch=0.0,
    )


def recognise_pairs(force: Any, pairs: Int[Tensor, "n_pairs 2"], n_atoms: int, dtype: torch.dtype) -> Nonbonded | None:
    """Return the Lennard-Jones term of a CustomNonbondedForce with tables of A/r^12 - B/r^6, and None for others.

    Args:
        force: an openmm.CustomNonbondedForce.
        pairs: that interact.
        n_atoms: number of atoms.
        dtype: of the parameters.
    """
    names = [force.getPerParticleParameterName(k) for k in range(force.getNumPerParticleParameters())]
    tables = {
        force.getTabulatedFunctionName(k): force.getTabulatedFunction(k)
        for k in range(force.getNumTabulatedFunctions())
    }
    if (
        force.getNonbondedMethod() != force.NoCutoff
        or (_text(force), names, sorted(tables)) != (_PAIRS, ["type"], ["acoef", "bcoef"])
        or any(type(table).__name__ != "Discrete2DFunction" for table in tables.values())
    ):
        return None
    first, second = tensor([force.getParticleParameters(k)[0] for k in range(n_atoms)], torch.float64)[pairs.T].round()
    columns = []
    for name in ("acoef", "bcoef"):
        n, m, values = tables[name].getFunctionParameters()
        i, j = first.long().clamp(0, n - 1), second.long().clamp(0, m - 1)
        columns.append(torch.tensor(values, dtype=torch.float64)[i + n * j])
    a, b = columns
    none = (a == 0) & (b == 0)
    if not (none | ((a > 0) & (b > 0))).all():  # repulsion or attraction alone is no Lennard-Jones interaction
        return None
    a, b = a.where(~none, 1.0), b.where(~none, 0.0)
    return _term(pairs, (a / b.where(~none, 1.0)) ** (1 / 6), b * b / (4 * a), n_atoms, dtype)


def recognise_bonds(force: Any, n_atoms: int, dtype: torch.dtype) -> Nonbonded | None:
    """Return the Lennard-Jones term of a CustomBondForce between 1-4 neighbours, and None for others.

    Args:
        force: an openmm.CustomBondForce.
        n_atoms: number of atoms.
        dtype: of the parameters.
    """
    names = [force.getPerBondParameterName(k) for k in range(force.getNumPerBondParameters())]
    match = _BONDS.fullmatch(_text(force))
    if not match or sorted(names) != ["epsilon", "sigma"]:
        return None
    bonds = [force.getBondParameters(k) for k in range(force.getNumBonds())]
    atoms = tensor([bond[:2] for bond in bonds], None, (2,))
    values = dict(zip(names, tensor([bond[2] for bond in bonds], torch.float64, (2,)).T, strict=True))
    if not (values["sigma"] >= 0).all():
        return None
    return _term(atoms, values["sigma"], float(match[1]) / 4 * values["epsilon"], n_atoms, dtype)
