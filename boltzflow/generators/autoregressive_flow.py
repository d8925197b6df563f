"""Autoregressive flows: atoms moved one after the other in the space of the laboratory, by causal transformers."""

from typing import TYPE_CHECKING

import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators.generator import Generator
from boltzflow.generators.normal_base import normal_base
from boltzflow.io.config import GeneratorConfig
from boltzflow.targets.bases import Gaussian
from boltzflow.transitions.affine import Affine
from boltzflow.transitions.autoregressive import AutoregressiveFlow
from boltzflow.transitions.placement import DropPlacement
from boltzflow.transitions.transition import Transition

if TYPE_CHECKING:
    from boltzflow.systems import AnalyticSystem, System

__all__ = ["autoregressive_flow"]


def autoregressive_flow(system: "System | AnalyticSystem", config: GeneratorConfig) -> Generator:
    """Blocks of an autoregressive flow in alternating order of the atoms, from a normal base.

    All coordinates of all atoms move, those of the centre and the orientation as well. These are auxiliary variables:
    every coordinate of the centre of the base is normal with length/√N, and so it is for data, which are turned at
    random in training; `DropPlacement` takes both off.

    Args:
        system: A molecule in infinite space without constraints or virtual sites; or an analytic energy on lines, with
            or without a centre of mass.
        config: `autoregressive` has the sizes.

    Raises:
        UnsupportedForceError: If the system is something else.
    """
    settings, molecule = config.autoregressive, system.temperature is not None
    ((name, space),) = system.target.fields.items() if molecule else normal_base(system.target).fields.items()
    if molecule:
        if system.box is not None or system.n_constraints or 0 in system.elements:
            raise UnsupportedForceError(
                "autoregressive_flow: moves all Cartesian coordinates of atoms in infinite space; "
                f"system {system.name} is in a periodic box, or has constraints or virtual sites. Use "
                "internal_spline_flow, or a System without constraints (constraints=None)."
            )
        positions = system.positions - system.positions.mean(0)
        length = settings.length or float(positions.square().mean().sqrt())
        known = sorted(set(system.elements))
        types = [known.index(element) for element in system.elements]
    else:
        length, types = settings.length or 1.0, [0] * space.shape[0]
    n_dimensions = space.shape[1] if len(space.shape) == 2 else 1
    with torch.random.fork_rng(devices=[]):
        # initial weights are a function of the configuration alone, whatever was drawn before
        torch.manual_seed(config.mask_seed)
        transitions: list[Transition] = [
            AutoregressiveFlow(
                types,
                n_dimensions,
                backwards=k % 2 == 1,
                width=settings.width,
                n_layers=settings.n_layers,
                head_width=settings.head_width,
                name=name,
            )
            for k in range(settings.n_blocks)
        ]
    transitions.append(Affine(torch.zeros(space.shape), torch.full(space.shape, length), field=name))
    if molecule or system.target.measure == "mean-free":
        transitions.append(DropPlacement(length / len(types) ** 0.5, rotate=molecule, name=name))
    return Generator(Gaussian(space.shape, name=name), transitions)
