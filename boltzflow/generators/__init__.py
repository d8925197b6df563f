"""Generators: a base and a sequence of Transitions, and families assembled from configurations."""

from boltzflow.generators.annealed_families import annealed_family, run_pilot
from boltzflow.generators.annealing import annealed_importance, smc
from boltzflow.generators.autoregressive_flow import autoregressive_flow
from boltzflow.generators.blocks import BLOCKS, stochastic_block
from boltzflow.generators.continuous_flow import continuous_flow
from boltzflow.generators.controlled import Controlled, controlled
from boltzflow.generators.families import build_generator
from boltzflow.generators.fields import build_field
from boltzflow.generators.generator import Generator, GeneratorTarget, Trajectory
from boltzflow.generators.internal_spline import internal_spline_flow
from boltzflow.generators.perturbed_smc import perturbed_smc
from boltzflow.generators.schedule import Schedule, conditional_ess, find_schedule
from boltzflow.generators.stochastic_flow import stochastic_flow
from boltzflow.generators.trained_base import GeneratorBase, anneal_from

__all__ = [
    "BLOCKS",
    "Controlled",
    "Generator",
    "GeneratorBase",
    "GeneratorTarget",
    "Schedule",
    "Trajectory",
    "anneal_from",
    "annealed_family",
    "annealed_importance",
    "autoregressive_flow",
    "build_field",
    "build_generator",
    "conditional_ess",
    "continuous_flow",
    "controlled",
    "find_schedule",
    "internal_spline_flow",
    "perturbed_smc",
    "run_pilot",
    "smc",
    "stochastic_block",
    "stochastic_flow",
]
