"""Velocities as auxiliary fields: drawn at the start of a path and given up at its end, with one density for both."""

import math
from collections.abc import Sequence

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import Space, State
from boltzflow.transitions.metropolis import centred_normal
from boltzflow.transitions.transition import Drop, Transition

__all__ = ["VELOCITY", "DrawVelocities", "DropVelocities", "flipped", "normal_energy", "velocity_fields"]

VELOCITY = "_velocity"
"""Suffix of the name of a field of velocities."""


def velocity_fields(state: State) -> tuple[str, ...]:
    """Names of the fields of a State that hold velocities."""
    return tuple(name for name in state.fields if name.endswith(VELOCITY))


def _with_velocities(state: State, run: Run) -> State:
    if velocity_fields(state):
        raise ValueError(f"DrawVelocities: the State has {velocity_fields(state)} already; drop them first.")
    moved = [
        name
        for name, value in state.fields.items()
        if value.is_floating_point() and state.spaces[name].kind not in ("integer", "mask", "sphere")
    ]
    spaces = {name + VELOCITY: Space("line", state.spaces[name].shape, state.spaces[name].dimension) for name in moved}
    fields = {name + VELOCITY: centred_normal(state[name].detach(), state.spaces[name], run) for name in moved}
    joint = state.with_fields(fields, spaces)
    # Targets do not read velocities, so what they evaluated stays true
    return State(joint.fields, joint.spaces, state.evaluations)


def normal_energy(state: State, names: Sequence[str]) -> Float64[Tensor, " batch"]:
    """Minus the log-density of standard normal fields, normalised on their spaces."""
    total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
    for name in names:
        constant = 0.5 * state.spaces[name].dimension * math.log(2 * math.pi)
        total = total + 0.5 * state[name].double().flatten(1).square().sum(1) + constant
    return total


def _energy(state: State) -> Float64[Tensor, " batch"]:
    return normal_energy(state, velocity_fields(state))


def _without_velocities(state: State) -> State:
    names = velocity_fields(state)
    if not names:
        raise ValueError("DropVelocities: the State has no velocities; put DrawVelocities before it.")
    kept = state.with_fields({}, {}, drop=names)
    return State(kept.fields, kept.spaces, state.evaluations)


class DrawVelocities(Transition):
    """Add to every field x on a line, circle, interval or box a field "x_velocity" ~ N(0, I): r = −log N(v).

    Velocities are in thermal units, v = velocity · √m, so that one density holds whatever the masses are. Underdamped
    steps follow, then `DropVelocities`: together they add u_aux(v_0) − u_aux(v_T) to the log-weight, so that the paths
    are those of the joint density of positions and velocities.

    References:
        Wu, Köhler and Noé, NeurIPS 2020, supplement, "Langevin dynamics with momenta".
    """

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw the velocities."""
        joint = _with_velocities(state, run)
        return joint, _energy(joint)

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Give them up."""
        return _without_velocities(state), -_energy(state)

    def log_ratio(self, before: State, after: State, run: Run) -> Float64[Tensor, " batch"]:
        """The forward ratio of a given pair: that of the velocities of `after`."""
        return _energy(after)


class DropVelocities(Drop):
    """Take the velocities off the State; r = log N(v), the density with which the way back draws them."""

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Give the velocities up."""
        return _without_velocities(state), -_energy(state)

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw them."""
        joint = _with_velocities(state, run)
        return joint, _energy(joint)


def flipped(state: State) -> State:
    """The State with all velocities reversed; evaluations stay."""
    turned = {name: -state[name] for name in velocity_fields(state)}
    return State({**state.fields, **turned}, state.spaces, state.evaluations)
