"""What an input must satisfy before a system folder is made of it; every refusal says what to do."""

import math
import re
from collections import Counter
from numbers import Real
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from boltzflow.errors import FormatError, UnitError, UnsupportedForceError
from boltzflow.targets.molecule import as_temperature

__all__ = [
    "atom_name",
    "check_agreement",
    "check_hands",
    "check_positions",
    "check_relaxed",
    "check_size",
    "check_supported",
    "fragments",
    "listed",
    "read_temperature",
]

COLDEST, HOTTEST = 50.0, 3000.0
"""Range of believable temperatures, K."""

COINCIDENT = 0.02
"""Two atoms nearer than this are at the same place, nm."""

LONGEST_BOND = 0.3
"""A bond that is longer joins residues between which others are missing, nm."""

_REMEDY = "atoms overlap, or chains pierce rings, in the input; give a better structure, or rebuild it with pdbfixer."

_GAS_CONSTANTS = {"kJ/mol": 0.00831446261815324, "kcal/mol": 0.00198720425864083}


def listed(items: list[str], *, most: int = 5) -> str:
    """The first items, with the number of those left out.

    Args:
        items: What to list.
        most: How many to name.
    """
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def atom_name(atom: Any) -> str:
    """An atom of an OpenMM topology as users know it, such as "ALA2-CA" or "B:ALA2-CA".

    Args:
        atom: The `openmm.app.topology.Atom`.
    """
    residue = atom.residue
    several = sum(1 for _ in residue.chain.topology.chains()) > 1
    return f"{residue.chain.id + ':' if several else ''}{residue.name}{residue.id}-{atom.name}"


def fragments(n_atoms: int, bonds: list[tuple[int, int]]) -> list[list[int]]:
    """Atoms of each molecule, sorted, the molecule with the lowest atom first.

    Args:
        n_atoms: Number of atoms.
        bonds: Pairs of bonded atoms.
    """
    from boltzflow.coordinates.graph import connected_components, neighbour_lists

    return [sorted(component) for component in connected_components(neighbour_lists(n_atoms, bonds))]


def read_temperature(value: Any) -> float:
    """A temperature in K from what a user wrote.

    Args:
        value: A number of kelvin, text with or without the unit ("300", "300 K", "25C"), or an openmm Quantity.

    Raises:
        UnitError: If it is no temperature, has another unit, or is not believable; the message says what may be meant.
    """
    kelvin = value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(K|kelvin|C|°C|celsius)?\s*", value)
        if match is None:
            raise UnitError(
                f"temperature {value!r}: expected kelvin, such as 300 or 300K, or degrees Celsius, such as 25C."
            )
        kelvin = float(match[1]) + (273.15 if match[2] in ("C", "°C", "celsius") else 0.0)
    elif hasattr(value, "value_in_unit"):
        kelvin = as_temperature(value)
    if not isinstance(kelvin, Real) or isinstance(kelvin, bool) or not math.isfinite(kelvin):
        raise UnitError(f"temperature {value!r}: expected a number of kelvin, such as 300, got {value!r}.")
    kelvin = float(kelvin)
    if COLDEST <= kelvin <= HOTTEST:
        return kelvin
    raise UnitError(
        f"temperature {value!r}: {kelvin:g} K is outside {COLDEST:g} to {HOTTEST:g} K{_likely(kelvin)}; give kelvin, "
        "such as 300."
    )


def _likely(kelvin: float) -> str:
    """What may be meant by an impossible number of kelvin."""
    if kelvin <= 0:
        return ""
    for unit, constant in _GAS_CONSTANTS.items():
        if 250 <= kelvin / constant <= 450:
            return f" (as kT in {unit} it would be {kelvin / constant:.0f} K)"
    if 0.25 <= kelvin <= 0.45:
        return f" (in units of 1000 K it would be {1000 * kelvin:.0f} K)"
    if kelvin < COLDEST:
        return f" (as degrees Celsius it would be {kelvin + 273.15:.2f} K: write {kelvin:g}C)" if kelvin >= 1 else ""
    power = 10.0 ** math.floor(math.log10(kelvin / 100.0))
    return f" (is {kelvin / power:g} K meant?)"


