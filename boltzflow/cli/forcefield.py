"""`boltzflow forcefield`: whether the torch force field is that of OpenMM, and how fast it is."""

import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from boltzflow._typing import Tensor
from boltzflow.cli.app import app, command
from boltzflow.cli.common import positive
from boltzflow.cli.forecast import BUSY
from boltzflow.errors import FormatError, UnsupportedForceError
from boltzflow.forcefield.parity import ENERGY_LIMIT, FORCE_LIMIT, SINGLE_LIMITS, Deviation, Parity, parity
from boltzflow.forcefield.speed import Speed, speeds
from boltzflow.preparation.build import minimise
from boltzflow.preparation.checks import atom_name
from boltzflow.preparation.readers import read_structure, read_system
from boltzflow.systems import cache_folder, load_system

__all__ = ["check"]

logger = logging.getLogger(__name__)

group = typer.Typer(help="Compare the torch force field with OpenMM, and measure it.", no_args_is_help=True)
app.add_typer(group, name="forcefield")


@dataclass(frozen=True)
class _Checked:
    """What is checked: a System, a structure, what evaluates it, and how its atoms are called."""

    name: str
    system: Any
    positions: Tensor
    atoms: tuple[str, ...]
    potential: torch.nn.Module | None = None


@command("check", of=group)
def check(
    what: Annotated[
        str, typer.Argument(metavar="SYSTEM", help="NAME, a folder, or a serialised openmm.System (.xml).")
    ],
    pdb: Annotated[
        Path | None,
        typer.Option(help="Structure for SYSTEM.xml. [default: SYSTEM.pdb or topology.pdb beside it]"),
    ] = None,
    frames: Annotated[int, typer.Option(help="Structures of each perturbation and each clash.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare every force with OpenMM's Reference platform, and measure every back-end; exit status 1 if one is off."""
    frames = positive("--frames", frames)
    checked = _read(what, pdb)
    *_, relaxed, _ = minimise(checked.system, checked.positions.numpy())
    positions = torch.from_numpy(relaxed)
    logger.info("comparing %s with OpenMM Reference ...", checked.name)
    found = parity(checked.system, positions, potential=checked.potential, frames=frames)
    logger.info("measuring every back-end on one thread ...")
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else math.nan
    measured = speeds(checked.system, positions)
    if as_json:
        typer.echo(json.dumps(_as_json(checked, found, measured, load), indent=2, allow_nan=False))
    else:
        for line in _lines(checked, found, measured, load):
            typer.echo(line)
    if not found.passed:
        raise typer.Exit(1)


def _read(what: str, pdb: Path | None) -> _Checked:
    path = Path(what)
    if path.suffix != ".xml":
        if pdb is not None:
            raise FormatError(f"--pdb {pdb}: is for a serialised System; {what} has a structure of its own.")
        return _of_folder(what)
    if pdb is None:
        beside = [path.with_suffix(".pdb"), path.with_name("topology.pdb")]
        pdb = next((file for file in beside if file.is_file()), None)
        if pdb is None:
            raise FormatError(f"{path}: no {beside[0].name} or topology.pdb beside it; name the structure with --pdb.")
    source = read_system(path, pdb)
    n_particles, names = source.system.getNumParticles(), tuple(atom_name(a) for a in source.topology.atoms())
    if n_particles != len(names):
        raise FormatError(
            f"{path}: has {n_particles} particles, but {pdb} has {len(names)} atoms; give matching files."
        )
    if not np.isfinite(source.positions).all():
        raise FormatError(f"{pdb}: some coordinates are not finite; the file is damaged.")
    return _Checked(path.name, source.system, torch.from_numpy(source.positions), names)


def _of_folder(what: str) -> _Checked:
    system = load_system(what)
    try:
        potential = system.potential  # with the parameters from the cache, if they are there
    except UnsupportedForceError:
        potential = None
    source = read_structure(system.folder / system.definition.topology)
    names = tuple(atom_name(atom) for atom in source.topology.atoms())
    return _Checked(system.name, system.openmm_system, torch.from_numpy(source.positions), names, potential)


def _lines(checked: _Checked, found: Parity, measured: tuple[Speed, ...], load: float) -> list[str]:
    first, *others = found.kinds
    lines = [
        f"{checked.name}: {len(checked.atoms)} atoms, {len(found.forces)} forces, float64 against OpenMM Reference",
        f"  structures: {first}, and {found.kinds[others[0]]} of each: {', '.join(others)}",
        "",
        f"  {'force':>5} {'group':>5}  {'class':<24} {'back-end':<9} {'|ΔU|/max(1,|U|)':>15} {'|ΔF|/(1+rms F)':>15}"
        "  worst atom",
    ]
    for force in found.forces:
        start = f"  {force.index:>5} {force.group:>5}  {force.kind:<24} {force.backend:<9}"
        if force.deviation is None:
            lines.append(f"{start} {force.reason}")
        else:
            lines.append(start + _numbers(force.deviation, checked, limited=True))
    for label, deviation in (("all", found.total), ("all, float32", found.single)):
        if deviation is not None:
            lines.append(f"  {label:<47}{_numbers(deviation, checked, limited=label == 'all')}")
    if any(force.deviation is not None and force.deviation.platform == "CPU" for force in found.forces):
        lines += [
            "",
            "  OpenMM's Reference platform misses pairs of atoms in this triclinic box: forces with a cutoff are",
            "  compared with its CPU platform, in single precision and without clashes "
            f"(limits {SINGLE_LIMITS[0]:g} and {SINGLE_LIMITS[1]:g})",
        ]
    if found.pme_offset is not None:
        lines += [
            "",
            "  PME is evaluated and compared as an Ewald sum; OpenMM's, at the System's tolerance, is "
            f"{found.pme_offset:+.3g} kJ/mol from it",
        ]
    lines += ["", *_speed_table(measured)]
    if load > BUSY:
        lines.append(f"  Measured while {load:.1f} processes wanted each core: faster on an idle machine.")
    return [*lines, "", *_verdict(found, cached=checked.potential is not None)]


def _numbers(deviation: Deviation, checked: _Checked, *, limited: bool) -> str:
    atom = "-" if deviation.atom is None else f"{checked.atoms[deviation.atom]} ({deviation.force_at})"
    return f" {deviation.energy:>15.1e} {deviation.force:>15.1e}  {atom}" + (
        "  FAILED" if limited and not deviation.passed else ""
    )


def _speed_table(measured: tuple[Speed, ...]) -> list[str]:
    batches = sorted({speed.batch for speed in measured})
    lines = [f"  {'conformations/s, batch':<26}" + "".join(f"{batch:>10}" for batch in batches)]
    for name, dtype in dict.fromkeys((speed.backend, speed.dtype) for speed in measured):
        cells = {s.batch: s.conformations_per_second for s in measured if (s.backend, s.dtype) == (name, dtype)}
        label = name if name.startswith("OpenMM") else f"{name} {dtype}"
        shown = "".join(f"{_count(cells[batch]) if batch in cells else '-':>10}" for batch in batches)
        lines.append(f"  {label:<26}{shown}")
    return lines


def _count(value: float) -> str:
    """Three digits, and thousands as such."""
    for limit, unit, name in ((1e3, 1.0, ""), (1e6, 1e3, " k"), (1e9, 1e6, " M")):
        if value < limit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def _verdict(found: Parity, *, cached: bool) -> list[str]:
    limits = f"{ENERGY_LIMIT:g} in the energy, {FORCE_LIMIT:g} in the force"
    n_compared = sum(force.deviation is not None for force in found.forces)
    if not found.passed:
        named = [f"{force.kind} (force {force.index})" for force in found.failed] or ["the sum of all forces"]
        lines = [f"FAILED: {', '.join(named)} beyond the limits ({limits})"]
        if cached and not found.failed:
            lines.append(f"each force alone is right: remove the parameters cached in {cache_folder() / 'forcefields'}")
        return lines
    lines = [f"passed: {n_compared} forces within the limits ({limits})"] if n_compared else []
    if found.unknown:
        lines.append(
            f"torch does not know {len(found.unknown)} of the forces: OpenMM has to evaluate this System, one "
            "conformation at a time"
        )
    return lines or ["nothing to compare: no force has an energy"]


def _as_json(checked: _Checked, found: Parity, measured: tuple[Speed, ...], load: float) -> dict[str, Any]:
    def plain(deviation: Deviation | None) -> dict[str, Any] | None:
        if deviation is None:
            return None
        atom = None if deviation.atom is None else checked.atoms[deviation.atom]
        # JSON has no infinity: null, with passed = false
        numbers = {key: v if math.isfinite(v := getattr(deviation, key)) else None for key in ("energy", "force")}
        return {**asdict(deviation), **numbers, "atom_name": atom, "passed": deviation.passed}

    return {
        "system": checked.name,
        "atoms": len(checked.atoms),
        "passed": found.passed,
        "energy_limit": ENERGY_LIMIT,
        "force_limit": FORCE_LIMIT,
        "structures": found.kinds,
        "forces": [{**asdict(force), "deviation": plain(force.deviation)} for force in found.forces],
        "total": plain(found.total),
        "float32": plain(found.single),
        "pme_offset": found.pme_offset,
        "speeds": [{**asdict(s), "conformations_per_second": s.conformations_per_second} for s in measured],
        "load": load if math.isfinite(load) else None,
    }
