"""Steps that know their own log-ratio: couplings, splines, coordinate maps, Metropolis kernels, resampling."""

from boltzflow.transitions.adaptive_flow import ApproximateAdaptiveFlow
from boltzflow.transitions.affine import Affine, AffineCoupling
from boltzflow.transitions.autoregressive import AutoregressiveFlow
from boltzflow.transitions.block import BlockToInternal
from boltzflow.transitions.coupling import Conditioner, SplineCoupling, alternating_masks
from boltzflow.transitions.cycle import cycle_error
from boltzflow.transitions.elementwise import ElementwiseSpline
from boltzflow.transitions.euler_flow import EulerFlow
from boltzflow.transitions.flow_noise import DrawNoise, DropNoise
from boltzflow.transitions.flow_perturbation import FlowPerturbation, PerturbedFlow
from boltzflow.transitions.gaussian_perturbation import GaussianPerturbation, LearnedFactor
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.hutchinson_flow import ApproximateHutchinsonFlow
from boltzflow.transitions.internal import InternalToCartesian
from boltzflow.transitions.interpolant import Interpolant
from boltzflow.transitions.interpolant_sde import InterpolantSDE
from boltzflow.transitions.langevin import OverdampedLangevin
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.metropolis import MetropolisKernel, RandomWalkMetropolis
from boltzflow.transitions.particle_moves import (
    ParticleDisplacement,
    ParticleEnergies,
    ParticleMove,
    SpeciesSwap,
    swap_monte_carlo,
)
from boltzflow.transitions.placement import DropPlacement
from boltzflow.transitions.resampling import SystematicResampling
from boltzflow.transitions.rigid_move import RigidMove
from boltzflow.transitions.rotation_flow import RotationFlow
from boltzflow.transitions.rotation_hmc import RotationHMC
from boltzflow.transitions.runge_kutta_flow import RungeKuttaFlow
from boltzflow.transitions.swap import swap_neighbours
from boltzflow.transitions.torsion_block_flow import TorsionBlockFlow
from boltzflow.transitions.torsion_blocks import FAMILIES, TorsionBlocks, torsion_blocks
from boltzflow.transitions.torsion_density import TorsionDensity
from boltzflow.transitions.torsion_move import TorsionAxes, TorsionMove, rotatable_axes
from boltzflow.transitions.transition import BatchStep, Bijection, DetailedBalance, Drop, Transition
from boltzflow.transitions.triangular import TriangularAffine
from boltzflow.transitions.unadjusted_hmc import UnadjustedHMC
from boltzflow.transitions.underdamped import BAOAB, BBK, OBABO, UnderdampedLangevin
from boltzflow.transitions.velocities import DrawVelocities, DropVelocities

__all__ = [
    "BAOAB",
    "BBK",
    "FAMILIES",
    "HMC",
    "MALA",
    "OBABO",
    "Affine",
    "AffineCoupling",
    "ApproximateAdaptiveFlow",
    "ApproximateHutchinsonFlow",
    "AutoregressiveFlow",
    "BatchStep",
    "Bijection",
    "BlockToInternal",
    "Conditioner",
    "DetailedBalance",
    "DrawNoise",
    "DrawVelocities",
    "Drop",
    "DropNoise",
    "DropPlacement",
    "DropVelocities",
    "ElementwiseSpline",
    "EulerFlow",
    "FlowPerturbation",
    "GaussianPerturbation",
    "InternalToCartesian",
    "Interpolant",
    "InterpolantSDE",
    "LearnedFactor",
    "MetropolisKernel",
    "OverdampedLangevin",
    "ParticleDisplacement",
    "ParticleEnergies",
    "ParticleMove",
    "PerturbedFlow",
    "RandomWalkMetropolis",
    "RigidMove",
    "RotationFlow",
    "RotationHMC",
    "RungeKuttaFlow",
    "SpeciesSwap",
    "SplineCoupling",
    "SystematicResampling",
    "TorsionAxes",
    "TorsionBlockFlow",
    "TorsionBlocks",
    "TorsionDensity",
    "TorsionMove",
    "Transition",
    "TriangularAffine",
    "UnadjustedHMC",
    "UnderdampedLangevin",
    "alternating_masks",
    "cycle_error",
    "rotatable_axes",
    "swap_monte_carlo",
    "swap_neighbours",
    "torsion_blocks",
]
