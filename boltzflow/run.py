"""Run: what a Transition is handed at call time: random stream, context, energy of its level, evaluation ledger."""

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from boltzflow._typing import Tensor
from boltzflow.state import Evaluation, Space, State

__all__ = ["Context", "Ledger", "Run", "make_rng", "new_seed"]

Context = Mapping[str, Any]


@runtime_checkable
class EnergyModel(Protocol):
    """What `Run` and Transitions need of a Target: its name and fields, energies, forces."""

    name: str
    fields: Mapping[str, Space]

    def reduced_energy(self, state: State, context: Context | None = None) -> Tensor: ...

    def energy_and_force(self, state: State, context: Context | None = None) -> tuple[Tensor, dict[str, Tensor]]: ...


@runtime_checkable
class Level(Protocol):
    """Energy at one level of an annealing path: a weighted sum over leaf Targets."""

    terms: tuple[tuple[float | Tensor, EnergyModel], ...]

    def energy(self, state: State, run: "Run") -> tuple[Tensor, State]: ...

    def energy_and_force(self, state: State, run: "Run") -> tuple[Tensor, dict[str, Tensor], State]: ...


@dataclass
class Ledger:
    """Counts of energy and force evaluations by leaf Target, and of rows with non-finite energies.

    One evaluation of energy and force together counts one of each.
    """

    energies: Counter = field(default_factory=Counter)
    forces: Counter = field(default_factory=Counter)
    nonfinite: Counter = field(default_factory=Counter)

    def count(self, name: str, *, energy: int = 0, force: int = 0, nonfinite: int | Tensor = 0) -> None:
        """Add evaluations of a Target; a non-finite count may stay a tensor on the device until it is read."""
        self.energies[name] += energy
        self.forces[name] += force
        self.nonfinite[name] = self.nonfinite[name] + nonfinite

    def n_energy(self, name: str | None = None) -> int:
        """Energy evaluations of one Target, or of all."""
        return int(self.energies[name] if name is not None else sum(self.energies.values()))

    def n_force(self, name: str | None = None) -> int:
        """Force evaluations of one Target, or of all."""
        return int(self.forces[name] if name is not None else sum(self.forces.values()))

    def merge(self, other: "Ledger") -> None:
        """Add the counts of another ledger."""
        for mine, theirs in (
            (self.energies, other.energies),
            (self.forces, other.forces),
            (self.nonfinite, other.nonfinite),
        ):
            for name, value in theirs.items():
                mine[name] = mine[name] + value

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Plain integers, for provenance."""
        return {
            "energy": {k: int(v) for k, v in self.energies.items()},
            "force": {k: int(v) for k, v in self.forces.items()},
            "nonfinite": {k: int(v) for k, v in self.nonfinite.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, int]]) -> "Ledger":
        """From `as_dict`, e.g. out of a provenance."""
        return cls(*(Counter(values.get(kind, {})) for kind in ("energy", "force", "nonfinite")))


@dataclass(frozen=True)
class Run:
    """Handed to every Transition call.

    Args:
        rng: Random stream; its device is where noise is drawn.
        context: Temperature, λ, composition, ...; passed on to every Target.
        ledger: Where evaluations are counted.
        level: Energy of the level at which the Transition stands; None for Transitions that use no energy.
        free: Targets whose evaluations are not counted, because they are closed forms that cost nothing (bases).
        decisions: Where Transitions put log P, (batch,), of the discrete choices that they made while autograd was on:
            a gradient through the path alone leaves out the part that these have.
    """

    rng: torch.Generator
    context: Context | None = None
    ledger: Ledger = field(default_factory=Ledger)
    level: Level | None = None
    free: tuple[EnergyModel, ...] = ()
    decisions: list[Tensor] = field(default_factory=list)

    def at(self, level: Level | None) -> "Run":
        """The same run at another level."""
        return replace(self, level=level)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape, dtype and device of `like`."""
        return torch.randn(like.shape, dtype=like.dtype, device=self.rng.device, generator=self.rng).to(like.device)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform noise in [0, 1) of the shape, dtype and device of `like`."""
        return torch.rand(like.shape, dtype=like.dtype, device=self.rng.device, generator=self.rng).to(like.device)

    def evaluate(self, target: EnergyModel, state: State) -> tuple[Tensor, State]:
        """Reduced energy of a leaf Target, cached on the returned State.

        It has autograd history where autograd is on and a field that the Target reads requires a gradient.

        Returns:
            u of shape (batch,), float64, with NaN mapped to +inf (counted), and the State that carries it.
        """
        tracked = _tracked(target, state)
        cached = state.evaluations.get(target)
        if cached is not None and cached.context is self.context and (cached.energy.requires_grad or not tracked):
            return (cached.energy if tracked else _detached(cached.energy)), state
        if tracked:
            u = self.differentiable_energy(target, state)
        else:
            with torch.no_grad():
                u = target.reduced_energy(state, self.context).double()
            u = self._counted(target, u, force=False)
        return u, state.with_evaluation(target, Evaluation(u, None, self.context))

    def evaluate_with_force(self, target: EnergyModel, state: State) -> tuple[Tensor, dict[str, Tensor], State]:
        """Reduced energy and force (−grad u, by field) of a leaf Target, cached on the returned State.

        Both have autograd history where autograd is on and a field that the Target reads requires a gradient.
        """
        tracked = _tracked(target, state)
        cached = state.evaluations.get(target)
        if (
            cached is not None
            and cached.force is not None
            and cached.context is self.context
            and (cached.energy.requires_grad or not tracked)
        ):
            if tracked:
                return cached.energy, dict(cached.force), state
            return _detached(cached.energy), {name: _detached(f) for name, f in cached.force.items()}, state
        if tracked:
            u, force = self._differentiable_force(target, state)
        else:
            u, force = target.energy_and_force(state, self.context)
            u = self._counted(target, u.detach().double(), force=True)
        return u, force, state.with_evaluation(target, Evaluation(u, force, self.context))

    def differentiable_energy(self, target: EnergyModel, state: State) -> Tensor:
        """Reduced energy with autograd history, counted as energy and force (its backward needs the force).

        Rows whose energy is not finite have no gradient: a mask on the energy alone would leave 0·NaN.

        Returns:
            u of shape (batch,), float64, with NaN mapped to +inf.
        """
        names = [name for name, value in state.fields.items() if value.requires_grad]
        return self._masked_energy(target, state, names)[0]

    def _masked_energy(self, target: EnergyModel, state: State, names: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Energy with history, and the views of the fields whose gradients are masked where it is not finite."""
        bad = torch.zeros(len(state), dtype=torch.bool, device=state.device)

        def masked(gradient: Tensor) -> Tensor:
            return torch.where(bad.reshape(-1, *[1] * (gradient.ndim - 1)), 0.0, gradient)

        views = {}
        for name in names:
            value = state[name]
            views[name] = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
            views[name].register_hook(masked)
        u = self._counted(target, target.reduced_energy(state.replace(**views), self.context).double(), force=True)
        bad |= ~torch.isfinite(u.detach())
        return u, views

    def _differentiable_force(self, target: EnergyModel, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        names = [name for name in target.fields if state[name].is_floating_point()]
        u, views = self._masked_energy(target, state, names)
        gradients = torch.autograd.grad(u.sum(), list(views.values()), create_graph=True, allow_unused=True)
        return u, {
            name: torch.zeros_like(view) if g is None else -g
            for (name, view), g in zip(views.items(), gradients, strict=True)
        }

    def energy(self, state: State) -> tuple[Tensor, State]:
        """Energy at the current level, and the State that carries the leaf evaluations."""
        return self._require_level().energy(state, self)

    def energy_and_force(self, state: State) -> tuple[Tensor, dict[str, Tensor], State]:
        """Energy and force at the current level, and the State that carries the leaf evaluations."""
        return self._require_level().energy_and_force(state, self)

    def _require_level(self) -> Level:
        if self.level is None:
            raise ValueError(
                "This Transition needs the energy of a level; run it in a Generator or with run.at(path.at(level))."
            )
        return self.level

    def _counted(self, target: EnergyModel, u: Tensor, *, force: bool) -> Tensor:
        if not any(target is one for one in self.free):
            nonfinite = (~torch.isfinite(u.detach())).sum()
            self.ledger.count(target.name, energy=len(u), force=len(u) if force else 0, nonfinite=nonfinite)
        # -inf would be an infinite weight: it stays and is raised on by the Generator
        return torch.where(torch.isnan(u), torch.inf, u)


def _tracked(target: EnergyModel, state: State) -> bool:
    return torch.is_grad_enabled() and any(state[name].requires_grad for name in target.fields if name in state)


def _detached(value: Tensor) -> Tensor:
    return value.detach() if value.requires_grad else value


def new_seed() -> int:
    """A random 63-bit seed from the operating system, to be recorded with the results."""
    return secrets.randbits(63)


def make_rng(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random stream keyed by (seed, *stream), e.g. (seed, shard index): independent of rank and number of devices.

    Args:
        seed: Non-negative integer.
        *stream: Further non-negative integers that name the stream.
        device: Where the noise is drawn.
    """
    # as a spawn key, because entropy is padded with zeros: [seed] and [seed, 0] would be one stream
    state = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state >> np.uint64(1)))
