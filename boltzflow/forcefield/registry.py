"""Turns an openmm.System into a `ForceField`: one registered converter per class of openmm.Force."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from boltzflow._typing import Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.constraints import read_constraints
from boltzflow.forcefield.potential import ForceField
from boltzflow.forcefield.term import Term
from boltzflow.forcefield.virtual_sites import read_virtual_sites

__all__ = ["CONVERTERS", "IGNORED", "from_openmm", "register_force", "tensor"]

_log = logging.getLogger(__name__)

Converter = Callable[[Any, Any, torch.dtype], Term]

CONVERTERS: dict[str, Converter] = {}

IGNORED = frozenset(
    {
        "AndersenThermostat",
        "CMMotionRemover",
        "MonteCarloAnisotropicBarostat",
        "MonteCarloBarostat",
        "MonteCarloFlexibleBarostat",
        "MonteCarloMembraneBarostat",
    }
)
"""Classes that act on the dynamics and have no energy."""


def register_force(name: str) -> Callable[[Converter], Converter]:
    """Register a converter for a class of openmm.Force.

    Args:
        name: the class name, such as ``"CustomBondForce"``.

    Returns:
        A decorator for ``convert(force, system, dtype) -> Term``, which raises UnsupportedForceError for whatever it
        does not know.

    Example:
        >>> @register_force("CustomExternalForce")
        ... def convert(force, system, dtype):
        ...     return MyTerm(k=tensor([1.0], dtype))
    """

    def decorate(converter: Converter) -> Converter:
        CONVERTERS[name] = converter
        return converter

    return decorate


def tensor(values: Sequence, dtype: torch.dtype | None, columns: tuple[int, ...] = ()) -> Tensor:
    """Return a (n, *columns) tensor of numbers or openmm quantities in OpenMM's units; ``dtype=None`` gives int64."""
    plain = [
        [getattr(v, "_value", v) for v in value] if columns else getattr(value, "_value", value) for value in values
    ]
    return torch.tensor(plain, dtype=dtype or torch.int64).reshape(len(plain), *columns)


def from_openmm(system: Any, *, dtype: torch.dtype = torch.float64) -> ForceField:
    """Convert an openmm.System into a batched, differentiable torch potential.

    Constraints do not change the energy; they are kept as ``constraints``, from which a `MoleculeTarget` takes its
    measure and dimension.

    Args:
        system: an ``openmm.System``; if it is periodic, its default box is that of the force field.
        dtype: of the parameters and of the arithmetic; energies are summed and returned in float64.

    Returns:
        A `ForceField`: positions (batch, n_atoms, 3) in nm -> energies (batch,) in kJ/mol.

    Raises:
        UnsupportedForceError: a force, or a part of it, without a converter; the message names class, index and group.

    Example:
        >>> from boltzflow import load_system
        >>> system = load_system("alanine_dipeptide")
        >>> energy = from_openmm(system.openmm_system)(system.positions[None])
        >>> print(f"{energy.item():.2f} kJ/mol")
        -173.17 kJ/mol
    """
    n_atoms = system.getNumParticles()
    sites = read_virtual_sites(system, dtype)
    terms = []
    for index, force in enumerate(system.getForces()):
        name = type(force).__name__
        where = f"{name} (force {index}, group {force.getForceGroup()})"
        if name in IGNORED:
            _log.info("%s has no energy and is ignored", where)
            continue
        if name not in CONVERTERS:
            raise UnsupportedForceError(
                f"{where} has no torch converter (known: {', '.join(sorted(CONVERTERS))}); register one with "
                "boltzflow.forcefield.register_force, or use the openmm back-end"
            )
        try:
            terms.append(CONVERTERS[name](force, system, dtype))
        except UnsupportedForceError as error:
            raise UnsupportedForceError(f"{where}: {error}") from None
    periodic = any(term.periodic for term in terms)
    return ForceField(
        terms,
        n_atoms=n_atoms,
        constraints=read_constraints(system),
        dtype=dtype,
        box=tensor(list(system.getDefaultPeriodicBoxVectors()), dtype, (3,)) if periodic else None,
        sites=sites,
    )
