"""`boltzflow analyze` and `reweight`: what an ensemble says."""

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from boltzflow.analysis.reweight import reweight as reweight_ensemble
from boltzflow.analysis.summary import summary
from boltzflow.analysis.verdict import HEADLINES, verdict
from boltzflow.cli.app import command
from boltzflow.cli.common import ReferenceRows, output_file, paths_of, reference_of, system_of
from boltzflow.ensemble import Ensemble
from boltzflow.errors import FormatError
from boltzflow.estimate import Estimate
from boltzflow.systems import load_system

__all__ = ["analyze", "reweight"]

logger = logging.getLogger(__name__)

File = Annotated[Path, typer.Argument(metavar="ENSEMBLE", help="HDF5 file of an ensemble.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@command("analyze")
def analyze(
    file: File,
    reference: Annotated[Path | None, typer.Option(help="Reference ensemble. [default: what ships]")] = None,
    reference_rows: ReferenceRows = None,
    no_reference: Annotated[bool, typer.Option("--no-reference", help="Look at the ensemble alone.")] = False,
    as_json: Json = False,
) -> None:
    """Diagnostics of an ensemble: effective samples, weight tail, log Z, costs; with a reference what it misses."""
    ensemble = Ensemble.load(file)
    other, paths = (None, None) if no_reference else _paths_of_reference(ensemble, reference, reference_rows)
    found = summary(ensemble, other, path_log_weights=paths)
    system = system_of(ensemble)
    if system is not None and found["normalisation"] == "absolute" and system.target.log_z is not None:
        found["log_z_exact"] = system.target.log_z
    if as_json:
        typer.echo(json.dumps({**found, "verdict": HEADLINES[verdict(found).level]}, indent=2))
        return
    typer.echo("\n".join(_lines(found, ensemble, file)))


@command("reweight")
def reweight(
    file: File,
    to: Annotated[str, typer.Option(metavar="SYSTEM", help="NAME@TEMPERATURE, another system of the same atoms, ...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HDF5 file.")] = Path("reweighted.h5"),
) -> None:
    """Weigh the same samples for another temperature or force field."""
    ensemble = Ensemble.load(file)
    system = load_system(to)
    shape = ensemble.samples["positions"].shape[1:] if "positions" in ensemble.samples else None
    if shape != (system.n_atoms, 3):
        raise FormatError(f"--to {to}: has {system.n_atoms} atoms, the samples of {file} have shape {shape}.")
    output = output_file(output)
    found = reweight_ensemble(ensemble, system.target)
    found.provenance.extra.update(
        system=system.name, source=system.source, temperature=system.temperature, measure=system.target.measure
    )
    found.save(output)
    typer.echo(f"{output}: {ensemble.target} -> {found.target}, ESS {found.ess():.0f} ({found.ess_fraction():.1%})")


def _paths_of_reference(
    ensemble: Ensemble, file: Path | None, rows: int | None
) -> tuple[Ensemble, Any] | tuple[None, None]:
    """Reference samples and their paths through the generator that made the ensemble, where both can be found."""
    if ensemble.normalisation == "none":
        return None, None
    system = system_of(ensemble)
    other = reference_of(ensemble, system, file, rows)
    try:
        return (None, None) if other is None else (other, paths_of(ensemble, other, system))
    except FormatError as error:
        if file is not None:
            raise FormatError(f"--reference {file}: {error}") from None
        logger.info("no comparison with a reference: %s", error)
        return None, None


def _lines(found: dict[str, Any], ensemble: Ensemble, file: Path) -> list[str]:
    seed = f"seed {found['seed']}, " if found["seed"] is not None else ""
    lines = [f"{file}: {found['system']}, n = {found['n']}, {seed}{found['device']}"]
    if found["interrupted"]:
        lines.append("  (interrupted before all samples were drawn)")
    rows = []
    if found["ess"] is not None:
        rows.append(("ESS (Kish)", f"{found['ess']:.0f} ({found['ess_fraction']:.1%})"))
    if found["pareto_k"] is not None:
        rows.append(("Pareto k-hat", f"{found['pareto_k']:.2f}"))
    for name, key in (("log Z", "log_z"), ("ELBO", "elbo"), ("EUBO", "eubo")):
        if found.get(key) is not None:
            note = "" if found["normalisation"] == "absolute" else f"  (relative to {ensemble.base})"
            rows.append((name, f"{_number(found, key)}{note}"))
    if "log_z_exact" in found:
        rows.append(("log Z, exact", f"{found['log_z_exact']:.4f}"))
    if found.get("forward_ess_fraction") is not None:
        rows.append(("forward ESS", f"{found['forward_ess_fraction']:.1%} of the reference"))
        rows.append(("EUBO - ELBO", f"{found['eubo_minus_elbo']:.4g}"))
    if found.get("log_z_two_sided") is not None:
        rows.append(
            ("log Z, BAR", f"{_number(found, 'log_z_two_sided')}  (both directions, overlap {found['overlap']:.2f})")
        )
    if found["mean_reduced_energy"] is not None:
        rows.append(("mean energy", f"{_number(found, 'mean_reduced_energy')} kT"))
    if found.get("bulk_ess") is not None:
        rows.append(("chains' ESS", f"{found['bulk_ess']:.0f} bulk, {found['tail_ess']:.0f} tail, of the energy"))
    rows.append(("evaluations", f"{found['n_energy']} energies, {found['n_force']} forces"))
    rows.append(("weight zero", f"{found['n_nonfinite']} infinite energies, {found['n_failed']} model failures"))
    rows.append(("time", f"{found['seconds']:.1f} s"))
    lines += [f"  {name:<14}{value}" for name, value in rows]
    # the same reason of several numbers is said once, and that chains have no log Z is no warning
    reasons = [text.partition(": ")[2] for text in found["warnings"] if found["normalisation"] != "none"]
    lines += [f"  warning: {reason}" for reason in dict.fromkeys(reasons)]
    return [*lines, f"  verdict: {verdict(found)}"]


def _number(found: dict[str, Any], key: str) -> str:
    """Value and error with the digits that the error allows."""
    return str(Estimate(found[key], found[f"{key}_error"], method="", n_effective=1.0, unit=""))
