"""`boltzflow forecast`: what a system costs on this machine, what to expect, and the next command."""

import json
import logging
import textwrap
from dataclasses import asdict
from typing import Annotated

import typer

from boltzflow.cli.app import command
from boltzflow.cli.common import as_device, describe_device
from boltzflow.preparation.forecast import ForceTiming, Forecast, RecipeForecast
from boltzflow.preparation.forecast import forecast as forecast_of
from boltzflow.systems import load_system

__all__ = ["forecast"]

logger = logging.getLogger(__name__)

BUSY = 1.2
"""Load per processor from which other work disturbs the measurement."""


@command("forecast")
def forecast(
    what: Annotated[str, typer.Argument(metavar="SYSTEM", help="NAME, NAME@TEMPERATURE or a folder.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure forces, sweeps and training steps on this machine for some seconds; print hours for each recipe."""
    where = as_device(device)
    system = load_system(what)
    logger.info("measuring %s on %s ...", system.name, describe_device(where))
    found = forecast_of(system, device=where)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    for line in _lines(found):
        typer.echo(line)


def _lines(found: Forecast) -> list[str]:
    molecules = f", {found.molecules} molecules" if found.molecules > 1 else ""
    lines = [
        f"{found.system}: {found.atoms} atoms, {found.residues} residues{molecules}, {found.dimension} dimensions, "
        f"{found.rotatable_torsions} rotatable bonds",
        f"  energies by          {_backend(found)}",
        f"  energy with force    {_best(found.forces)}",
        f"  one at a time        {_duration(min(t.seconds for t in found.forces if t.batch == 1))}",
        f"  memory               {_size(found.conformation_bytes)} per conformation of a simulation",
        "",
        f"  {'recipe':<20} {'simulate':>10} {'train':>10} {'frames':>10} {'run folder':>11}",
    ]
    lines += [_row(recipe) for recipe in found.recipes]
    lines += ["", *(line for sentence in found.expectation for line in _wrapped(sentence)), ""]
    if found.load > BUSY:
        lines += [f"  Measured while {found.load:.1f} processes wanted each core: faster on an idle machine.", ""]
    lines += [f"next: {found.recommended}"]
    return lines


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, 100, initial_indent="  ", subsequent_indent="  ")


def _backend(found: Forecast) -> str:
    return f"{found.backend}, because {found.reason}" if found.reason else f"the torch force field, {found.backend}"


def _best(forces: tuple[ForceTiming, ...]) -> str:
    """The fastest of every dtype, and what one thread makes of float64."""
    shown = []
    for dtype in dict.fromkeys(t.dtype for t in forces):
        t = min((t for t in forces if t.dtype == dtype), key=lambda t: t.seconds)
        threads = f"{t.threads} thread{'s' if t.threads > 1 else ''}"
        shown.append(f"{_duration(t.seconds)} ({dtype}, batch {t.batch}, {threads})")
    return ", ".join(shown)


def _row(recipe: RecipeForecast) -> str:
    cells = (
        _duration(recipe.simulation_seconds),
        _duration(recipe.training_seconds),
        _size(recipe.file_bytes),
        _size(recipe.checkpoint_bytes),
    )
    return f"  {recipe.name:<20} {cells[0]:>10} {cells[1]:>10} {cells[2]:>10} {cells[3]:>11}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for limit, unit, name in ((1e-3, 1e-6, "µs"), (1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 3600:.3g} h"


def _size(n_bytes: int | None) -> str:
    if n_bytes is None:
        return "-"
    for limit, unit, name in ((1e6, 1e3, "kB"), (1e9, 1e6, "MB")):
        if n_bytes < limit:
            return f"{n_bytes / unit:.3g} {name}"
    return f"{n_bytes / 1e9:.3g} GB"
