"""Continuous flows of Cartesian positions: Euler steps along an equivariant velocity field."""

from typing import TYPE_CHECKING

import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators.fields import build_field
from boltzflow.generators.generator import Generator
from boltzflow.generators.internal_spline import internal_spline_flow
from boltzflow.generators.normal_base import normal_base
from boltzflow.io.config import GeneratorConfig
from boltzflow.io.continuous_config import ContinuousConfig
from boltzflow.networks import AtomFeatures, VectorField
from boltzflow.transitions.adaptive_flow import ApproximateAdaptiveFlow
from boltzflow.transitions.euler_flow import EulerFlow
from boltzflow.transitions.flow_perturbation import PerturbedFlow
from boltzflow.transitions.runge_kutta_flow import RungeKuttaFlow
from boltzflow.transitions.transition import Transition

if TYPE_CHECKING:
    from boltzflow.systems import SystemFolder

__all__ = ["continuous_flow"]


def continuous_flow(system: "SystemFolder", config: GeneratorConfig) -> Generator:
    """Euler steps along a field that goes with rotations, of positions; the weights are those of the very steps.

    Identical particles start from a normal distribution, and the field goes with their permutations and with
    reflections. A molecule starts from an `internal_spline_flow`; without couplings (`n_couplings: 0`) that is a
    product of marginals of internal coordinates and a linear map of the stiff ones: it knows bonds, angles and the
    hand of every centre, and nothing that torsions do to one another. Graph networks see its elements, residues and
    bonds; for all other fields every atom is a type of its own.

    Args:
        system: A molecule, or an analytic energy of identical particles without a centre of mass.
        config: `continuous` has the field, the steps, and how they are weighed; an `internal_spline_flow` reads
            the rest.

    Raises:
        UnsupportedForceError: If the system is something else, or a molecule with constraints.
        ValueError: If the weights are to be those of noise that is not isotropic, or of steps that are not Euler's.

    References:
        Equivariant Flows (Köhler, Klein, Noé, 2020), https://arxiv.org/abs/2006.02425
    """
    settings = config.continuous
    if system.temperature is not None:
        if system.n_constraints:
            raise UnsupportedForceError(
                f"continuous_flow: velocities of single atoms leave the {system.n_constraints} constraints of "
                f"{system.name}; use a System without constraints, or internal_spline_flow."
            )
        start = internal_spline_flow(system, config)
        reach = float(torch.pdist(system.positions.double()).max()) if settings.reach is None else settings.reach
        unit = 0.1 if settings.unit is None else settings.unit
        features, frame = AtomFeatures.of_topology(system.topology), system.zmatrix.order[:3].tolist()
        field = build_field(settings, features, 3, reach=reach, unit=unit, seed=config.mask_seed, frame=frame)
        return Generator(start.base, [*start.transitions, _steps(field, settings, "positions")])
    if system.target.measure != "mean-free":
        raise UnsupportedForceError(
            f"continuous_flow: expected a molecule or an analytic energy of identical particles without a centre of "
            f"mass, such as dw4; {system.name} is neither."
        )
    base = normal_base(system.target, scale=settings.base_scale)
    ((name, space),) = base.fields.items()
    reach = 5.0 * settings.base_scale if settings.reach is None else settings.reach
    unit = settings.base_scale if settings.unit is None else settings.unit
    types, n_dimensions = [0] * space.shape[0], space.shape[1]
    field = build_field(settings, types, n_dimensions, reach=reach, unit=unit, seed=config.mask_seed)
    return Generator(base, [_steps(field, settings, name)])


def _steps(field: VectorField, settings: ContinuousConfig, name: str) -> Transition:
    if settings.weights == "perturbation" and settings.solver != "euler":
        raise ValueError(
            f"continuous.weights: perturbation weighs backward Euler steps, got solver: {settings.solver}; leave it "
            "out."
        )
    if settings.solver == "adaptive":
        return ApproximateAdaptiveFlow(field, tolerance=settings.tolerance, name=name)
    if settings.solver != "euler":
        return RungeKuttaFlow(field, n_steps=settings.n_steps, method=settings.solver, name=name)
    if settings.weights == "exact":
        return EulerFlow(field, n_steps=settings.n_steps, name=name)
    noise = settings.perturbation
    return PerturbedFlow(field, n_steps=settings.n_steps, n_directions=noise.directions, name=name, noise=noise.noise)
