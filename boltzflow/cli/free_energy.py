"""`boltzflow free-energy`: between two states of an ensemble, or between two systems on the same atoms."""

import json
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from boltzflow.analysis.difference import SystemDifference
from boltzflow.analysis.free_energy import state_difference, states_report, unit_factor
from boltzflow.analysis.observables import collective_variable
from boltzflow.analysis.states import States, interval_states, parse_state, structure_states
from boltzflow.analysis.system_difference import system_difference
from boltzflow.cli.app import command
from boltzflow.cli.common import as_seed, find_trained, positive, run_folder
from boltzflow.ensemble import Ensemble
from boltzflow.errors import FormatError, UnitError
from boltzflow.systems import SystemFolder, load_system

__all__ = ["free_energy"]

logger = logging.getLogger(__name__)

STRUCTURES = {".pdb", ".pdb.gz", ".cif", ".gro", ".h5", ".ent"}
Unit = Literal["kT", "kJ/mol", "kcal/mol"]


@command("free-energy")
def free_energy(
    file: Annotated[Path | None, typer.Argument(metavar="[ENSEMBLE]", help="HDF5 file, for states.")] = None,
    cv: Annotated[
        str | None, typer.Option(help="phi, psi:2, torsion:4,6,8,14, distance:ALA2-N,NME3-C, rg, ...")
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="lo:hi of --cv (degrees for angles), or a structure file; once or twice.")
    ] = None,
    rmsd: Annotated[float | None, typer.Option(help="Structures: largest RMSD of a state, nm.")] = None,
    rmsd_atoms: Annotated[
        Literal["heavy", "backbone", "CA", "all"], typer.Option(help="Structures: what is superposed and compared.")
    ] = "heavy",
    nearest: Annotated[bool, typer.Option("--nearest", help="Structures: share overlapping states out.")] = False,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="SYSTEM[@T][,lambda=λ]", help="First system, or a run.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="SYSTEM[@T][,lambda=λ]", help="Second system, of the same atoms.")
    ] = None,
    method: Annotated[
        Literal["auto", "learned", "exp", "bar", "mbar"], typer.Option(help="Systems: how to go from one to the other.")
    ] = "auto",
    n: Annotated[int, typer.Option("-n", help="Systems: samples of every state.")] = 20_000,
    minutes: Annotated[float | None, typer.Option(help="Systems: stop after this time, with fewer samples.")] = None,
    chains: Annotated[int, typer.Option(help="Systems: independent ladders.")] = 32,
    burn_in: Annotated[int, typer.Option(help="Systems: sweeps left out at the start, and after adding states.")] = 200,
    max_states: Annotated[int, typer.Option(help="Systems: most states, those in between included.")] = 32,
    max_temperature: Annotated[
        float, typer.Option(help="Systems: of hot states, relative to the first system's.")
    ] = 1.8,
    seed: Annotated[int | None, typer.Option(help="Systems: random by default; recorded.")] = None,
    unit: Annotated[Unit, typer.Option(help="Of the answer.")] = "kT",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Free energy of a state minus that of a second one or of the rest; or of a system minus that of another one."""
    if from_ is None and to is None:
        if file is None:
            raise FormatError("free-energy: give an ENSEMBLE with --state, or two systems with --from and --to.")
        _between_states(
            Ensemble.load(file),
            cv,
            state or [],
            rmsd=rmsd,
            atoms=rmsd_atoms,
            nearest=nearest,
            unit=unit,
            as_json=as_json,
        )
        return
    if from_ is None or to is None:
        raise FormatError(f"free-energy: {'--from' if from_ is None else '--to'} is missing; give both systems.")
    if file is not None or cv is not None or state or rmsd is not None or nearest:
        raise FormatError(
            "free-energy: an ENSEMBLE, --cv, --state, --rmsd and --nearest are for states of one ensemble, --from and "
            "--to for two systems; give one or the other."
        )
    ends = [_system(name) for name in (from_, to)]
    temperatures = [system.temperature for system, _ in ends]
    if unit != "kT" and temperatures[0] != temperatures[1]:
        raise UnitError(
            f"--unit {unit}: the temperatures differ ({temperatures[0]:g} and {temperatures[1]:g} K), so that the "
            "difference of -log Z, each in its own kT, has no unit; leave --unit out."
        )
    found = system_difference(
        ends[0][0],
        ends[1][0],
        method=method,
        n=n,
        minutes=minutes,
        checkpoints=[path for _, path in ends],
        n_chains=positive("--chains", chains),
        n_burn_in=positive("--burn-in", burn_in),
        max_states=max_states,
        max_temperature=max_temperature,
        seed=as_seed(seed),
    )
    _print_systems(found, unit, temperatures[0], as_json=as_json)


def _system(name: str) -> tuple[SystemFolder, Path | None]:
    """A system, and the checkpoint of the run that names it."""
    folder = run_folder(Path(name))
    if (
        any((folder / file).is_file() for file in ("run.json", "checkpoint.pt"))
        and not (folder / "system.yaml").is_file()
    ):
        trained = find_trained(name)
        return trained.system, trained.path
    return load_system(name), None


def _between_states(
    ensemble: Ensemble,
    cv: str | None,
    state: list[str],
    *,
    rmsd: float | None,
    atoms: Any,
    nearest: bool,
    unit: Unit,
    as_json: bool,
) -> None:
    if not state:
        raise FormatError("free-energy: name a state with --state, an interval lo:hi of --cv or a structure file.")
    structures = [_is_structure(text) for text in state]
    if all(structures):
        if cv is not None:
            raise FormatError(f"--cv {cv}: states near structures have no other variable; leave it out.")
        if rmsd is None and not (nearest and len(state) == 2):
            raise FormatError("--rmsd: give the RMSD in nm up to which a sample belongs to a structure, e.g. 0.1.")
        states = structure_states(ensemble, state, radius=rmsd, atoms=atoms, nearest=nearest)
    elif any(structures):
        raise FormatError(f"--state {' --state '.join(state)}: expected intervals or structure files, not both.")
    else:
        if rmsd is not None or nearest:
            raise FormatError("--rmsd and --nearest are for states near structures; --state takes their files.")
        if cv is None:
            raise FormatError(f"--state {state[0]}: an interval of which variable? Name it with --cv, e.g. --cv phi.")
        states = _intervals(ensemble, cv, state)
    temperature = ensemble.temperature if unit != "kT" else None
    found = states_report(ensemble, states, unit=unit, temperature=temperature)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    estimate = state_difference(ensemble, states, unit=unit, temperature=temperature)
    suffix = "°" if states.unit == "rad" else f" {states.unit}" if states.unit and not all(structures) else ""
    words = [name if name == "rest" else f"{name}{suffix}" for name in states.names]
    if all(structures):
        within = "nearest" if rmsd is None else f"within {rmsd:g} nm"
        typer.echo(f"F({words[0]}) - F({words[1]}) = {estimate}   ({states.variable}, {within})")
    else:
        typer.echo(f"F({cv} in {words[0]}) - F({words[1]}) = {estimate}")
    for row, name in zip(found["states"], words, strict=True):
        typer.echo(f"  {name:<14} population {row['population']:.4g}, {row['n']} samples")
    typer.echo(f"  error: {found['method']}")


def _is_structure(text: str) -> bool:
    return Path(text).is_file() or any(text.lower().endswith(suffix) for suffix in STRUCTURES)


def _intervals(ensemble: Ensemble, cv: str, state: list[str]) -> States:
    """States named as they were given, in degrees for angles."""
    variable = collective_variable(ensemble, cv)
    states = interval_states(variable, [parse_state(text, degrees=variable.periodic) for text in state])
    names = (state[0], "rest" if len(state) == 1 else state[1])
    return States(names, states.members, states.variable, states.unit)


def _print_systems(found: SystemDifference, unit: Unit, temperature: float, *, as_json: bool) -> None:
    factor = unit_factor(unit, temperature=temperature)
    estimate = found.estimate.scaled(factor, unit)
    if as_json:
        values = found.as_dict() | {
            "delta_f": estimate.value,
            "error": estimate.error,
            "interval_95": list(estimate.interval()),
            "unit": unit,
        }
        typer.echo(json.dumps(values, indent=2))
        return
    typer.echo(f"F({found.names[1]}) - F({found.names[0]}) = {estimate}")
    typer.echo(f"  method        {found.method}: {estimate.method}")
    for row in found.states:
        if "lambda" in row:
            independent = f"{row['n_independent']:.0f} independent, R-hat {row['r_hat']:.3f}"
            lam = row.get("alchemical_lambda", row["lambda"])
            typer.echo(f"  λ = {lam:<9.4g} {row['n']} samples, {independent}")
        else:
            typer.echo(
                f"  {row['state']:<13} {row['n']} samples, {row['ess']:.0f} effective, k-hat {row['pareto_k']:.2f}"
            )
    if found.overlap is not None:
        neighbours = [found.overlap[k, k + 1] for k in range(len(found.overlap) - 1)]
        typer.echo(f"  overlap       {', '.join(f'{o:.2f}' for o in neighbours)} between neighbours")
    for note in found.diagnostics["notes"]:
        typer.echo(f"  note          {note}")
    typer.echo(
        f"  cost          {found.ledger.n_energy()} energies, {found.ledger.n_force()} of them with force, "
        f"{found.seconds:.0f} s; seed {found.seed}"
    )
