"""Overdamped Langevin: the unadjusted step, exactly weighted by its own path ratio."""

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import centred_normal, moved_fields, squared_norm, wrap
from boltzflow.transitions.step_size import Stepped, at_least_one, per_row, require_one_step, tracks

__all__ = ["OverdampedLangevin", "drift", "langevin_log_ratio", "langevin_proposal"]


def drift(state: State, run: Run) -> dict[str, Tensor]:
    """Force by field, zero where it is not finite: any drift is weighted exactly if both directions use the same."""
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
    force = drift(state, run)
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
    here, there = drift(state, run), drift(proposal, run)
    back = {k: n + (per_row(step_size, n) / 2).sqrt() * (here[k] + there[k]) for k, n in noise.items()}
    return 0.5 * (squared_norm(list(noise.values())) - squared_norm(list(back.values())))


class OverdampedLangevin(Stepped):
    """Unadjusted Langevin steps x → y = x − ε ∇u_λ(x) + √(2ε) n, valid at any ε once weighted.

    Forward and backward kernel are the same, so `reverse` is a step from y. One force evaluation per step of a chain at
    one level.

    Args:
        step_size: ε, a number or one per row.
        n_steps: Steps per call.
        learnable: Whether the step size is a parameter; its gradient takes second derivatives of the energy.
        level: λ on the annealing path.

    References:
        Nilmeier et al., PNAS 108, E1009 (2011); Wu, Köhler and Noé, NeurIPS 2020, section "Langevin dynamics".
    """

    def __init__(
        self, step_size: float | Tensor, *, n_steps: int = 1, learnable: bool = False, level: float = 1.0
    ) -> None:
        super().__init__()
        self.level, self.n_steps = level, at_least_one("OverdampedLangevin n_steps", n_steps)
        self.register_step_size(step_size, learnable=learnable)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw y and give log p(y→x) − log p(x→y), summed over the steps."""
        tracked = tracks(self, state, run)
        with torch.set_grad_enabled(tracked):
            step_size = self.current_step_size()
            _, _, state = run.energy_and_force(state if tracked else state.detach())
            total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
            for _ in range(self.n_steps):
                moved, noise = langevin_proposal(state, step_size, run)
                _, _, moved = run.energy_and_force(moved)
                total = total + langevin_log_ratio(state, moved, noise, step_size, run)
                state = moved
            return state, total

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The same kernel from y; its own ratio is minus that of the path x → y."""
        return self.forward(state, run)

    def log_ratio(self, before: State, after: State, run: Run) -> Float64[Tensor, " batch"]:
        """The forward ratio r of one given step x → y; angles are taken along the shorter way.

        Args:
            before: x.
            after: y.
            run: Gives the forces.

        Returns:
            log p(y→x) − log p(x→y), shape (batch,), float64.

        Raises:
            ValueError: If the Transition makes several steps: what lies between is not in the pair.
        """
        require_one_step(self, self.n_steps)
        tracked = tracks(self, before, run) or tracks(self, after, run)
        with torch.set_grad_enabled(tracked):
            step_size = self.current_step_size()
            _, _, before = run.energy_and_force(before if tracked else before.detach())
            _, _, after = run.energy_and_force(after if tracked else after.detach())
            force = drift(before, run)
            noise = {}
            for name in moved_fields(before, run):
                x, y = before[name], after[name]
                eps = per_row(step_size, x)
                noise[name] = (wrap(y - x, before.spaces[name]) - eps * force[name]) / (2 * eps).sqrt()
            return langevin_log_ratio(before, after, noise, step_size, run)
