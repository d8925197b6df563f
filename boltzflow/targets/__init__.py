"""Targets: unnormalised densities exp(−u), and the bases from which Generators start."""

from boltzflow.targets.bases import (
    Dirac,
    FramesBase,
    Gaussian,
    MeanFreeGaussian,
    ProductBase,
    TruncatedNormal,
    Uniform,
    UniformRotations,
    VonMises,
)
from boltzflow.targets.correlated_mixture import CorrelatedMixture, perturbation_wells
from boltzflow.targets.funnel import Funnel
from boltzflow.targets.glass import TernaryLiquid
from boltzflow.targets.harmonic import Harmonic, harmonic_pair
from boltzflow.targets.image import ImageDensity
from boltzflow.targets.mixture import GaussianMixture, gmm9, gmm25, gmm40
from boltzflow.targets.molecule import MoleculeTarget
from boltzflow.targets.particles import DoubleWellCluster, LennardJonesCluster, PairTarget
from boltzflow.targets.states import ThermodynamicState, u_kn
from boltzflow.targets.target import Base, Target
from boltzflow.targets.tempered import Tempered
from boltzflow.targets.wells import DoubleWell, ManyWell, Wells, mw52, mw54

__all__ = [
    "Base",
    "CorrelatedMixture",
    "Dirac",
    "DoubleWell",
    "DoubleWellCluster",
    "FramesBase",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "Harmonic",
    "ImageDensity",
    "LennardJonesCluster",
    "ManyWell",
    "MeanFreeGaussian",
    "MoleculeTarget",
    "PairTarget",
    "ProductBase",
    "Target",
    "Tempered",
    "TernaryLiquid",
    "ThermodynamicState",
    "TruncatedNormal",
    "Uniform",
    "UniformRotations",
    "VonMises",
    "Wells",
    "gmm9",
    "gmm25",
    "gmm40",
    "harmonic_pair",
    "mw52",
    "mw54",
    "perturbation_wells",
    "u_kn",
]