def check_positions(topology: Any, positions: np.ndarray) -> None:
    """Refuse coordinates that are not those of a molecule.

    Args:
        topology: An `openmm.app.Topology`.
        positions: (n_atoms, 3) nm.

    Raises:
        FormatError: If there are NaN, coinciding atoms (all at zero, say), or bonds of impossible length.
    """
    atoms = list(topology.atoms())
    if len(positions) != len(atoms):
        raise FormatError(
            f"coordinates: of {len(positions)} atoms, but the topology has {len(atoms)}; give matching files."
        )
    wrong = [atom_name(atoms[k]) for k in np.flatnonzero(~np.isfinite(positions).all(1))]
    if wrong:
        raise FormatError(
            f"coordinates: {len(wrong)} of {len(atoms)} atoms have no finite position ({listed(wrong)}); repair the "
            "file, or remove these atoms and let pdbfixer rebuild them."
        )
    if len(atoms) > 1 and not positions.any():
        raise FormatError("coordinates: all atoms are at the origin; the file holds no structure, give one that does.")
    pairs = sorted(cKDTree(positions).query_pairs(COINCIDENT))
    if pairs:
        names = [f"{atom_name(atoms[a])} and {atom_name(atoms[b])}" for a, b in pairs]
        bonded = {frozenset((bond[0].index, bond[1].index)) for bond in topology.bonds()}
        remedy = (
            "these are bonded: lengths may not be in the unit of the format (PDB files are in ångström)"
            if any(frozenset(pair) in bonded for pair in pairs)
            else "a molecule may be in the file twice: remove the copy, or move the atoms apart"
        )
        raise FormatError(
            f"coordinates: {len(pairs)} pairs of atoms at the same place, within {COINCIDENT} nm: "
            f"{listed(names, most=3)}; {remedy}."
        )
    lengths = [(float(np.linalg.norm(positions[b[0].index] - positions[b[1].index])), b) for b in topology.bonds()]
    long = [
        f"{atom_name(b[0])} to {atom_name(b[1])} ({length:.2f} nm)" for length, b in lengths if length > LONGEST_BOND
    ]
    if long:
        raise FormatError(
            f"coordinates: {len(long)} bonds longer than {LONGEST_BOND} nm: {listed(long, most=3)}. Either residues "
            "are missing there (add them with pdbfixer, or end the chain with a TER record and cap it), or lengths "
            "are not in the unit of the format."
        )


def check_size(topology: Any, system: Any) -> None:
    """Refuse a topology and a System with different numbers of atoms, or too few.

    Args:
        topology: The `openmm.app.Topology`.
        system: The `openmm.System`.

    Raises:
        FormatError: If they differ, or if there are less than three.
    """
    if topology.getNumAtoms() != system.getNumParticles():
        raise FormatError(
            f"system: {system.getNumParticles()} particles, but the topology has {topology.getNumAtoms()} atoms; give "
            "the PDB file that the System was made from, with all hydrogens."
        )
    if topology.getNumAtoms() < 3:
        raise FormatError(
            f"topology: {topology.getNumAtoms()} atoms; internal coordinates need at least 3, give a larger molecule."
        )


def check_supported(topology: Any, system: Any) -> None:
    """Refuse Systems without a Boltzmann distribution over flexible, non-periodic coordinates.

    Args:
        topology: The `openmm.app.Topology`.
        system: The `openmm.System`.

    Raises:
        UnsupportedForceError: If it is periodic, or has constraints or virtual sites.
    """
    names = [atom_name(atom) for atom in topology.atoms()]
    virtual = [k for k in range(system.getNumParticles()) if system.isVirtualSite(k)]
    if virtual:
        found = [names[k] for k in virtual]
        raise UnsupportedForceError(
            f"system: {len(virtual)} virtual sites ({listed(found)}), which have no coordinates of their own and are "
            "not supported; use a force field without them (for water a three-site model)."
        )
    if system.usesPeriodicBoundaryConditions():
        box = "" if topology.getPeriodicBoxVectors() is not None else " (and the topology has no box)"
        raise UnsupportedForceError(
            f"system: uses periodic boundary conditions{box}. Only molecules in infinite space, in vacuum or implicit "
            "solvent, are supported: make the System with nonbondedMethod=NoCutoff and an implicit-solvent force "
            "field, or simulate with OpenMM itself."
        )
    n_constraints = system.getNumConstraints()
    if n_constraints:
        a, b, _ = system.getConstraintParameters(0)
        raise UnsupportedForceError(
            f"system: {n_constraints} constraints (the first between {names[a]} and {names[b]}), but all degrees of "
            "freedom must be flexible; make the System with constraints=None, rigidWater=False."
        )


def check_agreement(topology: Any, system: Any) -> str | None:
    """Refuse a topology and a System that are not of the same molecules.

    Masses are compared with elements, and the bonds of HarmonicBondForce with those of the topology
    (1-3 pairs may have harmonic terms, as in the Urey-Bradley terms of CHARMM).

    Args:
        topology: The `openmm.app.Topology`.
        system: The `openmm.System`.

    Returns:
        What is unusual but allowed, in words; None if nothing is.

    Raises:
        FormatError: If they disagree.
    """
    from openmm import unit

    atoms = list(topology.atoms())
    masses = [system.getParticleMass(k).value_in_unit(unit.dalton) for k in range(len(atoms))]
    expected = [a.element.mass.value_in_unit(unit.dalton) if a.element is not None else 0.0 for a in atoms]
    note = _check_masses(atoms, masses, expected, topology)
    in_topology = {_pair(a.index, b.index) for a, b in topology.bonds()}
    neighbours: list[set[int]] = [set() for _ in atoms]
    for a, b in in_topology:
        neighbours[a].add(b)
        neighbours[b].add(a)
    in_system = {
        _pair(*force.getBondParameters(k)[:2])
        for force in system.getForces()
        if type(force).__name__ == "HarmonicBondForce"
        for k in range(force.getNumBonds())
    }
    foreign = [p for p in sorted(in_system - in_topology) if not neighbours[p[0]] & neighbours[p[1]]]
    if foreign:
        names = [f"{atom_name(atoms[a])} to {atom_name(atoms[b])}" for a, b in foreign]
        raise FormatError(
            f"system: {len(foreign)} bonds that the topology does not have: {listed(names, most=3)}; add CONECT "
            "records for them to the PDB file, or give the topology that the System was made from."
        )
    absent = sorted(in_topology - in_system) if in_system else []
    if absent:
        names = [f"{atom_name(atoms[a])} to {atom_name(atoms[b])}" for a, b in absent]
        raise FormatError(
            f"topology: {len(absent)} bonds for which the System has no bond term: {listed(names, most=3)}; the order "
            "of the atoms may differ: give the topology that the System was made from."
        )
    return note


