"""`prepare`: a system folder from a molecule's files, or from a sequence."""

import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boltzflow.errors import FormatError, UnsupportedForceError
from boltzflow.io.alchemical import select_atoms
from boltzflow.io.provenance import package_versions
from boltzflow.preparation.build import add_bonds, add_hydrogens, build_system, minimise, restrain
from boltzflow.preparation.checks import (
    check_agreement,
    check_hands,
    check_positions,
    check_relaxed,
    check_size,
    check_supported,
    fragments,
    read_temperature,
)
from boltzflow.preparation.folder import check_folder, new_folder, topology_text, verify_topology, write_definition
from boltzflow.preparation.readers import (
    Source,
    read_amber,
    read_charmm,
    read_forcefield,
    read_structure,
    read_system,
)
from boltzflow.preparation.readme import readme_text
from boltzflow.preparation.recipes import recipes_for
from boltzflow.preparation.solvent import check_solvent, remove_solvent
from boltzflow.preparation.stereo import stereo_notes
from boltzflow.preparation.termini import add_terminal_oxygens
from boltzflow.systems import System, load_system, probe_positions

__all__ = ["DEFAULT_FORCEFIELD", "N_PROBES", "prepare", "reference_energies"]

logger = logging.getLogger(__name__)

DEFAULT_FORCEFIELD = ("amber14-all.xml", "implicit/obc2.xml")
"""ff14SB for proteins, OL15 and OL3 for nucleic acids, lipid17; generalised Born model OBC2 for water."""

N_PROBES = 4
"""Structures at which energies are recorded."""

PathLike = str | os.PathLike[str]


def prepare(
    folder: PathLike,
    *,
    pdb: PathLike | None = None,
    prmtop: PathLike | None = None,
    inpcrd: PathLike | None = None,
    psf: PathLike | None = None,
    parameters: Sequence[PathLike] = (),
    coordinates: PathLike | None = None,
    system: PathLike | None = None,
    sequence: str | None = None,
    forcefield: PathLike | Sequence[PathLike] = (),
    implicit_solvent: str | None = None,
    temperature: Any = 300.0,
    add_hydrogens: bool = False,
    ph: float = 7.0,
    remove_solvent: bool = False,
    restraint_radius: float | None = None,
    alchemical: str | None = None,
) -> System:
    """Make a system folder from exactly one description of a molecule.

    The description is `pdb`; or `prmtop` with `inpcrd`; or `psf` with `parameters` and `coordinates`; or `system` with
    `pdb`; or `sequence`. The structure is energy-minimised. Systems have no cutoff and no constraints. Molecules that
    are not bonded to each other are held together by a flat-bottom harmonic restraint: without it their distribution
    in infinite space has no normalisation.

    Args:
        folder: To be made; its name is the system's. It must not exist, or be empty.
        pdb: PDB or (.cif) mmCIF file.
        prmtop: Amber topology.
        inpcrd: Amber coordinates.
        psf: CHARMM or X-PLOR structure file.
        parameters: CHARMM top, par and str files.
        coordinates: For `psf`: PDB or CHARMM .crd file.
        system: XML of a serialised openmm.System.
        sequence: Residue names, such as "ACE ALA ALA NME".
        forcefield: OpenMM XML files, shipped or paths, for `pdb` and `sequence`; by default `DEFAULT_FORCEFIELD`.
        implicit_solvent: For `prmtop` and `psf`: HCT, OBC1, OBC2 (default), GBn, GBn2 or none.
        temperature: Kelvin; text may carry the unit ("300K", "25C").
        add_hydrogens: Add those that are missing, protonated for `ph`, and terminal oxygens (OXT).
        ph: Of the solution.
        remove_solvent: Take out waters and free ions.
        restraint_radius: Distance up to which the restraint between molecules is zero, nm; by default 1.5 nm, or 0.5 nm
            more than the minimised structure has, whichever is larger.
        alchemical: Atoms whose interactions with the rest λ switches, a selection in MDTraj's language such as
            "resname LIG"; the system is then loaded at a λ as ``FOLDER@lambda=0.5``.

    Returns:
        The system, as `load_system` gives it.

    Raises:
        FormatError: If an input is damaged, contradictory or incomplete; the message names the remedy.
        FileExistsError: If the folder holds something.
        UnknownNameError: If there is no such force field or implicit solvent.
        UnsupportedForceError: If the System is periodic, or has constraints or virtual sites, or much water; if λ is
            not defined for its forces.
        UnitError: If the temperature is not believable.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     system = prepare(f"{folder}/dialanine", sequence="ACE ALA ALA NME")
        ...     system.n_atoms
        32
    """
    folder = Path(folder)
    check_folder(folder)
    kelvin = read_temperature(temperature)
    arguments = {key: value for key, value in locals().items() if key not in ("folder", "kelvin")}
    given = _which(**{key: arguments[key] for key in ("pdb", "prmtop", "psf", "system", "sequence")})
    _check_companions(given, arguments)
    files = [str(file) for file in ([forcefield] if isinstance(forcefield, str | os.PathLike) else forcefield)]

    field = None
    if given in ("pdb", "sequence"):
        files = files or list(DEFAULT_FORCEFIELD)
        field = read_forcefield(files)
    if given == "pdb":
        source = read_structure(Path(pdb))
    elif given == "sequence":
        from boltzflow.preparation.sequence import from_sequence

        topology, positions = from_sequence(sequence, forcefield=field, ph=ph)
        source = Source(topology, positions, notes=[f"built from the sequence {' '.join(sequence.split())}"])
    elif given == "prmtop":
        source = read_amber(Path(prmtop), Path(inpcrd), implicit_solvent=implicit_solvent or "OBC2")
    elif given == "psf":
        source = read_charmm(
            Path(psf), [Path(p) for p in parameters], Path(coordinates), implicit_solvent=implicit_solvent or "OBC2"
        )
    else:
        source = read_system(Path(system), Path(pdb))
    if field is not None:
        _complete(source, field, files, remove=remove_solvent, hydrogens=add_hydrogens, ph=ph)
    check_solvent(source)
    check_size(source.topology, source.system)
    check_supported(source.topology, source.system)
    check_positions(source.topology, source.positions)
    if note := check_agreement(source.topology, source.system):
        source.note(note)
    _minimise(source)
    restrain(source, radius=restraint_radius)
    with new_folder(folder) as temporary:
        _write(
            temporary,
            folder,
            source,
            kelvin,
            forcefield=files,
            alchemical=alchemical,
            command=_command(folder, arguments),
        )
    return load_system(folder)


