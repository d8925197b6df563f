"""A weighted population that an objective carries through the levels of an annealed Generator."""

import math

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.transition import BatchStep, Transition

__all__ = ["bare", "finite_weights", "moved", "weighted_mean"]


def bare(state: State) -> State:
    """The same values without history and evaluations."""
    return State({name: value.detach() for name, value in state.fields.items()}, state.spaces)


def finite_weights(log_weights: Float64[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
    """Log-weights without history, −inf where they are not finite."""
    return torch.nan_to_num(log_weights.detach(), nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def weighted_mean(log_weights: Float64[Tensor, " batch"], cost: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean of a cost over the weighted population; rows without finite cost or weight take no part."""
    w = torch.softmax(finite_weights(log_weights), 0)
    keep = torch.isfinite(cost.detach()) & (w > 0)
    return torch.where(keep, w * torch.where(keep, cost, 0.0), 0.0).sum()


def moved(
    transition: Transition | BatchStep,
    state: State,
    run: Run,
    u: Float64[Tensor, " batch"],
    total: Float64[Tensor, " batch"],
) -> tuple[State, Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """One move or resampling at the level of `run`.

    Args:
        transition: Not a map.
        state: The population.
        run: At the level.
        u: Its energy at the level, (batch,).
        total: A of the weights A − u, (batch,).

    Returns:
        State, energy and A after it.
    """
    u, state = run.energy(state)
    if not isinstance(transition, BatchStep):
        state, ratio = transition(state, run)
        after, state = run.energy(state)
        return state, after, total + ratio
    log_w = finite_weights(total - u)
    ancestors = transition.choose(log_w, run.rng)
    if ancestors is None:
        return state, u, total
    total = u[ancestors] + torch.logsumexp(log_w, 0) - math.log(len(u))
    return state.index(ancestors), u[ancestors], total
