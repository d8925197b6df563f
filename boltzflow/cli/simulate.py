"""`boltzflow simulate`: a reference ensemble by parallel tempering, latent HMC or molecular dynamics."""

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from boltzflow.analysis.verdict import UNMIXED_R_HAT
from boltzflow.cli.app import command
from boltzflow.cli.common import as_device, as_seed, find_trained, output_file
from boltzflow.ensemble import Ensemble
from boltzflow.errors import FormatError, UnknownNameError
from boltzflow.io.config import RunConfig, SimulationConfig, load_config
from boltzflow.reference import SAVE_EVERY
from boltzflow.reference import simulate as simulate_to_file
from boltzflow.systems import SystemFolder, load_system

__all__ = ["simulate"]


@command("simulate")
def simulate(
    what: Annotated[
        str,
        typer.Argument(metavar="SYSTEM|RUN.yaml", help="NAME, NAME@TEMPERATURE, a folder, or a run with `simulation`."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="HDF5 file. (default: objective.data of the run; reference.h5 in the data folder that the "
            "system's system.yaml names; reference.h5)",
        ),
    ] = None,
    method: Annotated[
        Literal["pt", "md", "neutra"] | None,
        typer.Option(help="Parallel tempering, OpenMM MD, or HMC in latent coordinates of --moves. (default: pt)"),
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", help="Frames over all chains and kept temperatures. (default: 20000)")
    ] = None,
    chains: Annotated[
        int | None, typer.Option(help="Independent ladders or replicas. (default: 32; fewer above 250 dimensions)")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Sweeps, or MD steps, between frames. (default: 5 or 1000; by size above 250 dimensions)"),
    ] = None,
    burn_in: Annotated[
        int | None,
        typer.Option(help="Sweeps, or MD steps, left out. (default: 500 or 10000; 1000 above 250 dimensions)"),
    ] = None,
    max_temperature: Annotated[
        float | None, typer.Option(help="PT: of the hottest replica, relative to the system's. (default: 1.8)")
    ] = None,
    keep: Annotated[
        Literal["cold", "all"] | None,
        typer.Option(help="PT: frames of the system's temperature, or of all, weighted by MBAR. (default: cold)"),
    ] = None,
    moves: Annotated[
        str | None,
        typer.Option(help="PT: a generator proposes moves: a run, a checkpoint, or a system that has one. (none)"),
    ] = None,
    moves_every: Annotated[int | None, typer.Option(help="PT: sweeps between learned moves. (default: 5)")] = None,
    moves_proposals: Annotated[
        int | None, typer.Option(help="PT: i-SIR among so many proposals. (default: one, by Metropolis' rule)")
    ] = None,
    moves_training: Annotated[
        int | None, typer.Option(help="PT: training steps of the generator per sweep of the burn-in. (default: 0)")
    ] = None,
    device: Annotated[str | None, typer.Option(help="PT: cpu, cuda, cuda:1, ... (default: cpu)")] = None,
    seed: Annotated[int | None, typer.Option(help="Random by default; recorded.")] = None,
    shards: Annotated[
        int | None, typer.Option(help="Parts of the chains, which processes share. (default: the number of processes)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a simulation that was killed.")] = False,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between writes.")] = SAVE_EVERY,
    as_json: Annotated[bool, typer.Option("--json", help="Print diagnostics as one JSON object.")] = False,
) -> None:
    """Sample a reference ensemble; kill it at any moment and continue with --resume. Options override RUN.yaml."""
    config = _configured(what)
    given = {"method": method, "n": n, "chains": chains, "stride": stride, "burn_in": burn_in, "device": device}
    given |= {"max_temperature": max_temperature, "keep": keep, "seed": as_seed(seed)}
    of_moves = {"moves_every": moves_every, "moves_proposals": moves_proposals, "moves_training": moves_training}
    given |= {"moves": moves, "shards": shards, **of_moves}
    for name in ("n", "chains", "stride", "burn_in", "shards", *of_moves):
        if given[name] is not None and given[name] < 1:
            option = "-n" if name == "n" else f"--{name.replace('_', '-')}"
            raise FormatError(f"{option}: expected a number >= 1, got {given[name]}.")
    if max_temperature is not None and max_temperature < 1:
        raise FormatError(f"--max-temperature: expected a factor >= 1, got {max_temperature}.")
    settings = config.simulation.model_copy(update={k: v for k, v in given.items() if v is not None})
    as_device(settings.device)
    for name, value in of_moves.items():
        if value is not None and (settings.moves is None or settings.method != "pt"):
            raise FormatError(
                f"--{name.replace('_', '-')} {value}: there are no learned moves; name their generator by --moves, and "
                "use method pt."
            )
    if settings.moves is not None:
        settings = settings.model_copy(update={"moves": _checkpoint_file(settings.moves)})
    system = load_system(config.system)
    output = output_file(output or _default_output(config, system))
    ensemble = simulate_to_file(system, settings, path=output, resume=resume, save_every=save_every)
    if ensemble is None:  # another process writes and reports
        return
    _report(ensemble, output, as_json=as_json)
    if ensemble.provenance.interrupted:
        raise typer.Exit(130)


