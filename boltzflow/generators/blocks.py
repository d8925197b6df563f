"""Stochastic blocks by name: the steps that a configuration puts between couplings, or along a whole path."""

from boltzflow.errors import UnknownNameError, nearest
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.langevin import OverdampedLangevin
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.metropolis import RandomWalkMetropolis
from boltzflow.transitions.transition import Transition
from boltzflow.transitions.unadjusted_hmc import UnadjustedHMC
from boltzflow.transitions.underdamped import BAOAB, BBK, OBABO
from boltzflow.transitions.velocities import DrawVelocities, DropVelocities

__all__ = ["BLOCKS", "stochastic_block"]

BLOCKS = ("metropolis", "langevin", "mala", "hmc", "unadjusted_hmc", "bbk", "baoab", "obabo")
"""Names of the kernels that `stochastic_block` makes."""


def stochastic_block(
    kernel: str,
    *,
    step_size: float,
    n_steps: int = 1,
    level: float = 1.0,
    n_leapfrog: int = 5,
    friction: float = 1.0,
    learnable: bool = False,
) -> list[Transition]:
    """Steps of one kernel at one level of the path.

    Underdamped kernels come between velocities that are drawn and given up again.

    Args:
        kernel: One of `BLOCKS`.
        step_size: Of the kernel.
        n_steps: Trials, steps or trajectories.
        level: λ on the annealing path.
        n_leapfrog: Leapfrog steps of a trajectory.
        friction: Of the underdamped kernels.
        learnable: Whether step size and friction are parameters.

    Raises:
        UnknownNameError: If there is no such kernel.

    Example:
        >>> [type(step).__name__ for step in stochastic_block("baoab", step_size=0.05, n_steps=5)]
        ['DrawVelocities', 'BAOAB', 'DropVelocities']
    """
    if kernel not in BLOCKS:
        raise UnknownNameError(f"stochastic block: unknown kernel {kernel!r}; {nearest(kernel, BLOCKS)}")
    common = {"n_steps": n_steps, "learnable": learnable, "level": level}
    simple = {"metropolis": RandomWalkMetropolis, "langevin": OverdampedLangevin, "mala": MALA}
    if kernel in simple:
        return [simple[kernel](step_size, **common)]
    trajectories = {"hmc": HMC, "unadjusted_hmc": UnadjustedHMC}
    if kernel in trajectories:
        return [trajectories[kernel](step_size, n_leapfrog=n_leapfrog, **common)]
    underdamped = {"bbk": BBK, "baoab": BAOAB, "obabo": OBABO}
    return [DrawVelocities(), underdamped[kernel](step_size, friction=friction, **common), DropVelocities()]