def _which(**given: Any) -> str:
    """The one description that was given; a System comes with a PDB file."""
    names = [name for name, value in given.items() if value is not None]
    if names == ["pdb", "system"]:
        return "system"
    if len(names) != 1 or names == ["system"]:
        found = f"got {' and '.join(names)}" if names else "got none"
        hint = "; system needs pdb for topology and positions" if names == ["system"] else ""
        raise FormatError(
            "input: expected exactly one of pdb, prmtop (with inpcrd), psf (with parameters and coordinates), system "
            f"(with pdb) or sequence, {found}{hint}."
        )
    return names[0]


def _check_companions(given: str, arguments: dict[str, Any]) -> None:
    """Refuse inputs that are incomplete, and options that would have no effect."""
    needed = {"prmtop": ("inpcrd",), "psf": ("parameters", "coordinates")}
    for name in needed.get(given, ()):
        if not arguments[name]:
            raise FormatError(f"{given}: needs {name} as well; give {' and '.join(needed[given])} with it.")
    allowed = {
        "inpcrd": ("prmtop",),
        "parameters": ("psf",),
        "coordinates": ("psf",),
        "forcefield": ("pdb", "sequence"),
        "implicit_solvent": ("prmtop", "psf"),
        "add_hydrogens": ("pdb",),
        "remove_solvent": ("pdb",),
    }
    reasons = {
        "forcefield": "the input holds the force field already",
        "implicit_solvent": "name an implicit-solvent XML such as implicit/obc2.xml as forcefield",
        "add_hydrogens": "the input has to hold them",
        "remove_solvent": "strip the files with cpptraj or ParmEd, or make the System without solvent",
    }
    for name, inputs in allowed.items():
        if arguments[name] and given not in inputs:
            reason = reasons.get(name, f"it belongs to {inputs[0]}")
            raise FormatError(f"{name}: has no meaning with {given}: {reason}.")
    if not 0.0 <= arguments["ph"] <= 14.0:
        raise FormatError(f"ph: expected a number from 0 to 14, got {arguments['ph']}.")
    radius = arguments["restraint_radius"]
    if radius is not None and not radius > 0:
        raise FormatError(f"restraint_radius: expected a positive distance in nm, got {radius}.")


def _complete(source: Source, field: Any, files: list[str], *, remove: bool, hydrogens: bool, ph: float) -> None:
    """Clean a structure and define its energy by a force field."""
    if remove:
        remove_solvent(source)
        if not len(source.positions):
            raise FormatError(
                f"{source.files[0]}: nothing is left without water and free ions; leave --remove-solvent out."
            )
    check_solvent(source)
    add_bonds(source, field)
    check_positions(source.topology, source.positions)
    if hydrogens:
        add_terminal_oxygens(source)
        add_hydrogens(source, ph=ph)
    source.system = build_system(source.topology, field)
    source.definition = " + ".join(files)
    source.files += [Path(file) for file in files if Path(file).is_file()]
    if not any("GB" in type(force).__name__ for force in source.system.getForces()):
        source.note("no implicit solvent: the molecule is in vacuum")


