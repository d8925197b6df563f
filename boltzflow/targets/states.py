"""Reduced energies of conformations at many thermodynamic states, as MBAR takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.errors import UnknownNameError, nearest
from boltzflow.targets.molecule import MoleculeTarget, as_temperature, kT
from boltzflow.targets.target import Target

__all__ = ["ThermodynamicState", "u_kn"]


@dataclass(frozen=True, eq=False)
class ThermodynamicState:
    """A potential at a temperature, with some of its parameters replaced.

    Args:
        potential: Module, (batch, n_atoms, 3) nm → (batch,) kJ/mol; a `ForceField` where there are parameters.
        temperature: In K; as a tensor it can be differentiated.
        parameters: Name, as in `ForceField.parameter_tensors`, to tensor or number: charges, force constants, λ.
    """

    potential: torch.nn.Module
    temperature: object
    parameters: Mapping[str, Tensor | float] = field(default_factory=dict)


def u_kn(
    states: Sequence[ThermodynamicState | Target],
    positions: Float[Tensor, "n ..."],
    *,
    box: Float[Tensor, "*n 3 3"] | None = None,
) -> Float64[Tensor, "n_states n"]:
    """Reduced energy u = U/kT of every conformation at every state.

    States that differ in temperature alone share one evaluation of the potential, and of a potential with different
    parameters those terms that no parameter touches are evaluated once. The result goes into
    `boltzflow.statistics.mbar` as it is; it is differentiable with respect to positions, parameters and temperatures.

    Args:
        states: Any mix of states and Targets; of a `MoleculeTarget` conformations outside its support have u = +inf.
        positions: Conformations (n, n_atoms, 3) in nm, or what the one field of Targets holds, in the order of the
            states that they were sampled from.
        box: Of periodic potentials, in nm; None takes their own.

    Example:
        >>> from boltzflow import load_system
        >>> from boltzflow.forcefield import alchemical
        >>> system = load_system("alanine_dipeptide")
        >>> soft = alchemical(system.openmm_system, range(6))
        >>> states = [ThermodynamicState(soft, 300.0, {"lambda_electrostatics": value}) for value in (1.0, 0.5, 0.0)]
        >>> u_kn([*states, ThermodynamicState(soft, 350.0), system.target], system.positions[None]).shape
        torch.Size([5, 1])
    """
    if not states:
        raise ValueError("u_kn: expected at least one state, got none.")
    energies: dict[tuple, Tensor] = {}
    variants: dict[int, dict[tuple, ThermodynamicState]] = {}
    for state in states:
        if isinstance(state, MoleculeTarget):
            plain = ThermodynamicState(state.potential, state.temperature)
        elif isinstance(state, ThermodynamicState):
            plain = state
        else:
            continue
        variants.setdefault(id(plain.potential), {}).setdefault(_key(plain), plain)
    where = {} if box is None else {"box": box}
    for sets in variants.values():
        first, *rest = sets.values()
        if not rest and not first.parameters:
            rows = first.potential(positions, **where)[None]
        else:
            own = first.potential.parameter_tensors()
            names = dict.fromkeys(name for state in sets.values() for name in state.parameters)
            unknown = sorted(set(names) - set(own))
            if unknown:
                raise UnknownNameError(f"u_kn: unknown parameter {unknown[0]!r}; {nearest(unknown[0], own)}")
            stacked = {
                name: torch.stack(
                    [torch.as_tensor(s.parameters.get(name, own[name])).to(own[name]) for s in sets.values()]
                )
                for name in names
            }
            rows = first.potential(positions, **where, parameters=stacked)
        energies |= zip(sets, rows.double(), strict=True)

    found = []
    for state in states:
        if isinstance(state, MoleculeTarget):
            known = energies[_key(ThermodynamicState(state.potential, state.temperature))]
            found.append(state.reduce(known, positions))
        elif isinstance(state, Target):
            found.append(state.reduced_energy(state.state(positions)).double())
        else:
            kelvin = state.temperature if isinstance(state.temperature, Tensor) else as_temperature(state.temperature)
            found.append(energies[_key(state)] / kT(kelvin))
    return torch.stack(found)


def _key(state: ThermodynamicState) -> tuple:
    """What decides the energy: the potential and its parameters, numbers by value and tensors by identity."""
    values = ((name, id(v) if isinstance(v, Tensor) else float(v)) for name, v in sorted(state.parameters.items()))
    return (id(state.potential), *values)
