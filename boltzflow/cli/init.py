"""`boltzflow init`: a system folder from a molecule's files, or from a sequence."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from boltzflow.cli.app import command
from boltzflow.errors import UnsupportedForceError
from boltzflow.systems import System

__all__ = ["init"]


@command("init")
def init(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="Folder to make; its name is the system's.")],
    pdb: Annotated[Path | None, typer.Option(help="PDB or (.cif) mmCIF file.")] = None,
    prmtop: Annotated[Path | None, typer.Option(help="Amber topology; with --inpcrd.")] = None,
    inpcrd: Annotated[Path | None, typer.Option(help="Amber coordinates.")] = None,
    psf: Annotated[Path | None, typer.Option(help="CHARMM psf; with --parameters and --coordinates.")] = None,
    parameters: Annotated[list[Path] | None, typer.Option(help="CHARMM top, par or str file; may be repeated.")] = None,
    coordinates: Annotated[Path | None, typer.Option(help="PDB or .crd file, for --psf.")] = None,
    system: Annotated[Path | None, typer.Option(help="Serialised openmm.System; with --pdb.")] = None,
    sequence: Annotated[str | None, typer.Option(help='Residues, such as "ACE ALA ALA NME".')] = None,
    forcefield: Annotated[
        list[str] | None,
        typer.Option(
            help="OpenMM XML, shipped or a path; may be repeated. [default: amber14-all.xml and implicit/obc2.xml]"
        ),
    ] = None,
    implicit_solvent: Annotated[
        str | None, typer.Option(help="For --prmtop, --psf: HCT, OBC1, OBC2, GBn, GBn2 or none. [default: OBC2]")
    ] = None,
    temperature: Annotated[str, typer.Option(help="Kelvin; 25C is degrees Celsius.")] = "300",
    add_hydrogens: Annotated[
        bool, typer.Option("--add-hydrogens", help="Add missing hydrogens, and terminal oxygens (OXT).")
    ] = False,
    ph: Annotated[float, typer.Option(help="For --add-hydrogens and --sequence.")] = 7.0,
    remove_solvent: Annotated[bool, typer.Option("--remove-solvent", help="Take out waters and free ions.")] = False,
    restraint_radius: Annotated[
        float | None, typer.Option(help="Several molecules: free distance, nm. [default: 1.5, or 0.5 more than now]")
    ] = None,
    alchemical: Annotated[
        str | None, typer.Option(metavar="SELECTION", help="MDTraj selection of atoms that NAME@lambda=... switches.")
    ] = None,
) -> None:
    """Make a system folder from exactly one of --pdb, --prmtop, --psf, --system and --sequence."""
    from boltzflow.preparation import prepare

    made = prepare(
        name,
        pdb=pdb,
        prmtop=prmtop,
        inpcrd=inpcrd,
        psf=psf,
        parameters=parameters or (),
        coordinates=coordinates,
        system=system,
        sequence=sequence,
        forcefield=forcefield or (),
        implicit_solvent=implicit_solvent,
        temperature=temperature,
        add_hydrogens=add_hydrogens,
        ph=ph,
        remove_solvent=remove_solvent,
        restraint_radius=restraint_radius,
        alchemical=alchemical,
    )
    typer.echo(_summary(name, made))


def _summary(folder: Path, system: System) -> str:
    from boltzflow.preparation.checks import fragments
    from boltzflow.preparation.readme import net_charge, next_commands

    n_molecules = len(fragments(system.n_atoms, list(system.bonds)))
    forces = Counter(type(force).__name__ for force in system.openmm_system.getForces())
    try:
        system.potential  # noqa: B018
        where = "torch: all forces known"
    except UnsupportedForceError as error:
        where = f"OpenMM only: {error}"
    molecules = "1 molecule" if n_molecules == 1 else f"{n_molecules} molecules"
    lines = [
        f"{folder}: {system.description}",
        f"  size         {system.n_atoms} atoms, {system.topology.n_residues} residues, {molecules}; "
        f"dimension {system.dimension}",
        f"  net charge   {net_charge(system.openmm_system):+g} e",
        f"  temperature  {system.temperature:g} K",
        f"  forces       {', '.join(name if n == 1 else f'{n} {name}' for name, n in forces.items())}",
        f"  back-end     {where}",
        *([f"  alchemical   {len(system.alchemical_atoms)} atoms"] if system.alchemical_atoms else []),
        "next:",
        *(f"  {line}" for line in next_commands(system, folder)),
    ]
    return "\n".join(lines)