def _pair(a: int, b: int) -> tuple[int, int]:
    return min(a, b), max(a, b)


def _check_masses(atoms: list[Any], masses: list[float], expected: list[float], topology: Any) -> str | None:
    off = [k for k in range(len(atoms)) if abs(masses[k] - expected[k]) > 0.1]
    if not off:
        return None
    # repartitioned hydrogen masses leave the sum over a heavy atom and its hydrogens, and any configuration, unchanged
    owner = list(range(len(atoms)))
    for a, b in topology.bonds():
        for hydrogen, heavy in ((a, b), (b, a)):
            if hydrogen.element is not None and hydrogen.element.atomic_number == 1:
                owner[hydrogen.index] = heavy.index
    change = Counter()
    for k in range(len(atoms)):
        change[owner[k]] += masses[k] - expected[k]
    if all(abs(value) < 0.1 for value in change.values()):
        return "hydrogen masses are repartitioned, which changes no configuration"
    k = off[0]
    raise FormatError(
        f"system: {len(off)} masses do not belong to the elements of the topology, the first is {atom_name(atoms[k])} "
        f"with {masses[k]:.3f} instead of {expected[k]:.3f} Da; the order of the atoms may differ: give the topology "
        "that the System was made from."
    )


def check_hands(topology: Any, before: np.ndarray, after: np.ndarray) -> None:
    """Refuse a minimised structure in which a stereo-centre has changed its hand.

    Args:
        topology: The `openmm.app.Topology`.
        before: (n_atoms, 3) nm, as given.
        after: (n_atoms, 3) nm, minimised.

    Raises:
        FormatError: If one did.
    """
    from boltzflow.coordinates.graph import colour_classes, neighbour_lists

    atoms = list(topology.atoms())
    around = neighbour_lists(len(atoms), [(a.index, b.index) for a, b in topology.bonds()])
    colours = colour_classes([atom.element.atomic_number for atom in atoms], around)
    inverted = []
    for centre, neighbours in enumerate(around):
        if len(neighbours) == 4 == len({colours[k] for k in neighbours}):
            volumes = [np.linalg.det(x[neighbours[:3]] - x[centre]) for x in (before, after)]
            if volumes[0] * volumes[1] < 0:
                inverted.append(atom_name(atoms[centre]))
    if inverted:
        raise FormatError(f"minimisation: inverts the stereo-centres {listed(inverted)}: {_REMEDY}")


def check_relaxed(topology: Any, system: Any, positions: np.ndarray, energy: float, forces: np.ndarray) -> None:
    """Refuse a structure that minimisation did not relax.

    Args:
        topology: The `openmm.app.Topology`.
        system: The `openmm.System`.
        positions: (n_atoms, 3) nm, minimised.
        energy: There, kJ/mol.
        forces: (n_atoms, 3) there, kJ/mol/nm.

    Raises:
        FormatError: If the energy is not finite, a bond is far from its length, or a force is large.
    """
    atoms = list(topology.atoms())
    if not (math.isfinite(energy) and np.isfinite(forces).all()):
        raise FormatError(f"minimisation: the energy is {energy:g} kJ/mol or a force is not finite; {_REMEDY}")
    strained = []
    for force in system.getForces():
        if type(force).__name__ == "HarmonicBondForce":
            for k in range(force.getNumBonds()):
                a, b, length, constant = force.getBondParameters(k)
                found = float(np.linalg.norm(positions[a] - positions[b]))
                if abs(found - length._value) > 0.03 and constant._value > 5e4:
                    strained.append(
                        f"{atom_name(atoms[a])} to {atom_name(atoms[b])} ({found:.3f} for {length._value:.3f} nm)"
                    )
    if strained:
        raise FormatError(f"minimisation: {len(strained)} bonds stay strained: {listed(strained, most=3)}; {_REMEDY}")
    sizes = np.linalg.norm(forces, axis=1)
    if sizes.max() > 1000.0:
        worst = int(sizes.argmax())
        raise FormatError(
            f"minimisation: does not converge, the force on {atom_name(atoms[worst])} is still {sizes[worst]:.0f} "
            f"kJ/mol/nm; {_REMEDY}"
        )
