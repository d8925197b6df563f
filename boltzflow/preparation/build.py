"""From a structure to a flexible openmm.System at an energy minimum."""

import logging
import random
from typing import Any

import numpy as np
import torch

from boltzflow.errors import FormatError
from boltzflow.preparation.checks import atom_name, fragments
from boltzflow.preparation.matching import create_system
from boltzflow.preparation.readers import Source
from boltzflow.preparation.templates import explain_residues

__all__ = ["add_bonds", "add_hydrogens", "build_system", "minimise", "restrain"]

logger = logging.getLogger(__name__)

RESTRAINT_ENERGY = "0.5*k*max(0, r-r0)^2"
RESTRAINT_CONSTANT = 1000.0
"""kJ/mol/nm²."""


def add_bonds(source: Source, forcefield: Any) -> None:
    """Bond the atoms of residues for which the file says nothing, in place, where a template has the same atoms.

    Args:
        source: What was read.
        forcefield: The `openmm.app.ForceField`.
    """
    for residue in source.topology.residues():
        template = forcefield._templates.get(residue.name)
        atoms = {atom.name: atom for atom in residue.atoms()}
        if template is None or len(atoms) < 2 or any(True for _ in residue.internal_bonds()):
            continue
        if set(atoms) == {atom.name for atom in template.atoms}:
            for a, b in template.bonds:
                source.topology.addBond(atoms[template.atoms[a].name], atoms[template.atoms[b].name])
            source.note(f"{residue.name}{residue.id}: no bonds in the file, those of the template are taken")


def add_hydrogens(source: Source, *, ph: float) -> None:
    """Add missing hydrogens to a source, in place.

    Args:
        source: What was read.
        ph: Decides the protonation of side chains and ends.
    """
    import openmm
    from openmm import app, unit

    model = app.Modeller(source.topology, source.positions * unit.nanometer)
    state = random.getstate()
    random.seed(0)  # OpenMM starts new hydrogens at random places: the same input must give the same folder
    try:
        # without the force field, which is slow with implicit solvent; the whole structure is minimised with it later
        model.addHydrogens(pH=ph, platform=openmm.Platform.getPlatformByName("Reference"))
    finally:
        random.setstate(state)
    added = model.topology.getNumAtoms() - source.topology.getNumAtoms()
    source.topology = model.topology
    source.positions = np.array(model.positions.value_in_unit(unit.nanometer), dtype=np.float64)
    source.note(f"added {added} hydrogens for pH {ph:g}")


def build_system(topology: Any, forcefield: Any) -> Any:
    """Make an openmm.System without cutoff and constraints.

    Args:
        topology: With all hydrogens.
        forcefield: The `openmm.app.ForceField`.

    Returns:
        The `openmm.System`.

    Raises:
        FormatError: If a residue has no template (named, with the closest one and what differs).
    """
    try:
        return create_system(topology, forcefield)
    except Exception as error:  # OpenMM raises ValueError, KeyError and bare Exception here
        return explain_residues(topology, forcefield, str(error))


def minimise(system: Any, positions: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Minimise the energy.

    Args:
        system: The `openmm.System`.
        positions: (n_atoms, 3) nm.

    Returns:
        Energy before and after (kJ/mol), positions (n_atoms, 3) nm, forces (n_atoms, 3) kJ/mol/nm.

    Raises:
        FormatError: If OpenMM cannot evaluate the System.
    """
    import openmm

    platform = openmm.Platform.getPlatformByName("CPU")
    properties = {"Threads": "1", "DeterministicForces": "true"}
    try:
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, properties)
        context.setPositions(positions)
        before = context.getState(energy=True).getPotentialEnergy()._value
        openmm.LocalEnergyMinimizer.minimize(context, 1.0, 0)
        state = context.getState(energy=True, positions=True, forces=True)
    except openmm.OpenMMException as error:
        radii = (
            " (the file has no Born radii: add them with ParmEd's changeRadii mbondi2)"
            if "radius" in str(error)
            else ""
        )
        raise FormatError(f"system: OpenMM cannot evaluate it: {error}{radii}.") from None
    relaxed = state.getPositions(asNumpy=True)._value
    forces = state.getForces(asNumpy=True)._value
    return before, state.getPotentialEnergy()._value, np.array(relaxed), np.array(forces)


def restrain(source: Source, *, radius: float | None) -> None:
    """Hold molecules together by flat-bottom harmonic restraints, in place, where nothing else does.

    Args:
        source: With its System and minimised positions.
        radius: Distance up to which the restraint is zero, nm; None for 1.5 nm, or 0.5 nm more than the structure has.

    Raises:
        FormatError: If a radius is given to a single molecule, or is smaller than the structure needs.
    """
    import openmm

    atoms = list(source.topology.atoms())
    bonds = [(a.index, b.index) for a, b in source.topology.bonds()]
    joined = bonds + [
        tuple(force.getBondParameters(k)[:2])
        for force in source.system.getForces()
        if isinstance(force, openmm.CustomBondForce)
        for k in range(force.getNumBonds())
    ]
    n_molecules = len(fragments(len(atoms), bonds))
    if len(fragments(len(atoms), joined)) == 1:
        if radius is not None:
            why = "is one molecule" if n_molecules == 1 else "has restraints between its molecules already"
            raise FormatError(f"restraint_radius: the system {why}; leave it out.")
        return
    from boltzflow.coordinates import fragment_links

    source.note(
        f"{n_molecules} molecules that are not bonded to each other: in infinite space they would drift apart and "
        "have no equilibrium, so restraints keep them together; free energies of binding depend on their radius"
    )
    elements = [atom.element.atomic_number for atom in atoms]
    force = openmm.CustomBondForce(RESTRAINT_ENERGY)
    force.setName("FlatBottomRestraint")
    force.addPerBondParameter("k")
    force.addPerBondParameter("r0")
    for a, b in fragment_links(len(atoms), bonds, elements=elements, positions=torch.from_numpy(source.positions)):
        distance = float(np.linalg.norm(source.positions[a] - source.positions[b]))
        if radius is not None and distance > radius:
            raise FormatError(
                f"restraint_radius: {radius} nm is less than the {distance:.2f} nm from {atom_name(atoms[a])} to "
                f"{atom_name(atoms[b])} in the minimised structure; give more than that."
            )
        r0 = radius if radius is not None else max(1.5, round(distance + 0.5, 1))
        force.addBond(a, b, [RESTRAINT_CONSTANT, r0])
        source.note(
            f"flat-bottom restraint between {atom_name(atoms[a])} and {atom_name(atoms[b])}: zero up to {r0:g} nm, "
            f"then ½·{RESTRAINT_CONSTANT:g} kJ/mol/nm²·(r − {r0:g} nm)²"
        )
    source.system.addForce(force)