def _minimise(source: Source) -> None:
    start = source.positions
    logger.info("minimising the energy of %d atoms", len(start))
    before, after, source.positions, forces = minimise(source.system, start)
    source.note(f"energy-minimised from {before:.4g} to {after:.4g} kJ/mol")
    check_relaxed(source.topology, source.system, source.positions, after, forces)
    check_hands(source.topology, start, source.positions)
    for note in stereo_notes(source.topology, source.positions):
        source.note(note)


def _write(
    temporary: Path,
    folder: Path,
    source: Source,
    kelvin: float,
    *,
    forcefield: Sequence[str],
    alchemical: str | None,
    command: str,
) -> None:
    """Write everything, and read it back before it counts."""
    import mdtraj
    import openmm

    (temporary / "system.xml").write_text(openmm.XmlSerializer.serialize(source.system), encoding="utf-8")
    (temporary / "topology.pdb").write_text(topology_text(source.topology, source.positions), encoding="utf-8")
    structure = mdtraj.load_pdb(str(temporary / "topology.pdb"))
    verify_topology(source.topology, structure.topology)
    energies = reference_energies(source.system, probe_positions(torch.from_numpy(structure.xyz[0]).double(), N_PROBES))
    comment = f"OpenMM {openmm.__version__}, Reference platform, kJ/mol, of boltzflow.systems.probe_positions"
    definition = {
        "name": folder.name,
        "description": _description(source),
        "temperature": kelvin,
        "data": "data",
        # without folders of this machine; what ships with OpenMM keeps its name, which may have one
        "forcefield": [Path(name).name if Path(name).is_file() else str(name) for name in forcefield],
    }
    if alchemical is not None:
        select_atoms(structure.topology, alchemical, where="alchemical")
        definition["alchemical"] = {"atoms": alchemical}
    write_definition(temporary / "system.yaml", definition, energies=energies, comment=comment)
    written = load_system(temporary)
    if alchemical is not None:
        written.at_lambda(0.5).potential  # noqa: B018 - λ is defined for all forces
    try:
        written.potential  # noqa: B018 - compares the torch energies with the recorded ones
    except UnsupportedForceError as error:
        source.note(f"the torch back-end does not take this System: {error}")
    try:
        written.sector  # noqa: B018 - every atom has internal coordinates
    except ValueError as error:
        raise FormatError(f"internal coordinates: {error}") from None
    recipes = recipes_for(written)
    (temporary / "recipes").mkdir()
    for name, text in recipes.items():
        (temporary / "recipes" / f"{name}.yaml").write_text(text, encoding="utf-8")
    definition["recipe"] = next(iter(recipes))
    write_definition(temporary / "system.yaml", definition, energies=energies, comment=comment)
    written = load_system(temporary)
    readme = readme_text(written, source, folder=folder, command=command, versions=package_versions())
    (temporary / "README.md").write_text(readme, encoding="utf-8")


def _description(source: Source) -> str:
    n_molecules = len(fragments(len(source.positions), [(a.index, b.index) for a, b in source.topology.bonds()]))
    residues = [residue.name for residue in source.topology.residues()]
    what = "-".join(residues) if len(residues) <= 12 and n_molecules == 1 else f"{len(residues)} residues"
    return f"{what}{f' in {n_molecules} molecules' if n_molecules > 1 else ''}, {source.definition}"


def reference_energies(system: Any, structures: torch.Tensor) -> tuple[float, ...]:
    """Energies in kJ/mol on OpenMM's Reference platform; virtual sites are placed by their parents.

    Args:
        system: The `openmm.System`.
        structures: (n, n_atoms, 3) nm.
    """
    import openmm

    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    energies = []
    for positions in structures.numpy():
        context.setPositions(np.ascontiguousarray(positions))
        context.computeVirtualSites()
        energies.append(context.getState(energy=True).getPotentialEnergy()._value)
    return tuple(energies)


def _command(folder: Path, arguments: dict[str, Any]) -> str:
    """The command line that does the same."""
    words = ["boltzflow", "init", str(folder)]
    for name, value in arguments.items():
        option = "--" + name.replace("_", "-")
        default = {"temperature": 300.0, "ph": 7.0}.get(name)
        if value is None or value is False or value == default:
            continue
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        words += [option] if value is True else [word for one in values for word in (option, str(one))]
    return shlex.join(words)