def _configured(what: str) -> RunConfig:
    if Path(what).suffix not in {".yaml", ".yml"}:
        return RunConfig(system=what)
    config = load_config(what)
    if "simulation" not in config.model_fields_set:
        raise FormatError(
            f"{what}: has no section `simulation`; give the system itself, e.g. `boltzflow simulate {config.system}`, "
            f"or add the section (keys: {', '.join(SimulationConfig.model_fields)})."
        )
    return config


def _checkpoint_file(moves: str) -> str:
    path = Path(moves)
    if not path.is_file() or path.suffix in {".yaml", ".yml"}:
        try:
            path = find_trained(moves).path
        except UnknownNameError as error:
            raise UnknownNameError(f"--moves {moves}: neither a run, a checkpoint nor a system; {error}") from None
    return str(path.resolve())


def _default_output(config: RunConfig, system: SystemFolder) -> Path:
    """Where the next command looks for it."""
    if config.objective.data is not None:
        return Path(config.objective.data)
    return Path("reference.h5") if system.definition.data is None else system.data_folder / "reference.h5"


def _report(ensemble: Ensemble, output: Path, *, as_json: bool) -> None:
    spent = ensemble.provenance
    diagnostics = spent.extra["simulation"]
    relabelled, outside = spent.extra["n_relabelled"], spent.n_nonfinite
    series = diagnostics["series"]["reduced_energy"]
    r_hat = series["split_r_hat"]
    if as_json:
        found = {"system": ensemble.target, "n": len(ensemble), "output": str(output), "seconds": spent.seconds}
        costs = {"n_energy": spent.n_energy, "n_force": spent.n_force, "ess": ensemble.ess()}
        costs |= {"n_relabelled": relabelled, "n_outside_sector": outside}
        costs["chains_agree"] = None if math.isnan(r_hat) else r_hat <= UNMIXED_R_HAT
        series |= {k: v if math.isfinite(v) else None for k, v in series.items()}  # JSON has no NaN
        typer.echo(json.dumps({**found, **costs, **diagnostics}, indent=2))
        return
    stopped = " (interrupted)" if spent.interrupted else ""
    typer.echo(f"{output}: {len(ensemble)} frames of {ensemble.target}{stopped}, {spent.seconds:.0f} s")
    typer.echo(f"  mean reduced energy  {ensemble.mean_reduced_energy()}")
    apart = ": the chains disagree, do not use the frames; sample longer" if r_hat > UNMIXED_R_HAT else ""
    typer.echo(f"  R-hat of the energy  {'unknown, too few frames' if math.isnan(r_hat) else f'{r_hat:.4f}'}{apart}")
    at = "" if ensemble.temperature is None else f" at {ensemble.temperature:g} K"
    typer.echo(f"  effective frames     {series['n_effective']:.0f}{at}, by the energy")
    if relabelled or outside:
        typer.echo(f"  labelling sector     {relabelled} frames relabelled into it, {outside} outside with weight zero")
    if "mbar" in diagnostics:
        typer.echo(f"  weights by MBAR      {ensemble.ess():.0f} of {len(ensemble)} (Kish), before correlation in time")
    if "swap_rates" in diagnostics:
        typer.echo(f"  swap rates           {' '.join(f'{rate:.2f}' for rate in diagnostics['swap_rates'])}")
        typer.echo(f"  round trips          {diagnostics['round_trips']}")
    learned = [k for k, name in enumerate(diagnostics.get("kernels", ())) if name in ("LearnedMove", "ISIR")]
    if learned:
        rate = diagnostics["acceptance"][learned[0]][0]
        each = rate * diagnostics["n_sweeps"] / diagnostics["moves"]["every"]
        accepted = f"{rate:.2%} accepted{at}, {each:.1f} on every ladder"
        typer.echo(f"  learned moves        {accepted}{'' if each >= 1 else ': of no use here, leave them out'}")
