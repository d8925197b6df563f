"""`boltzflow report`: an HTML page that explains an ensemble."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from boltzflow.analysis.observables import collective_variable
from boltzflow.analysis.report import report as write_report
from boltzflow.analysis.states import parse_state
from boltzflow.citation import cite
from boltzflow.cli.app import command
from boltzflow.cli.common import ReferenceRows, checkpoint_of, output_file, paths_of, reference_of, system_of
from boltzflow.ensemble import Ensemble
from boltzflow.errors import FormatError
from boltzflow.io.checkpoint import load_checkpoint
from boltzflow.systems import AnalyticSystem, SystemFolder

__all__ = ["report"]

logger = logging.getLogger(__name__)


@command("report")
def report(
    file: Annotated[Path, typer.Argument(metavar="ENSEMBLE", help="HDF5 file of an ensemble.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file.")] = Path("report.html"),
    reference: Annotated[Path | None, typer.Option(help="Reference ensemble. [default: what ships]")] = None,
    reference_rows: ReferenceRows = None,
    no_reference: Annotated[bool, typer.Option("--no-reference", help="Show the ensemble alone.")] = False,
    cv: Annotated[list[str] | None, typer.Option(help="phi, psi:2, torsion:4,6,8,14, rg, ...; give it again.")] = None,
    state: Annotated[list[str] | None, typer.Option(help="lo:hi of the first --cv, degrees for angles.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the page. [default: the system]")] = None,
) -> None:
    """Write one HTML page: can the weights be trusted, what was run, maps, free energies, structures."""
    started = time.perf_counter()
    if reference is not None and no_reference:
        raise FormatError("--reference and --no-reference exclude each other; give one of them.")
    if state and not cv:
        raise FormatError("--state: is an interval of a collective variable; name it with --cv.")
    ensemble = Ensemble.load(file)
    output = output_file(output)
    states = []
    if state:
        periodic = collective_variable(ensemble, cv[0]).periodic
        states = [parse_state(text, degrees=periodic) for text in state]
    system = system_of(ensemble)
    other = None if no_reference else reference_of(ensemble, system, reference, reference_rows)
    write_report(
        ensemble,
        output,
        reference=other,
        path_log_weights=None if other is None else _paths(ensemble, other, system),
        cvs=cv or (),
        states=states,
        title=title,
        details=_details(system),
        training=_training(ensemble, system),
        energy=_energy(system),
        bibtex=cite(ensemble),
    )
    size, seconds = output.stat().st_size / 1e6, time.perf_counter() - started
    typer.echo(f"{output}: {size:.1f} MB, {seconds:.1f} s; open it in a browser")


def _paths(ensemble: Ensemble, reference: Ensemble, system: SystemFolder | None) -> Any:
    """Paths of the reference through the generator, where there is one; without them there is no forward ESS."""
    if ensemble.normalisation == "none":
        return None
    try:
        return paths_of(ensemble, reference, system)
    except FormatError as error:
        logger.info("no forward ESS: %s", error)
        return None


def _details(system: SystemFolder | None) -> dict[str, str]:
    if system is None:
        return {}
    if isinstance(system, AnalyticSystem):
        log_z = system.target.log_z
        return {
            "description": system.description,
            **({} if log_z is None else {"exact log Z": f"{log_z:.4f}"}),
            "dimension": f"{system.dimension} degrees of freedom",
            "energy": f"boltzflow.targets.{system.definition.target}, in closed form",
            "measure": system.target.measure,
        }
    return {
        "description": system.description,
        "atoms and dimension": f"{system.n_atoms} atoms, {system.dimension} degrees of freedom",
        "sector": system.target.sector_description,
        "measure": system.target.measure,
    }


def _energy(system: SystemFolder | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """The energy of the coordinates where these are two on one line, since then it can be drawn."""
    if not isinstance(system, AnalyticSystem):
        return None
    fields = list(system.target.fields.values())
    if [(space.kind, space.shape) for space in fields] != [("line", (2,))]:
        return None
    return lambda x: system.target.reduced_energy(system.target.state(torch.from_numpy(x))).numpy()


def _training(ensemble: Ensemble, system: SystemFolder | None) -> dict[str, Any] | None:
    path = None if system is None else checkpoint_of(ensemble, system)
    return None if path is None else dict(load_checkpoint(path, system).cost)
