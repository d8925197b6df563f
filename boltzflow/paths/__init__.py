"""Annealing paths between a base and a Target."""

from boltzflow.paths.noisy import NoisyBase, perturbed_path
from boltzflow.paths.path import EnergyPath, GeometricPath, MixtureLevel, Path, SquaredPath, TemperedPath
from boltzflow.paths.pullback import PullbackPath, PullbackTarget
from boltzflow.paths.schedule import LearnedSchedule

__all__ = [
    "EnergyPath",
    "GeometricPath",
    "LearnedSchedule",
    "MixtureLevel",
    "NoisyBase",
    "Path",
    "PullbackPath",
    "PullbackTarget",
    "SquaredPath",
    "TemperedPath",
    "perturbed_path",
]
