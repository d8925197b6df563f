"""Unadjusted HMC: a leapfrog trajectory with fresh momenta, weighted instead of accepted or rejected."""

from collections.abc import Mapping

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.leapfrog import Massive, kinetic_energy, leapfrog, thermal_velocities
from boltzflow.transitions.metropolis import moved_fields
from boltzflow.transitions.step_size import at_least_one, tracks

__all__ = ["UnadjustedHMC"]


class UnadjustedHMC(Massive):
    """Momenta p drawn fresh, leapfrog to p', momenta discarded: r = ½|p|²/m − ½|p'|²/m, valid at any step size.

    Leapfrog is reversible and preserves volume, so the way back from y has the density of −p' at it; `reverse` is the
    same kernel. Nothing is rejected, so that gradients through the path are those of the expectation.

    Args:
        step_size: Leapfrog step, a number or one per row, in units as in `HMC`.
        n_leapfrog: Leapfrog steps per trajectory, one force evaluation each.
        n_steps: Trajectories per call.
        masses: By field, a positive tensor that broadcasts to the field's event shape; 1 for fields not named.
        learnable: Whether the step size and the masses that are given are parameters; their gradients take second
            derivatives of the energy.
        level: λ on the annealing path.

    References:
        Duane et al., Phys. Lett. B 195, 216 (1987); Nilmeier et al., PNAS 108, E1009 (2011), for the weight.
    """

    def __init__(
        self,
        step_size: float | Tensor,
        *,
        n_leapfrog: int = 1,
        n_steps: int = 1,
        masses: Mapping[str, Tensor] | None = None,
        learnable: bool = False,
        level: float = 1.0,
    ) -> None:
        super().__init__()
        self.level = level
        self.n_leapfrog = at_least_one("UnadjustedHMC n_leapfrog", n_leapfrog)
        self.n_steps = at_least_one("UnadjustedHMC n_steps", n_steps)
        self.register_step_size(step_size, learnable=learnable)
        self.register_masses(masses, learnable=learnable)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw y and give the kinetic energy lost on the way, summed over the trajectories."""
        tracked = tracks(self, state, run)
        with torch.set_grad_enabled(tracked):
            _, _, state = run.energy_and_force(state if tracked else state.detach())
            mass = {name: self.mass(name, state[name]) for name in moved_fields(state, run)}
            total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
            for _ in range(self.n_steps):
                velocity = thermal_velocities(state, mass, run)
                state, after, _ = leapfrog(
                    state,
                    velocity,
                    step_size=self.current_step_size(),
                    mass=mass,
                    n_steps=self.n_leapfrog,
                    run=run,
                )
                total = total + kinetic_energy(velocity, mass) - kinetic_energy(after, mass)
            return state, total

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The same kernel from y; its own ratio is minus that of the path x → y."""
        return self.forward(state, run)
