"""RotationHMC: Hamiltonian Monte Carlo that solves the motion in a normal density exactly, for many dimensions."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.langevin import drift
from boltzflow.transitions.leapfrog import kinetic_energy, thermal_velocities
from boltzflow.transitions.metropolis import MetropolisKernel, moved_fields
from boltzflow.transitions.step_size import Stepped, at_least_one, per_row, positive

__all__ = ["RotationHMC"]


class RotationHMC(MetropolisKernel, Stepped):
    """HMC whose trajectories turn in phase space, as they do in N(0, s²), with kicks by what the density has besides.

    With u(x) = |x|²/(2 s²) + Φ(x) positions and velocities of variance s² rotate into each other by the angle of the
    step, exactly; half a kick by −s² ∇Φ stands before and behind. Energies are then lost by Φ alone. Where that is
    smooth, as in the latent coordinates of a flow or for the noise of flow perturbation, steps need not shrink with the
    dimension as those of leapfrog do. An angle of π/2 in all forgets where it started. Any s is exact.

    A step costs one force evaluation. Fields on lines only.

    Args:
        step_size: Angle of a step, in rad; a number or one per row.
        n_rotations: Steps per trajectory.
        n_steps: Trajectories per call.
        scales: s by field, a number; 1 for fields not named.
        level: λ on the annealing path.

    Raises:
        ValueError: If numbers are not positive, or a field does not live on a line.

    References:
        Beskos, Pinski, Sanz-Serna and Stuart, Stoch. Process. Appl. 121, 2201 (2011), the integrator of section 4.

    Example:
        >>> from boltzflow.generators import annealed_importance
        >>> from boltzflow.targets import DoubleWell, Gaussian
        >>> kernel = RotationHMC(0.3, n_rotations=3)
        >>> ensemble = annealed_importance(Gaussian(2), kernel, [0.5, 1.0]).sample(200, DoubleWell(), seed=1)
        >>> len(ensemble)
        200
    """

    target_acceptance: ClassVar[float] = 0.75
    needs_force: ClassVar[bool] = True

    def __init__(
        self,
        step_size: float | Tensor,
        *,
        n_rotations: int = 1,
        n_steps: int = 1,
        scales: Mapping[str, float] | None = None,
        level: float = 1.0,
    ) -> None:
        super().__init__(n_steps=n_steps, level=level)
        self.n_rotations = at_least_one("RotationHMC n_rotations", n_rotations)
        self.scales = {name: float(positive(f"RotationHMC scales[{name!r}]", s)) for name, s in (scales or {}).items()}
        self.register_step_size(step_size, learnable=False)

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """One trajectory; the odds are those of the total energy."""
        names = moved_fields(state, run)
        curved = [name for name in names if state.spaces[name].kind != "line"]
        if curved:
            raise ValueError(
                f"RotationHMC: field {curved[0]!r} lives on {state.spaces[curved[0]].kind!r}, expected line; take HMC."
            )
        before, _, state = run.energy_and_force(state)
        variance = {name: self.scales.get(name, 1.0) ** 2 for name in names}
        mass = {name: torch.full_like(state[name][0], 1.0 / variance[name]) for name in names}
        velocity = thermal_velocities(state, mass, run)
        kinetic, after = kinetic_energy(velocity, mass), before
        angle = {name: per_row(self.current_step_size(), state[name]) for name in names}
        velocity = _kicked(state, velocity, angle, variance, run)
        for k in range(self.n_rotations):
            x, cos, sin = state, {n: a.cos() for n, a in angle.items()}, {n: a.sin() for n, a in angle.items()}
            state = x.replace(**{n: x[n] * cos[n] + velocity[n] * sin[n] for n in names})
            velocity = {n: velocity[n] * cos[n] - x[n] * sin[n] for n in names}
            after, _, state = run.energy_and_force(state)
            # two half kicks between rotations
            for _ in range(1 if k == self.n_rotations - 1 else 2):
                velocity = _kicked(state, velocity, angle, variance, run)
        return state, before - after + kinetic - kinetic_energy(velocity, mass)

    def extra_repr(self) -> str:
        """Trajectories and scales."""
        return f"n_rotations={self.n_rotations}, n_steps={self.n_steps}, scales={self.scales}"


def _kicked(
    state: State,
    velocity: Mapping[str, Tensor],
    angle: Mapping[str, Tensor],
    variance: Mapping[str, float],
    run: Run,
) -> dict[str, Tensor]:
    """Half a kick by −s² ∇Φ = s² f + x."""
    force = drift(state, run)
    return {n: v + 0.5 * angle[n] * (variance[n] * force[n] + state[n]) for n, v in velocity.items()}
