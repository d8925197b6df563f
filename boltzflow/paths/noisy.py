"""The extended state of flow perturbation: a base with noise beside it, and the path on which both are annealed."""

from collections.abc import Callable
from functools import partial

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.paths.path import Path
from boltzflow.paths.pullback import PullbackPath
from boltzflow.run import Context, Run
from boltzflow.state import State
from boltzflow.targets.target import Base, Target
from boltzflow.transitions.flow_noise import NOISE, DrawNoise, DropNoise, noise_space
from boltzflow.transitions.flow_perturbation import FlowPerturbation
from boltzflow.transitions.gaussian_perturbation import GaussianPerturbation
from boltzflow.transitions.velocities import normal_energy

__all__ = ["NoisyBase", "perturbed_path"]


class NoisyBase(Base):
    """The density of (z, e) in which flow perturbation acts: z from a base, and every direction e from N(0, I).

    A Generator from here with `[flow, DropNoise(flow.n_noises)]` has the weights of one from the base that draws the
    noise itself, and its start can be moved: the density of (z, e) that the target has is that of a `PullbackTarget`
    through both, and the noise is sampled with the positions.

    Args:
        base: Of the positions.
        flow: Whose noise this is.

    Example:
        >>> from boltzflow.networks import ShallowField
        >>> from boltzflow.targets import Gaussian
        >>> flow = FlowPerturbation(ShallowField(3, 8), n_steps=2, name="x")
        >>> {name: space.shape for name, space in NoisyBase(Gaussian(3), flow).fields.items()}
        {'x': (3,), 'x_noise': (2, 3)}
    """

    def __init__(self, base: Base, flow: FlowPerturbation | GaussianPerturbation) -> None:
        self.draw_name, self.n_noises = flow.name, flow.n_noises
        noise = {flow.name + NOISE: noise_space(base.fields[flow.name], flow.n_noises)}
        super().__init__({**base.fields, **noise}, name=f"{base.name} with noise", log_z=base.log_z)
        self.measure = base.measure
        self.base = base

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """u_base(z) − log N(e), (batch,)."""
        return self.base.reduced_energy(state, context).double() + normal_energy(state, [self.draw_name + NOISE])

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        state = self.base.sample(n, rng, context)
        return DrawNoise(self.n_noises, name=self.draw_name)(state, Run(rng, context))[0]


def perturbed_path(flow: FlowPerturbation | GaussianPerturbation) -> Callable[[Target, Target], Path]:
    """Makes the path from a `NoisyBase` to the density of (z, e) that the target has through a perturbed flow.

    Its levels are p(z) N(e) exp(λ log ω(z, e)), ω the weight of flow perturbation; at λ = 1 its marginal is the target.

    Args:
        flow: The last Transition but `DropNoise`.

    References:
        Flow Perturbation to Accelerate Boltzmann Sampling (Peng, Gao, 2024), https://arxiv.org/abs/2407.10666
    """
    return partial(PullbackPath, through=[flow, DropNoise(flow.n_noises, name=flow.name)])
