"""The other direction: a torch potential, or a Target, as a force that OpenMM itself simulates."""

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch

from boltzflow._typing import Tensor
from boltzflow.errors import NonFiniteEnergyError, UnitError

__all__ = ["to_openmm"]

_CARTESIAN = ("lebesgue", "mean-free", "cartesian modulo rigid motions")
"""Measures on Cartesian positions under which molecular dynamics samples exp(−u)."""


def to_openmm(
    source: Any,
    *,
    n_atoms: int,
    temperature: Any = None,
    atoms: Sequence[int] = (),
    parameters: Mapping[str, float] | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """Return an `openmm.PythonForce` with the energy of a torch potential, or k_B T u of a Target.

    Dynamics at the temperature T samples exp(−U/k_B T) over the Cartesian positions. So a Target is taken only if its
    density is over them: one field of shape (n_atoms, 3), and a measure that is "lebesgue", "cartesian modulo rigid
    motions" (u does not change under rigid motions, which the dynamics adds) or "mean-free" (the centroid is removed
    before u is evaluated, and moves freely). −log q of a Generator with Cartesian samples is such a u and contains the
    Jacobian of its internal coordinates; a density over the internal coordinates themselves is refused. Constraints of
    the System change the measure, for any force.

    OpenMM evaluates one conformation per step and calls Python for it, which costs about 0.1 ms beside the energy
    itself. Positions are not wrapped, and a periodic box is not seen. The force is pickled when it is made: a later
    change of the potential's parameters is seen by Contexts of this System but not by a serialised copy, and to read
    a serialised System that holds it runs the pickle, so read only files that you trust.

    Args:
        source: a potential, positions (batch, n_atoms, 3) in nm -> energies (batch,) in kJ/mol, with
            `energy_and_force` or else differentiated by autograd; or a Target.
        n_atoms: number of atoms that it takes.
        temperature: K, or an openmm quantity: that of the dynamics. Only for a Target that has none of its own.
        atoms: indices of the particles of the System that it acts on, in its own order; by default all.
        parameters: global parameters of the Context with their default values, given to a Target as its context and
            to a potential as keyword arguments, such as an alchemical λ.
        device: where it is evaluated; by default where its first parameter or buffer is, else on the CPU.

    Returns:
        The force, for ``system.addForce``. A NaN or infinite energy or force, a wrong shape, and any exception of the
        potential end the simulation with an ``openmm.OpenMMException`` that says which.

    Raises:
        ImportError: OpenMM is older than 8.5.
        TypeError: it is neither a potential nor a Target, or a Target whose density is not over the positions.
        ValueError: sizes that do not agree, or the temperature is missing, given twice, or given to a potential.

    References:
        OpenMM 8: molecular dynamics simulation with machine learning potentials (Eastman et al., 2024).

    Example:
        >>> import openmm, torch
        >>> from boltzflow.forcefield import to_openmm
        >>> def wells(positions):
        ...     return 40.0 * (positions[:, 0, 0].square() - 0.25).square()
        >>> system = openmm.System()
        >>> index = system.addParticle(12.0), system.addForce(to_openmm(wells, n_atoms=1))
        >>> context = openmm.Context(system, openmm.VerletIntegrator(0.001))
        >>> context.setPositions([(1.0, 0.0, 0.0)])
        >>> print(context.getState(energy=True).getPotentialEnergy())
        22.5 kJ/mol
    """
    import openmm

    if not hasattr(openmm, "PythonForce"):
        raise ImportError(
            f"to_openmm needs the PythonForce of OpenMM 8.5; found OpenMM {openmm.__version__}. Install a newer one."
        )
    if len(atoms) and (len(atoms) != n_atoms or len(set(atoms)) != n_atoms):
        raise ValueError(f"atoms must be {n_atoms} different indices, as n_atoms says; found {list(atoms)}")
    if hasattr(source, "reduced_energy"):
        evaluate: Callable = _TargetEnergy(source, n_atoms, _kT(source, temperature))
    elif hasattr(source, "energy_and_force") or callable(source):
        if temperature is not None:
            raise ValueError("the energy of a potential is in kJ/mol and needs no temperature; leave it out")
        evaluate = _PotentialEnergy(source)
    else:
        raise TypeError(f"expected a potential or a Target; found {type(source).__name__}")
    force = openmm.PythonForce(_Computation(evaluate, source, n_atoms, device), dict(parameters or {}))
    if len(atoms):
        force.setParticles(list(atoms))
    force.setName(_name(source))
    return force


def _name(source: Any) -> str:
    return getattr(source, "name", None) or getattr(source, "__name__", None) or type(source).__name__


def _kT(target: Any, temperature: Any) -> float:
    """Return kT in kJ/mol at the temperature of the Target, or else at the one given."""
    from openmm import unit

    own = getattr(target, "temperature", None)
    if (own is None) == (temperature is None):
        found = "none was given" if own is None else f"it is of {own:g} K itself; leave temperature out"
        raise ValueError(f"{_name(target)}: u is in kT, and k_B T u needs one temperature: {found}")
    kelvin = own if temperature is None else temperature
    if unit.is_quantity(kelvin) and kelvin.unit.is_compatible(unit.kelvin):
        kelvin = kelvin.value_in_unit(unit.kelvin)
    if not isinstance(kelvin, Real) or not 0.0 < float(kelvin) < float("inf"):
        raise UnitError(f"temperature: expected a positive number of kelvin, got {kelvin!r}")
    return unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin) * float(kelvin)


