"""Two systems on the same atoms as two Targets that can be compared: same atoms, one labelling sector."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from boltzflow.errors import FormatError
from boltzflow.state import State
from boltzflow.targets import MoleculeTarget
from boltzflow.targets.target import Target

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["alchemical_path", "check_same_atoms", "energy_ratio", "paired_starts", "paired_targets", "path_lambda"]


def check_same_atoms(first: Any, second: Any, *, names: tuple[str, str]) -> None:
    """Compare the atoms of two mdtraj topologies in their order.

    Args:
        first: An mdtraj.Topology.
        second: Another.
        names: What to call the two in the error.

    Raises:
        FormatError: At the first difference in number, element, atom name or residue name.
    """
    if first.n_atoms != second.n_atoms:
        raise FormatError(
            f"{names[0]} has {first.n_atoms} atoms and {names[1]} has {second.n_atoms}: expected the same atoms in the "
            "same order."
        )
    for x, y in zip(first.atoms, second.atoms, strict=True):
        mine, theirs = ((t.residue.name, t.name, t.element.symbol) for t in (x, y))
        if mine != theirs:
            described = [
                f"{'-'.join((f'{t.residue.name}{t.residue.resSeq}', t.name))} ({t.element.symbol})" for t in (x, y)
            ]
            raise FormatError(
                f"{names[0]} and {names[1]} differ at atom {x.index}: {described[0]} against {described[1]}; expected "
                "the same elements, atom and residue names in the same order. Make one of the systems anew from the "
                "topology of the other."
            )


def paired_targets(a: "System", b: "System") -> tuple[MoleculeTarget, MoleculeTarget, list[str]]:
    """The Targets of two systems, both in the labelling sector of the first; notes in words on what was unified.

    Where both have the same force field the second uses the potential of the first.

    Raises:
        FormatError: If the atoms, bonds, constraints or the hands of stereo-centres differ, or the two ends are one and
            the same.
    """
    names = (a.source, b.source)
    if names[0] != names[1] and a.name != b.name:
        names = (a.name, b.name)
    check_same_atoms(a.topology, b.topology, names=names)
    differing = sorted(set(a.bonds) ^ set(b.bonds))
    if differing:
        atom = list(a.topology.atoms)
        (i, j), owner = differing[0], names[0] if differing[0] in a.bonds else names[1]
        raise FormatError(
            f"{names[0]} and {names[1]} differ in {len(differing)} bonds, e.g. {atom[i]}-{atom[j]}, which only {owner} "
            "has: expected the same bonds. Make one of the systems anew from the topology of the other."
        )
    _check_constraints(a.target, b.target, names=names)
    notes = []
    if not bool(a.sector.contains(b.positions[None])):
        moved, _ = a.sector.relabel(b.positions[None])
        if not bool(a.sector.contains(moved)):
            raise FormatError(
                f"{names[0]} and {names[1]} have stereo-centres of different hand ({a.target.sector_description}): "
                "they are different molecules; make both from one structure."
            )
        notes.append(f"identical hydrogens are labelled as in {names[0]} for both ends (log n_copies cancels)")
    same_measure = a.target.constraint_measure == b.target.constraint_measure
    if a.fingerprint == b.fingerprint and same_measure and a.lam == b.lam:
        if a.temperature == b.temperature:
            raise FormatError(f"{names[0]} and {names[1]} are one system at one temperature: the difference is zero.")
        second = copy.copy(a.target)
        second.temperature = b.temperature
    else:
        second = copy.copy(b.target)
        second.sector, second.sector_description = a.target.sector, a.target.sector_description
    second.name = b.name if b.name != a.name else f"{b.name} ({b.folder})"
    return a.target, second, notes


def _check_constraints(a: MoleculeTarget, b: MoleculeTarget, *, names: tuple[str, str]) -> None:
    """Densities on different constraints have no weights for each other."""
    fixed = [
        {}
        if target.constraints is None
        else dict(
            zip(map(frozenset, target.constraints.pairs.tolist()), target.constraints.distances.tolist(), strict=True)
        )
        for target in (a, b)
    ]
    if fixed[0].keys() != fixed[1].keys() or any(abs(fixed[0][k] - fixed[1][k]) > 1e-6 for k in fixed[0]):
        raise FormatError(
            f"{names[0]} has {len(fixed[0])} constraints and {names[1]} has {len(fixed[1])}, which differ: expected "
            "the same fixed distances at both ends. Make both Systems with the same constraints, or with none."
        )


def alchemical_path(
    a: "System", b: "System", ends: Sequence[MoleculeTarget]
) -> Callable[[float], MoleculeTarget] | None:
    """Targets from A (at 0) to B (at 1) where these are one system at two λ, else None.

    λ goes from that of A to that of B in a straight line, and so does 1/kT.

    Args:
        a: A system.
        b: Another.
        ends: Their Targets, as `paired_targets` gives them.
    """
    if a.fingerprint != b.fingerprint or a.lam == b.lam:
        return None

    def at(position: float) -> MoleculeTarget:
        if position in (0, 1):
            return ends[int(position)]
        kelvin = 1 / ((1 - position) / a.temperature + position / b.temperature)
        target = a.at_lambda(path_lambda(a, b, position), temperature=kelvin).target
        target.sector, target.sector_description = ends[0].sector, ends[0].sector_description
        return target

    return at


def path_lambda(a: "System", b: "System", position: float) -> float:
    """λ at a position on the way from A (0) to B (1)."""
    return (1 - position) * a.lam + position * b.lam


def energy_ratio(a: Target, b: Target) -> float | None:
    """u_B / u_A where both are one potential in one sector at two temperatures, so that one evaluation serves both."""
    if not (isinstance(a, MoleculeTarget) and isinstance(b, MoleculeTarget)) or a.potential is not b.potential:
        return None
    if a.constraints is not None:  # the term of their measure does not scale
        return None
    return a.temperature / b.temperature if a.sector == b.sector else None


def paired_starts(a: "System", b: "System", target: MoleculeTarget, n_chains: int) -> State:
    """A start for every ladder, from the structures of A and of B in turn, relabelled into the sector of A."""
    structures, _ = a.sector.relabel(torch.stack([a.positions, b.positions]))
    return target.state(structures[torch.arange(n_chains) % 2])
