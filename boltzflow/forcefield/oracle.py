"""OpenMM as it is compared with: exact sums over waves, and a platform that finds every pair."""

import copy
from typing import Any, Literal

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.forcefield.openmm_bridge import OpenMMPotential
from boltzflow.forcefield.registry import from_openmm

__all__ = ["Platform", "exact", "platform_for"]

Platform = Literal["Reference", "CPU"]

_EWALD_TOLERANCE, _PME_TOLERANCE = 1e-9, 1e-7
"""Of the sums that PME is compared with; a finer mesh does not fit into memory."""


def _oblique(system: Any) -> bool:
    vectors = torch.tensor([tuple(vector._value) for vector in system.getDefaultPeriodicBoxVectors()])
    return bool((vectors.tril(-1) != 0).any())


def exact(system: Any) -> Any:
    """Return a copy of the System with sums over waves as exact as OpenMM takes them.

    PME becomes an Ewald sum, or a finer mesh in a triclinic box, for which OpenMM has no Ewald sum.

    Args:
        system: an ``openmm.System``.
    """
    system, oblique = copy.deepcopy(system), _oblique(system)
    for force in system.getForces():
        if type(force).__name__ == "NonbondedForce" and force.getNonbondedMethod() in (force.PME, force.Ewald):
            force.setNonbondedMethod(force.PME if oblique else force.Ewald)
            force.setEwaldErrorTolerance(_PME_TOLERANCE if oblique else _EWALD_TOLERANCE)
    return system


def platform_for(system: Any, positions: Float[Tensor, "batch n_atoms 3"]) -> Platform:
    """Return the platform of OpenMM that finds all pairs of atoms within the cutoffs.

    The Reference platform misses some in triclinic boxes whose width is not far above twice the cutoff. Pairs are
    counted, as a force that is 1 within the cutoff.

    Args:
        system: an ``openmm.System``.
        positions: in nm.
    """
    import openmm

    cutoffs = {
        force.getCutoffDistance()._value
        for force in system.getForces()
        if hasattr(force, "getCutoffDistance") and force.usesPeriodicBoundaryConditions()
    }
    for cutoff in cutoffs if _oblique(system) else ():
        probe, pairs = openmm.System(), openmm.CustomNonbondedForce("1")
        probe.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
        pairs.setNonbondedMethod(pairs.CutoffPeriodic)
        pairs.setCutoffDistance(cutoff)
        for _ in range(system.getNumParticles()):
            probe.addParticle(1.0)
            pairs.addParticle([])
        probe.addForce(pairs)
        found = OpenMMPotential(probe, platform="Reference").energy_and_force(positions)[0]
        if (found < from_openmm(probe)(positions) - 0.5).any():
            return "CPU"
    return "Reference"
