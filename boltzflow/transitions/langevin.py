"""Overdamped Langevin: the unadjusted step, exactly weighted by its own path ratio."""

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import centred_normal, moved_fields, per_row, positive, squared_norm, wrap
from boltzflow.transitions.transition import Transition

__all__ = ["OverdampedLangevin", "langevin_log_ratio", "langevin_proposal"]


def _drift(state: State, run: Run) -> dict[str, Tensor]:
    # any drift is exactly weighted as long as both directions use the same one: zero where the force is not finite
    force = run.energy_and_force(state)[1]
    return {name: torch.nan_to_num(f, nan=0.0, posinf=0.0, neginf=0.0) for name, f in force.items()}


def langevin_proposal(state: State, step_size: Tensor, run: Run) -> tuple[State, dict[str, Tensor]]:
    """Draw y = x − ε ∇u(x) + √(2ε) n in every moved field.

    Args:
        state: x.
        step_size: ε, a scalar or (batch,).
        run: Gives force and noise.

    Returns:
        y, and the noise n by field.
    """
    force = _drift(state, run)
    moved, noise = {}, {}
    for name in moved_fields(state, run):
        x, space = state[name], state.spaces[name]
        eps = per_row(step_size, x)
        noise[name] = centred_normal(x, space, run)
        moved[name] = wrap(x + eps * force[name] + (2 * eps).sqrt() * noise[name], space)
    return state.replace(**moved), noise


def langevin_log_ratio(
    state: State, proposal: State, noise: dict[str, Tensor], step_size: Tensor, run: Run
) -> Float64[Tensor, " batch"]:
    """Log-ratio log q(y→x) − log q(x→y) of Langevin proposals, from the noise of the forward one.

    The noise of the way back is n' = −n − √(ε/2) (f(x) + f(y)); on a circle it belongs to the same winding.

    Returns:
        (|n|² − |n'|²) / 2, shape (batch,), float64.
    """
    here, there = _drift(state, run), _drift(proposal, run)
    back = {k: n + (per_row(step_size, n) / 2).sqrt() * (here[k] + there[k]) for k, n in noise.items()}
    return 0.5 * (squared_norm(list(noise.values())) - squared_norm(list(back.values())))


class OverdampedLangevin(Transition):
    """One unadjusted Langevin step x → y = x − ε ∇u_λ(x) + √(2ε) n, valid at any ε once weighted.

    Forward and backward kernel are the same, so `reverse` is a step from y. One force evaluation per step of a chain at
    one level. Forces are constants to autograd.

    Args:
        step_size: ε, a number or one per row.
        level: λ on the annealing path.

    References:
        Nilmeier et al., PNAS 108, E1009 (2011); Wu, Köhler and Noé, NeurIPS 2020, section "Langevin dynamics".
    """

    def __init__(self, step_size: float | Tensor, *, level: float = 1.0) -> None:
        super().__init__()
        self.level = level
        self.register_buffer("step_size", positive("step_size", step_size))

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw y and give log p(y→x) − log p(x→y)."""
        with torch.no_grad():
            _, _, state = run.energy_and_force(state.detach())
            moved, noise = langevin_proposal(state, self.step_size, run)
            _, _, moved = run.energy_and_force(moved)
            return moved, langevin_log_ratio(state, moved, noise, self.step_size, run)

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The same kernel from y; its own ratio is minus that of the path x → y."""
        return self.forward(state, run)

    def log_ratio(self, before: State, after: State, run: Run) -> Float64[Tensor, " batch"]:
        """The forward ratio r of a given pair x → y; angles are taken along the shorter way.

        Args:
            before: x.
            after: y.
            run: Gives the forces.

        Returns:
            log p(y→x) − log p(x→y), shape (batch,), float64.
        """
        with torch.no_grad():
            _, _, before = run.energy_and_force(before.detach())
            _, _, after = run.energy_and_force(after.detach())
            force = _drift(before, run)
            noise = {}
            for name in moved_fields(before, run):
                x, y = before[name], after[name]
                eps = per_row(self.step_size, x)
                noise[name] = (wrap(y - x, before.spaces[name]) - eps * force[name]) / (2 * eps).sqrt()
            return langevin_log_ratio(before, after, noise, self.step_size, run)
