"""Objectives: loss modules over (generator, target or data). Whatever they got wrong, the weights correct."""

from boltzflow.objectives.build import build_objective
from boltzflow.objectives.coverage import CoverageLikelihood
from boltzflow.objectives.decisions import decision_term
from boltzflow.objectives.likelihood import MaximumLikelihood
from boltzflow.objectives.mixture import Mixture
from boltzflow.objectives.objective import Objective, Step
from boltzflow.objectives.path_likelihood import PathLikelihood
from boltzflow.objectives.reverse_kl import ReverseKL, compress_energy
from boltzflow.objectives.self_weighted import SelfWeightedKL

__all__ = [
    "CoverageLikelihood",
    "MaximumLikelihood",
    "Mixture",
    "Objective",
    "PathLikelihood",
    "ReverseKL",
    "SelfWeightedKL",
    "Step",
    "build_objective",
    "compress_energy",
    "decision_term",
]
