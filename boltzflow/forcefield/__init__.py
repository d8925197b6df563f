"""An openmm.System as a batched, differentiable torch potential, and OpenMM itself behind the same face."""

from boltzflow.forcefield.alchemical import (
    AlchemicalGeneralizedBorn,
    AlchemicalNonbonded,
    alchemical,
    lambda_schedule,
)
from boltzflow.forcefield.cmap_torsion import CMAPTorsions
from boltzflow.forcefield.compiled import CompiledForceField
from boltzflow.forcefield.constraints import ConstraintParameters
from boltzflow.forcefield.custom_bonds import CustomBonds
from boltzflow.forcefield.custom_generalized_born import CustomGeneralizedBorn
from boltzflow.forcefield.custom_nonbonded import CustomPairs
from boltzflow.forcefield.generalized_born import GeneralizedBorn
from boltzflow.forcefield.harmonic_angle import HarmonicAngles
from boltzflow.forcefield.harmonic_bond import HarmonicBonds
from boltzflow.forcefield.nonbonded import Nonbonded
from boltzflow.forcefield.openmm_bridge import OpenMMPotential, WorkerError
from boltzflow.forcefield.periodic_nonbonded import PeriodicNonbonded
from boltzflow.forcefield.periodic_torsion import PeriodicTorsions
from boltzflow.forcefield.pme_offset import pme_offset
from boltzflow.forcefield.potential import AngleParameters, BondParameters, ForceField, TorsionParameters
from boltzflow.forcefield.python_force import to_openmm
from boltzflow.forcefield.registry import from_openmm, register_force
from boltzflow.forcefield.serialized import SerializedSystem, read_serialized
from boltzflow.forcefield.term import Term
from boltzflow.forcefield.virtual_sites import VirtualSites

__all__ = [
    "AlchemicalGeneralizedBorn",
    "AlchemicalNonbonded",
    "AngleParameters",
    "BondParameters",
    "CMAPTorsions",
    "CompiledForceField",
    "ConstraintParameters",
    "CustomBonds",
    "CustomGeneralizedBorn",
    "CustomPairs",
    "ForceField",
    "GeneralizedBorn",
    "HarmonicAngles",
    "HarmonicBonds",
    "Nonbonded",
    "OpenMMPotential",
    "PeriodicNonbonded",
    "PeriodicTorsions",
    "SerializedSystem",
    "Term",
    "TorsionParameters",
    "VirtualSites",
    "WorkerError",
    "alchemical",
    "from_openmm",
    "lambda_schedule",
    "pme_offset",
    "read_serialized",
    "register_force",
    "to_openmm",
]
