"""Continuous flows of particles: Euler steps along an equivariant velocity field from a normal base."""

from typing import TYPE_CHECKING

import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators.generator import Generator
from boltzflow.generators.normal_base import normal_base
from boltzflow.io.config import GeneratorConfig
from boltzflow.io.continuous_config import ContinuousConfig
from boltzflow.networks import EmbeddedField, PairField, VectorField
from boltzflow.transitions.euler_flow import EulerFlow
from boltzflow.transitions.flow_perturbation import PerturbedFlow

if TYPE_CHECKING:
    from boltzflow.systems import SystemFolder

__all__ = ["continuous_flow"]


def continuous_flow(system: "SystemFolder", config: GeneratorConfig) -> Generator:
    """Euler steps along a field that goes with permutations, rotations and reflections; weights of those very steps.

    Args:
        system: With an analytic energy of identical particles without a centre of mass.
        config: `continuous` has the field, the steps, and how they are weighed.

    Raises:
        UnsupportedForceError: If the system is something else.
        ValueError: If the weights are to be those of noise that is not isotropic.

    References:
        Equivariant Flows (Köhler, Klein, Noé, 2020), https://arxiv.org/abs/2006.02425
    """
    if system.temperature is not None or system.target.measure != "mean-free":
        raise UnsupportedForceError(
            f"continuous_flow: expected an analytic energy of identical particles without a centre of mass, such as "
            f"dw4; {system.name} is {'a molecule' if system.temperature is not None else 'none'}. For molecules there "
            "is internal_spline_flow."
        )
    settings = config.continuous
    base = normal_base(system.target, scale=settings.base_scale)
    ((name, space),) = base.fields.items()
    n_particles, n_dimensions = space.shape
    types = [0] * n_particles
    reach = 5.0 * settings.base_scale if settings.reach is None else settings.reach
    with torch.random.fork_rng(devices=[]):
        # initial weights are a function of the configuration alone, whatever was drawn before
        torch.manual_seed(config.mask_seed)
        field: VectorField
        if settings.field == "pair":
            sizes = {"n_basis": settings.n_basis, "n_times": settings.n_times}
            field = PairField(types, n_dimensions, reach=reach, **sizes)
        else:
            sizes = {"hidden": settings.hidden, "n_features": settings.n_features, "n_basis": settings.n_basis}
            field = EmbeddedField(types, n_dimensions, reach=reach, **sizes)
    return Generator(base, [_steps(field, settings, name)])


def _steps(field: VectorField, settings: ContinuousConfig, name: str) -> EulerFlow | PerturbedFlow:
    if settings.weights == "exact":
        return EulerFlow(field, n_steps=settings.n_steps, name=name)
    noise = settings.perturbation
    return PerturbedFlow(field, n_steps=settings.n_steps, n_directions=noise.directions, name=name, noise=noise.noise)