class _PotentialEnergy:
    """Energy (kJ/mol) and force of a potential."""

    def __init__(self, potential: Any) -> None:
        self.potential = potential

    def __call__(self, x: Tensor, parameters: dict[str, float]) -> tuple[Tensor, Tensor]:
        if hasattr(self.potential, "energy_and_force"):
            return self.potential.energy_and_force(x, **parameters)
        with torch.enable_grad():
            x = x.requires_grad_()
            energy = self.potential(x, **parameters)
            if energy.shape != (1,):
                return energy, x
            gradient = torch.autograd.grad(energy.sum(), x)[0] if energy.requires_grad else torch.zeros_like(x)
        return energy, -gradient


class _TargetEnergy:
    """k_B T u (kJ/mol) of a Target, and its force."""

    def __init__(self, target: Any, n_atoms: int, kT: float) -> None:
        fields = {name: tuple(space.shape) for name, space in target.fields.items()}
        if list(fields.values()) != [(n_atoms, 3)] or target.measure not in _CARTESIAN:
            raise TypeError(
                f"{_name(target)}: expected a density over Cartesian positions, that is one field of shape "
                f"({n_atoms}, 3) and one of the measures {', '.join(map(repr, _CARTESIAN))}; found the fields {fields} "
                f"and the measure {target.measure!r}. A density over other coordinates lacks the Jacobian: put the map "
                "to the positions at the end of the Generator."
            )
        self.target = target
        self.kT = kT

    def __call__(self, x: Tensor, parameters: dict[str, float]) -> tuple[Tensor, Tensor]:
        mean_free = self.target.measure == "mean-free"
        state = self.target.state(x - x.mean(1, keepdim=True) if mean_free else x)
        u, forces = self.target.energy_and_force(state, parameters or None)
        (force,) = forces.values()
        if mean_free:
            force = force - force.mean(1, keepdim=True)
        return u * self.kT, force * self.kT


class _Computation:
    """What OpenMM calls, in whichever thread, with the State of one conformation."""

    def __init__(self, evaluate: Callable, source: Any, n_atoms: int, device: torch.device | str | None) -> None:
        self.evaluate = evaluate
        self.name = _name(source)
        self.shape = (n_atoms, 3)
        tensors = [*source.parameters(), *source.buffers()] if isinstance(source, torch.nn.Module) else []
        self.dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float64)
        self.device = torch.device(device if device is not None else tensors[0].device if tensors else "cpu")

    def __call__(self, state: Any) -> tuple[float, Any]:
        try:
            return self._compute(state)
        except (ValueError, NonFiniteEnergyError) as error:
            raise type(error)(f"{self.name}: {error}") from error
        except Exception:  # OpenMM keeps nothing of it but the message
            raise RuntimeError(f"{self.name} raised:\n{traceback.format_exc()}") from None

    def _compute(self, state: Any) -> tuple[float, Any]:
        positions = state.getPositions(asNumpy=True)._value
        if positions.shape != self.shape:
            raise ValueError(f"it takes {self.shape[0]} atoms, but acts on {len(positions)} particles of the System")
        x = torch.tensor(positions, dtype=self.dtype, device=self.device)[None]
        energy, force = self.evaluate(x, dict(state.getParameters()))
        if tuple(energy.shape) != (1,) or tuple(force.shape) != (1, *self.shape):
            raise ValueError(
                f"for positions of shape {tuple(x.shape)} it must return an energy of shape (1,) and a force of that "
                f"of the positions; found {tuple(energy.shape)} and {tuple(force.shape)}"
            )
        u, f = energy.item(), force.detach()[0].to("cpu", torch.float64)
        bad = (~f.isfinite().all(1)).nonzero()[:, 0].tolist()
        if not math.isfinite(u) or bad:
            atoms = f", force not finite on its atoms {bad[:5]}" if bad else ""
            raise NonFiniteEnergyError(
                f"energy {u:g} kJ/mol{atoms}. +inf is the end of a Target's support, where dynamics cannot go: "
                "simulate its potential instead, or take a smaller step if it blew up"
            )
        return u, f.numpy()
