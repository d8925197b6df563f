"""Leapfrog trajectories: masses that are given or learned, thermal velocities, and the integrator."""

from collections.abc import Mapping

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.langevin import drift
from boltzflow.transitions.metropolis import moves_centre, squared_norm, wrap
from boltzflow.transitions.step_size import Stepped, per_row

__all__ = ["Massive", "kinetic_energy", "leapfrog", "thermal_velocities"]


class Massive(Stepped):
    """A Transition with a step size and masses, 1 for fields that are not named."""

    def register_masses(self, masses: Mapping[str, Tensor] | None, *, learnable: bool) -> None:
        """Declare the masses.

        Args:
            masses: By field, a positive tensor that broadcasts to the field's event shape.
            learnable: Whether the logarithm of a factor on every one of them is a parameter, 0 before training.

        Raises:
            ValueError: If a mass is not positive and finite.
        """
        self._massive = tuple(masses or ())
        for name, mass in (masses or {}).items():
            if not bool((torch.isfinite(mass) & (mass > 0)).all()):
                raise ValueError(
                    f"{type(self).__name__} masses[{name!r}]: expected positive finite values, got {mass}."
                )
            self.register_buffer(f"_mass_{name}", mass.clone())
            factor = torch.nn.Parameter(torch.zeros_like(mass)) if learnable else None
            self.register_parameter(f"_log_mass_factor_{name}", factor)

    def mass(self, name: str, like: Tensor) -> Tensor:
        """Masses of a field, with what was learned of them: its event shape, in the dtype of `like`."""
        if name not in self._massive:
            return torch.ones((), dtype=like.dtype, device=like.device).expand(like.shape[1:])
        mass, factor = getattr(self, f"_mass_{name}"), getattr(self, f"_log_mass_factor_{name}")
        mass = mass if factor is None else mass * factor.exp()
        return mass.to(like.dtype).expand(like.shape[1:])


def thermal_velocities(state: State, mass: Mapping[str, Tensor], run: Run) -> dict[str, Tensor]:
    """Velocities of variance 1/m by field; without a mean momentum where the space excludes translations."""
    velocity = {}
    for name, m in mass.items():
        v = run.normal(state[name]) / m.sqrt()
        if not moves_centre(state.spaces[name]):
            v = v - (m * v).sum(-2, keepdim=True) / m.sum(-2, keepdim=True)
        velocity[name] = v
    return velocity


def kinetic_energy(velocity: Mapping[str, Tensor], mass: Mapping[str, Tensor]) -> Float64[Tensor, " batch"]:
    """½ Σ m v², (batch,), float64."""
    return 0.5 * squared_norm([v * mass[name].sqrt() for name, v in velocity.items()])


def leapfrog(
    state: State,
    velocity: Mapping[str, Tensor],
    *,
    step_size: Tensor,
    mass: Mapping[str, Tensor],
    n_steps: int,
    run: Run,
) -> tuple[State, dict[str, Tensor], Float64[Tensor, " batch"]]:
    """Integrate: reversible and volume preserving, whatever the force is; where it is not finite it is taken as zero.

    Args:
        state: Where it starts.
        velocity: By field.
        step_size: A scalar or (batch,).
        mass: By field, of its event shape.
        n_steps: Leapfrog steps, one force evaluation each.
        run: Gives the forces.

    Returns:
        The end, with its energy and force evaluated and angles wrapped; its velocities; its energy.
    """
    eps = {name: per_row(step_size, v) for name, v in velocity.items()}
    force = drift(state, run)
    velocity = {name: v + 0.5 * eps[name] * force[name] / mass[name] for name, v in velocity.items()}
    for i in range(n_steps):
        state = state.replace(**{name: state[name] + eps[name] * v for name, v in velocity.items()})
        energy, _, state = run.energy_and_force(state)
        force = drift(state, run)
        kick = 1.0 if i < n_steps - 1 else 0.5
        velocity = {name: v + kick * eps[name] * force[name] / mass[name] for name, v in velocity.items()}
    return _wrapped(state, tuple(velocity)), velocity, energy


def _wrapped(state: State, names: tuple[str, ...]) -> State:
    if not any(state.spaces[n].kind == "circle" for n in names):
        return state
    # the energy of an angle does not change by whole turns, so the evaluations stay
    turned = {n: wrap(state[n], state.spaces[n]) for n in names}
    return State({**state.fields, **turned}, state.spaces, state.evaluations)
