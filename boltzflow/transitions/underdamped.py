"""Underdamped Langevin on positions and velocities: BBK, BAOAB and OBABO, weighted by their own path ratios."""

import abc
from collections.abc import Mapping

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.langevin import drift
from boltzflow.transitions.leapfrog import Massive
from boltzflow.transitions.metropolis import centred_normal, moved_fields, moves_centre, squared_norm, wrap
from boltzflow.transitions.step_size import at_least_one, per_row, positive, require_one_step, tracks
from boltzflow.transitions.velocities import VELOCITY, flipped

__all__ = ["BAOAB", "BBK", "OBABO", "UnderdampedLangevin"]


class UnderdampedLangevin(Massive):
    """Steps of underdamped Langevin dynamics at one level, between `DrawVelocities` and `DropVelocities`.

    The way back flips the velocities, makes the same steps, and flips them again; r compares the noise of both ways, so
    the weight is exact at any step size. Shadow work, by which the integrator misses exp(−u − ½|v|²), is in it:
    −r is the heat, and Δu + Δ½|v|² − (−r) the work that a perfect integrator would not have done. Velocities are in
    thermal units (variance 1). A step costs one force evaluation.

    Args:
        step_size: Time step, a number or one per row, in units as in `HMC`.
        friction: γ, per unit of time.
        n_steps: Steps per call.
        masses: By field, a positive tensor that broadcasts to the field's event shape; 1 for fields not named.
        learnable: Whether the step size, the friction and the masses that are given are parameters; their gradients
            take second derivatives of the energy.
        level: λ on the annealing path.

    References:
        Nilmeier et al., PNAS 108, E1009 (2011); Sivak, Chodera and Crooks, Phys. Rev. X 3, 011007 (2013), for shadow
        work.
    """

    def __init__(
        self,
        step_size: float | Tensor,
        *,
        friction: float,
        n_steps: int = 1,
        masses: Mapping[str, Tensor] | None = None,
        learnable: bool = False,
        level: float = 1.0,
    ) -> None:
        super().__init__()
        self.level, self.n_steps = level, at_least_one(f"{type(self).__name__} n_steps", n_steps)
        self.register_step_size(step_size, learnable=learnable)
        self.register_masses(masses, learnable=learnable)
        self.register_buffer("friction", positive("friction", friction))
        factor = torch.nn.Parameter(torch.zeros((), dtype=torch.float64)) if learnable else None
        self.register_parameter("log_friction_factor", factor)

    def current_friction(self) -> Tensor:
        """γ with what was learned of it."""
        return self.friction if self.log_friction_factor is None else self.friction * self.log_friction_factor.exp()

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Make the steps; r is the sum of theirs."""
        tracked = tracks(self, state, run)
        with torch.set_grad_enabled(tracked):
            _, _, state = run.energy_and_force(state if tracked else state.detach())
            scale = self._scales(state, run)
            total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
            for _ in range(self.n_steps):
                state, ratio = self.step(state, scale, run)
                total = total + ratio
            return state, total

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Flip, step, flip: the ratio of these steps is minus that of the path x → y."""
        moved, ratio = self.forward(flipped(state), run)
        return flipped(moved), ratio

    def log_ratio(self, before: State, after: State, run: Run) -> Float64[Tensor, " batch"]:
        """The forward ratio r of one given step (x, v) → (x', v'); angles are taken along the shorter way.

        Raises:
            ValueError: If the Transition makes several steps: what lies between is not in the pair.
        """
        require_one_step(self, self.n_steps)
        tracked = tracks(self, before, run) or tracks(self, after, run)
        with torch.set_grad_enabled(tracked):
            _, _, before = run.energy_and_force(before if tracked else before.detach())
            _, _, after = run.energy_and_force(after if tracked else after.detach())
            return self.ratio_of(before, after, self._scales(before, run), run)

    @abc.abstractmethod
    def step(self, state: State, scale: Mapping[str, Tensor], run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """One step from an evaluated State, and its ratio.

        Args:
            state: With velocities, energies and forces.
            scale: By moved field 1/√m, by which thermal velocities move it and forces kick them.
            run: Gives forces and noise.
        """

    @abc.abstractmethod
    def ratio_of(self, before: State, after: State, scale: Mapping[str, Tensor], run: Run) -> Float64[Tensor, " batch"]:
        """The ratio of one given step between evaluated States."""

    def _scales(self, state: State, run: Run) -> dict[str, Tensor]:
        names = moved_fields(state, run)
        scales = {}
        for name in names:
            if name + VELOCITY not in state:
                raise ValueError(
                    f"{type(self).__name__}: field {name!r} has no velocities; put DrawVelocities before the "
                    "underdamped steps and DropVelocities after them."
                )
            mass = self.mass(name, state[name])
            if not moves_centre(state.spaces[name]) and bool((mass != mass[:1]).any()):
                raise ValueError(
                    f"{type(self).__name__} masses[{name!r}]: the field has no translations, which unequal masses "
                    "would move; give all particles one mass, or use HMC or UnadjustedHMC."
                )
            scales[name] = mass.rsqrt()
        return scales

    def _kick(self, state: State, scale: Mapping[str, Tensor], run: Run, share: float) -> dict[str, Tensor]:
        """Change of the velocities by the force over a share of the time step."""
        force = drift(state, run)
        return {n: share * per_row(self.current_step_size(), force[n]) * s * force[n] for n, s in scale.items()}

    def _drift(self, state: State, velocity: Mapping[str, Tensor], scale: Mapping[str, Tensor], run: Run) -> State:
        """The State with fields moved by velocities over the time step, evaluated, with those velocities."""
        moved = {}
        for name, v in velocity.items():
            x = state[name]
            moved[name] = wrap(x + per_row(self.current_step_size(), x) * scale[name] * v, state.spaces[name])
            moved[name + VELOCITY] = v
        return run.energy_and_force(state.replace(**moved))[-1]

    def _middle(self, before: State, after: State, scale: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Velocity of the drift between two States of one step."""
        step_size = self.current_step_size()
        return {
            n: wrap(after[n] - before[n], before.spaces[n]) / (per_row(step_size, before[n]) * s)
            for n, s in scale.items()
        }

    def _noise(self, state: State, names: Mapping[str, Tensor], run: Run) -> dict[str, Tensor]:
        return {name: centred_normal(state[name].detach(), state.spaces[name], run) for name in names}


def _velocities(state: State, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name + VELOCITY] for name in names}


def _with(state: State, velocity: Mapping[str, Tensor]) -> State:
    # Targets do not read velocities, so what they evaluated stays true
    fields = {name + VELOCITY: v for name, v in velocity.items()}
    return State({**state.fields, **fields}, state.spaces, state.evaluations)


def _add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: a[name] + b[name] for name in a}


def _gain(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Float64[Tensor, " batch"]:
    """Kinetic energy gained."""
    return 0.5 * (squared_norm(list(after.values())) - squared_norm(list(before.values())))


class _Splitting(UnderdampedLangevin):
    """Splittings into kicks (B), drifts (A) and exact Ornstein-Uhlenbeck steps (O): only O has a ratio.

    O maps (v, n) to (v', n') = (a v + s n, a n − s v) with a² + s² = 1, a rotation, where n' is the noise that leads
    back under flipped velocities: r = ½(|n|² − |n'|²) = ½(|v'|² − |v|²), the kinetic energy that the bath gave.
    """

    def _thermostat(
        self, state: State, velocity: Mapping[str, Tensor], run: Run, share: float
    ) -> tuple[dict[str, Tensor], Float64[Tensor, " batch"]]:
        """O over a share of the time step, and its ratio."""
        noise, moved = self._noise(state, velocity, run), {}
        exponent = -share * self.current_friction() * self.current_step_size()
        for name, v in velocity.items():
            keep, spread = per_row(exponent.exp(), v), per_row((-torch.expm1(2 * exponent)).sqrt(), v)
            moved[name] = keep * v + spread * noise[name]
        return moved, _gain(velocity, moved)


class BAOAB(_Splitting):
    """Kick, drift, thermostat, drift, kick: the splitting whose configurations are most accurate at large steps.

    References:
        Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34 (2013).
    """

    def step(self, state: State, scale: Mapping[str, Tensor], run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """One step, and the kinetic energy that the bath gave in its middle."""
        velocity = _add(_velocities(state, scale), self._kick(state, scale, run, 0.5))
        after, ratio = self._thermostat(state, velocity, run, 1.0)
        halves = {name: 0.5 * (velocity[name] + after[name]) for name in scale}
        moved = self._drift(state, halves, scale, run)
        return _with(moved, _add(after, self._kick(moved, scale, run, 0.5))), ratio

    def ratio_of(self, before: State, after: State, scale: Mapping[str, Tensor], run: Run) -> Float64[Tensor, " batch"]:
        """From the velocities on both sides of the thermostat."""
        start = _add(_velocities(before, scale), self._kick(before, scale, run, 0.5))
        end = _add(_velocities(after, scale), self._kick(after, scale, run, -0.5))
        return _gain(start, end)


class OBABO(_Splitting):
    """Thermostat, kick, drift, kick, thermostat: a leapfrog step between two halves of the bath.

    References:
        Bussi and Parrinello, Phys. Rev. E 75, 056707 (2007).
    """

    def step(self, state: State, scale: Mapping[str, Tensor], run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """One step, and the kinetic energy that the bath gave at its ends."""
        velocity, first = self._thermostat(state, _velocities(state, scale), run, 0.5)
        velocity = _add(velocity, self._kick(state, scale, run, 0.5))
        moved = self._drift(state, velocity, scale, run)
        velocity = _add(velocity, self._kick(moved, scale, run, 0.5))
        velocity, last = self._thermostat(moved, velocity, run, 0.5)
        return _with(moved, velocity), first + last

    def ratio_of(self, before: State, after: State, scale: Mapping[str, Tensor], run: Run) -> Float64[Tensor, " batch"]:
        """From the velocity of the drift, which the distance gives, and the kicks about it."""
        middle = self._middle(before, after, scale)
        start = _add(middle, self._kick(before, scale, run, -0.5))
        end = _add(middle, self._kick(after, scale, run, 0.5))
        return _gain(_velocities(before, scale), start) + _gain(end, _velocities(after, scale))


class BBK(UnderdampedLangevin):
    """Brünger-Brooks-Karplus: half a step explicit in the friction, drift, half a step implicit in it.

    With c = γ Δt/2 ≤ 1 (beyond, it is weighted exactly as well, but heats):

        v½ = (1 − c) v + ½Δt f(x) + √(2c) n₁,    x' = x + Δt v½,    (1 + c) v' = v½ + ½Δt f(x') + √(2c) n₂

    The noise that leads back under flipped velocities is n₂ − √(2c) v' and n₁ − √(2c) v.

    References:
        Brünger, Brooks and Karplus, Chem. Phys. Lett. 105, 495 (1984); Nilmeier et al. (2011), supplement, for the
        ratio.
    """

    def step(self, state: State, scale: Mapping[str, Tensor], run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """One step with its ratio ½(|n₁|² + |n₂|² − |n₁'|² − |n₂'|²)."""
        c, root = self._friction_terms(state, scale)
        start, first, second = _velocities(state, scale), self._noise(state, scale, run), self._noise(state, scale, run)
        kick = self._kick(state, scale, run, 0.5)
        middle = {n: (1 - c[n]) * start[n] + kick[n] + root[n] * first[n] for n in scale}
        moved = self._drift(state, middle, scale, run)
        kick = self._kick(moved, scale, run, 0.5)
        end = {n: (middle[n] + kick[n] + root[n] * second[n]) / (1 + c[n]) for n in scale}
        return _with(moved, end), self._ratio(start, first, end, second, root)

    def ratio_of(self, before: State, after: State, scale: Mapping[str, Tensor], run: Run) -> Float64[Tensor, " batch"]:
        """From the noise, which the distance and the velocities give."""
        c, root = self._friction_terms(before, scale)
        start, end, middle = _velocities(before, scale), _velocities(after, scale), self._middle(before, after, scale)
        kick, kick_after = self._kick(before, scale, run, 0.5), self._kick(after, scale, run, 0.5)
        first = {n: (middle[n] - (1 - c[n]) * start[n] - kick[n]) / root[n] for n in scale}
        second = {n: ((1 + c[n]) * end[n] - middle[n] - kick_after[n]) / root[n] for n in scale}
        return self._ratio(start, first, end, second, root)

    def _friction_terms(self, state: State, scale: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        c = 0.5 * self.current_friction() * self.current_step_size()
        return {n: per_row(c, state[n]) for n in scale}, {n: per_row((2 * c).sqrt(), state[n]) for n in scale}

    @staticmethod
    def _ratio(
        start: Mapping[str, Tensor],
        first: Mapping[str, Tensor],
        end: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        root: Mapping[str, Tensor],
    ) -> Float64[Tensor, " batch"]:
        back = [second[n] - root[n] * end[n] for n in root] + [first[n] - root[n] * start[n] for n in root]
        return 0.5 * (squared_norm([*first.values(), *second.values()]) - squared_norm(back))
