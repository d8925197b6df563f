"""HMC: Metropolised leapfrog trajectories with fresh momenta."""

from collections.abc import Mapping
from typing import ClassVar

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.leapfrog import Massive, kinetic_energy, leapfrog, thermal_velocities
from boltzflow.transitions.metropolis import MetropolisKernel, moved_fields

__all__ = ["HMC"]


class HMC(MetropolisKernel, Massive):
    """Hamiltonian Monte Carlo: momenta drawn fresh, leapfrog, Metropolis test on the total energy, momenta discarded.

    Time is in reduced units: with x in nm and masses m in any unit the velocity has variance 1/m and the step is in
    nm·√m. Masses change no ensemble average, only how fast it is sampled. A leapfrog step costs one force evaluation.
    Where the space of an (n, D) field excludes translations the centre of mass stays where it is.

    Args:
        step_size: Leapfrog step, a number or one per row.
        n_leapfrog: Leapfrog steps per trajectory.
        n_steps: Trajectories per call.
        masses: By field, a positive tensor that broadcasts to the field's event shape; 1 for fields not named.
        learnable: Whether the step size and the masses that are given are parameters; their gradients take second
            derivatives of the energy.
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
        learnable: bool = False,
        level: float = 1.0,
    ) -> None:
        super().__init__(n_steps=n_steps, level=level)
        if n_leapfrog < 1:
            raise ValueError(f"HMC n_leapfrog: expected at least 1, got {n_leapfrog}.")
        self.n_leapfrog = n_leapfrog
        self.register_step_size(step_size, learnable=learnable)
        self.register_masses(masses, learnable=learnable)

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """One trajectory; the odds are those of the total energy."""
        before, _, state = run.energy_and_force(state)
        mass = {n: self.mass(n, state[n]) for n in moved_fields(state, run)}
        velocity = thermal_velocities(state, mass, run)
        kinetic = kinetic_energy(velocity, mass)
        proposal, velocity, after = leapfrog(
            state,
            velocity,
            step_size=self.current_step_size(),
            mass=mass,
            n_steps=self.n_leapfrog,
            run=run,
        )
        return proposal, before - after + kinetic - kinetic_energy(velocity, mass)
