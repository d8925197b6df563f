"""Steepest descent with capped steps: takes the clashes out of a start."""

import torch

from boltzflow.errors import NonFiniteEnergyError
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.targets.target import Target

__all__ = ["relax"]

MAX_ROUNDS = 20
STEEP = 1.0
"""kT that a row must have lost per step of a round for another one."""


def relax(target: Target, state: State, run: Run, *, n_steps: int = 100, max_step: float = 0.005) -> State:
    """Lower the energy of every row by steepest descent; no row ever goes up.

    The largest displacement of a step is at most `max_step`; it grows by 1.2 after success and halves after failure.
    As long as a row falls by more than 1 kT per step, because particles overlap, another round follows, up to 20: from
    there no move of a sampler would be accepted.

    Args:
        target: Whose energy falls.
        state: Start.
        run: Gives context and ledger; no noise is drawn.
        n_steps: Steps of a round, an evaluation of forces each.
        max_step: Cap of every coordinate's displacement in the unit of the fields (nm for molecules).

    Raises:
        NonFiniteEnergyError: If an energy is not finite in the end.
    """
    energy, force, state = run.evaluate_with_force(target, state)
    length = torch.full_like(energy, max_step)
    for _ in range(MAX_ROUNDS):
        before = energy
        for _ in range(n_steps):
            largest = torch.stack([f.double().flatten(1).abs().amax(1) for f in force.values()]).amax(0)
            scale = torch.nan_to_num(length / largest.clamp(min=1e-300))
            moved = {
                name: state[name] + scale.to(f.dtype).reshape(-1, *[1] * (f.ndim - 1)) * f for name, f in force.items()
            }
            lower, _, trial = run.evaluate_with_force(target, state.replace(**moved))
            accept = lower < energy
            length = torch.where(accept, (1.2 * length).clamp(max=max_step), 0.5 * length)
            state = trial.where(accept, state)
            energy, force, state = run.evaluate_with_force(target, state)
        if not bool((before - energy > STEEP * n_steps).any()):
            break
    bad = ~torch.isfinite(energy)
    if bool(bad.any()):
        raise NonFiniteEnergyError(
            f"Start of the simulation of {target.name}: {int(bad.sum())} of {len(state)} rows have a non-finite energy "
            f"after relaxation in rounds of {n_steps} steps; give a start inside the support of the target."
        )
    return state
