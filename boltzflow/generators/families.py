"""Assembled Generators: from a system and a configuration to a base and a sequence of Transitions."""

from typing import TYPE_CHECKING

import torch

from boltzflow.generators.annealed_families import annealed_family
from boltzflow.generators.autoregressive_flow import autoregressive_flow
from boltzflow.generators.continuous_flow import continuous_flow
from boltzflow.generators.generator import Generator
from boltzflow.generators.internal_spline import internal_spline_flow
from boltzflow.generators.stochastic_flow import stochastic_flow
from boltzflow.io.config import GeneratorConfig

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["build_generator"]


def build_generator(
    system: "System",
    config: GeneratorConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Generator:
    """Build the untrained Generator that a configuration describes.

    Args:
        system: What it samples.
        config: Family and sizes.
        dtype: Of parameters and samples.
        device: Where it runs.

    Raises:
        UnsupportedForceError: If the system is periodic, has virtual sites, or constraints that are no internal
            coordinates.
    """
    families = {
        "internal_spline_flow": internal_spline_flow,
        "stochastic_flow": stochastic_flow,
        "continuous_flow": continuous_flow,
        "autoregressive_flow": autoregressive_flow,
        "smc": annealed_family,
        "annealed_importance": annealed_family,
    }
    return families[config.family](system, config).to(device=device, dtype=dtype)
