"""Fixed distances of a System, which change the measure of its density and not its energy."""

from typing import Any, NamedTuple

import torch

from boltzflow._typing import Float64, Int, Tensor

__all__ = ["ConstraintParameters", "read_constraints"]


class ConstraintParameters(NamedTuple):
    """Fixed distances: ``atoms`` (n, 2), ``distances`` (n,) in nm, ``masses`` (n_atoms,) in amu."""

    atoms: Int[Tensor, "n 2"]
    distances: Float64[Tensor, "n"]
    masses: Float64[Tensor, "n_atoms"]


def read_constraints(system: Any) -> ConstraintParameters | None:
    """Return the constraints of an ``openmm.System`` with the masses of all particles; None if it has none."""
    found = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
    if not found:
        return None
    masses = [system.getParticleMass(a)._value for a in range(system.getNumParticles())]
    return ConstraintParameters(
        torch.tensor([(i, j) for i, j, _ in found]),
        torch.tensor([distance._value for _, _, distance in found], dtype=torch.float64),
        torch.tensor(masses, dtype=torch.float64),
    )
