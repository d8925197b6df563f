"""How far OpenMM's particle-mesh Ewald, at the tolerance of a System, is from the converged Ewald sum used here."""

import logging
from typing import Any

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.registry import from_openmm

__all__ = ["pme_offset"]

_log = logging.getLogger(__name__)


def pme_offset(
    system: Any,
    positions: Float[Tensor, "batch n_atoms 3"],
    box: Float[Tensor, "*batch 3 3"] | None = None,
    *,
    platform: str = "Reference",
) -> Float64[Tensor, "batch"]:
    """Return the energy (kJ/mol) of OpenMM's PME less that of the converged Ewald sum, for each conformation.

    What a force field of this package leaves out of the energy that OpenMM's dynamics sees: the error of the mesh and
    of the direct sum at the System's tolerance. It is nearly constant over conformations of one System.

    Args:
        system: an ``openmm.System`` whose NonbondedForce uses PME.
        positions: in nm.
        box: see `ForceField.forward`.
        platform: of OpenMM; others than Reference have errors of their own, of single precision.

    Raises:
        UnsupportedForceError: the System has no NonbondedForce with PME.
    """
    import openmm

    found = [
        force
        for force in system.getForces()
        if isinstance(force, openmm.NonbondedForce) and force.getNonbondedMethod() == force.PME
    ]
    if not found:
        raise UnsupportedForceError("the System has no NonbondedForce with PME, and nothing to compare")
    alone = openmm.XmlSerializer.clone(system)
    for k in reversed(range(alone.getNumForces())):
        alone.removeForce(k)
    for force in found:
        alone.addForce(openmm.XmlSerializer.clone(force))
    forcefield = from_openmm(alone)
    context = openmm.Context(alone, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform))
    boxes = (forcefield.box if box is None else box).double().cpu().expand(len(positions), 3, 3)
    energies = []
    for x, vectors in zip(positions.detach().double().cpu().numpy(), boxes.numpy(), strict=True):
        context.setPeriodicBoxVectors(*vectors)
        context.setPositions(x)
        context.computeVirtualSites()
        energies.append(context.getState(energy=True).getPotentialEnergy()._value)
    offset = torch.tensor(energies, dtype=torch.float64) - forcefield(positions.detach().double().cpu(), boxes)
    _log.info(
        "OpenMM's PME at its tolerance %g is %.3g kJ/mol (mean of %d) from the Ewald sum, which is used here",
        found[0].getEwaldErrorTolerance(),
        offset.mean().item(),
        len(offset),
    )
    return offset
