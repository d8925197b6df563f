"""HMC: Metropolised leapfrog trajectories with fresh momenta."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.metropolis import (
    MetropolisKernel,
    moved_fields,
    moves_centre,
    per_row,
    positive,
    squared_norm,
    wrap,
)

__all__ = ["HMC"]


class HMC(MetropolisKernel):
    """Hamiltonian Monte Carlo: momenta drawn fresh, leapfrog, Metropolis test on the total energy, momenta discarded.

    Time is in reduced units: with x in nm and masses m in any unit the velocity has variance 1/m and the step is in
    nm·√m. Masses change no ensemble average, only how fast it is sampled. A leapfrog step costs one force evaluation.
    Where the space of an (n, D) field excludes translations the centre of mass stays where it is.

    Args:
        step_size: Leapfrog step, a number or one per row.
        n_leapfrog: Leapfrog steps per trajectory.
        n_steps: Trajectories per call.
        masses: By field, a positive tensor that broadcasts to the field's event shape; 1 for fields not named.
        level: λ on the annealing path.

    References:
        Duane et al., Phys. Lett. B 195, 216 (1987); Neal, Handbook of MCMC, ch. 5 (2011).
    """

    target_acceptance: ClassVar[float] = 0.75
    needs_force: ClassVar[bool] = True

    def __init__(
        self,
        step_size: float | Tensor,
        *,
        n_leapfrog: int,
        n_steps: int = 1,
        masses: Mapping[str, Tensor] | None = None,
        level: float = 1.0,
    ) -> None:
        super().__init__(n_steps=n_steps, level=level)
        if n_leapfrog < 1:
            raise ValueError(f"HMC n_leapfrog: expected at least 1, got {n_leapfrog}.")
        self.n_leapfrog = n_leapfrog
        self.register_buffer("step_size", positive("step_size", step_size))
        self._massive = tuple(masses or ())
        for name, mass in (masses or {}).items():
            if not bool((torch.isfinite(mass) & (mass > 0)).all()):
                raise ValueError(f"HMC masses[{name!r}]: expected positive finite values, got {mass}.")
            self.register_buffer(f"_mass_{name}", mass.clone())

    def _mass(self, name: str, x: Tensor) -> Tensor:
        mass = getattr(self, f"_mass_{name}") if name in self._massive else torch.ones((), device=x.device)
        return mass.to(x.dtype).expand(x.shape[1:])

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """One trajectory; the odds are those of the total energy."""
        before, force, _ = run.energy_and_force(state)
        names = moved_fields(state, run)
        mass = {n: self._mass(n, state[n]) for n in names}
        eps = {n: per_row(self.step_size, state[n]) for n in names}
        velocity = {}
        for n in names:
            v = run.normal(state[n]) / mass[n].sqrt()
            if not moves_centre(state.spaces[n]):
                v = v - (mass[n] * v).sum(-2, keepdim=True) / mass[n].sum(-2, keepdim=True)
            velocity[n] = v
        kinetic = 0.5 * squared_norm([velocity[n] * mass[n].sqrt() for n in names])
        velocity = {n: velocity[n] + 0.5 * eps[n] * force[n] / mass[n] for n in names}
        proposal = state
        for i in range(self.n_leapfrog):
            proposal = proposal.replace(**{n: proposal[n] + eps[n] * velocity[n] for n in names})
            after, force, proposal = run.energy_and_force(proposal)
            kick = 1.0 if i < self.n_leapfrog - 1 else 0.5
            velocity = {n: velocity[n] + kick * eps[n] * force[n] / mass[n] for n in names}
        kinetic_after = 0.5 * squared_norm([velocity[n] * mass[n].sqrt() for n in names])
        return self._wrapped(proposal, names), before - after + kinetic - kinetic_after

    @staticmethod
    def _wrapped(proposal: State, names: tuple[str, ...]) -> State:
        if not any(proposal.spaces[n].kind == "circle" for n in names):
            return proposal
        # the energy of an angle does not change by whole turns, so the evaluations stay
        turned = {n: wrap(proposal[n], proposal.spaces[n]) for n in names}
        return State({**proposal.fields, **turned}, proposal.spaces, proposal.evaluations)
