"""Objectives: loss modules over (generator, target or data). Whatever they got wrong, the weights correct."""

from boltzflow.objectives.annealed_bootstrap import AnnealedBootstrap
from boltzflow.objectives.annealed_transport import AnnealedTransport
from boltzflow.objectives.buffered import BufferedKL
from boltzflow.objectives.build import build_objective
from boltzflow.objectives.chi_squared import ChiSquared
from boltzflow.objectives.cooling import Cooling
from boltzflow.objectives.coverage import CoverageLikelihood
from boltzflow.objectives.decisions import decision_term
from boltzflow.objectives.energy_weighted import EnergyWeightedMatching
from boltzflow.objectives.fit_transport import TransportFit, fit_transport
from boltzflow.objectives.flow_map import FlowMapDistillation, mean_velocity
from boltzflow.objectives.flow_matching import FlowMatching
from boltzflow.objectives.force_likelihood import ForceLikelihood
from boltzflow.objectives.interpolant import InterpolantMatching
from boltzflow.objectives.likelihood import MaximumLikelihood
from boltzflow.objectives.log_variance import LogVariance
from boltzflow.objectives.mass_transport import ConstrainedStep, MassTransport, constrained_step
from boltzflow.objectives.mixture import Mixture
from boltzflow.objectives.objective import Objective, Step
from boltzflow.objectives.pair_weights import pair_log_weights
from boltzflow.objectives.path_kl import PathKL, flattening_power
from boltzflow.objectives.path_likelihood import PathLikelihood
from boltzflow.objectives.rectification import Rectification
from boltzflow.objectives.replay import ReplayBuffer
from boltzflow.objectives.reverse_kl import ReverseKL, compress_energy
from boltzflow.objectives.rotation_matching import RotationMatching
from boltzflow.objectives.self_weighted import SelfWeightedKL
from boltzflow.objectives.sequence import Sequence
from boltzflow.objectives.temperature_ladder import TemperatureLadder, geometric_ladder

__all__ = [
    "AnnealedBootstrap",
    "AnnealedTransport",
    "BufferedKL",
    "ChiSquared",
    "ConstrainedStep",
    "Cooling",
    "CoverageLikelihood",
    "EnergyWeightedMatching",
    "FlowMapDistillation",
    "FlowMatching",
    "ForceLikelihood",
    "InterpolantMatching",
    "LogVariance",
    "MassTransport",
    "MaximumLikelihood",
    "Mixture",
    "Objective",
    "PathKL",
    "PathLikelihood",
    "Rectification",
    "ReplayBuffer",
    "ReverseKL",
    "RotationMatching",
    "SelfWeightedKL",
    "Sequence",
    "Step",
    "TemperatureLadder",
    "TransportFit",
    "build_objective",
    "compress_energy",
    "constrained_step",
    "decision_term",
    "fit_transport",
    "flattening_power",
    "geometric_ladder",
    "mean_velocity",
    "pair_log_weights",
]
