"""Generators: a base and a sequence of Transitions, and families assembled from configurations."""

from boltzflow.generators.blocks import BLOCKS, stochastic_block
from boltzflow.generators.families import build_generator, internal_spline_flow
from boltzflow.generators.generator import Generator, GeneratorTarget, Trajectory

__all__ = [
    "BLOCKS",
    "Generator",
    "GeneratorTarget",
    "Trajectory",
    "build_generator",
    "internal_spline_flow",
    "stochastic_block",
]
