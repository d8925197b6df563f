"""Bases: Targets that can sample exactly, from which Generators start; each with its normalisation tested."""

from boltzflow.targets.bases.dirac import Dirac
from boltzflow.targets.bases.frames import FramesBase
from boltzflow.targets.bases.gaussian import Gaussian
from boltzflow.targets.bases.mean_free import MeanFreeGaussian
from boltzflow.targets.bases.product import ProductBase
from boltzflow.targets.bases.rotations import UniformRotations
from boltzflow.targets.bases.truncated_normal import TruncatedNormal
from boltzflow.targets.bases.uniform import Uniform
from boltzflow.targets.bases.von_mises import VonMises

__all__ = [
    "Dirac",
    "FramesBase",
    "Gaussian",
    "MeanFreeGaussian",
    "ProductBase",
    "TruncatedNormal",
    "Uniform",
    "UniformRotations",
    "VonMises",
]
