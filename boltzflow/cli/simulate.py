"""`boltzflow simulate`: a reference ensemble by parallel tempering or molecular dynamics."""

import json
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from tqdm.auto import tqdm

from boltzflow.cli.app import command
from boltzflow.cli.common import as_device, as_seed, describe_device, output_file, positive
from boltzflow.ensemble import Ensemble
from boltzflow.errors import FormatError
from boltzflow.run import new_seed
from boltzflow.simulation import ChainResult, ParallelTempering, molecule_kernels, series_diagnostics
from boltzflow.systems import System, load_system
from boltzflow.workflow import chains_to_ensemble

__all__ = ["simulate"]

logger = logging.getLogger(__name__)


@command("simulate")
def simulate(
    what: Annotated[str, typer.Argument(metavar="SYSTEM", help="NAME, NAME@TEMPERATURE or a folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HDF5 file.")] = Path("reference.h5"),
    method: Annotated[Literal["pt", "md"], typer.Option(help="Parallel tempering, or plain OpenMM MD.")] = "pt",
    n: Annotated[int, typer.Option("-n", help="Frames over all chains.")] = 20_000,
    chains: Annotated[int, typer.Option(help="Independent chains.")] = 32,
    stride: Annotated[int, typer.Option(help="PT sweeps, or MD steps, between frames. [default: 5 or 1000]")] = 0,
    burn_in: Annotated[int, typer.Option(help="PT sweeps, or MD steps, left out. [default: 500 or 10000]")] = 0,
    max_temperature: Annotated[float, typer.Option(help="PT: of the hottest replica, relative to the system's.")] = 1.8,
    device: Annotated[str, typer.Option(help="PT: cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[int | None, typer.Option(help="Random by default; recorded.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print diagnostics as one JSON object.")] = False,
) -> None:
    """Sample a reference ensemble; Ctrl-C keeps the frames that are finished."""
    n_frames = math.ceil(positive("-n", n) / positive("--chains", chains))
    for option, value in (("--stride", stride), ("--burn-in", burn_in)):
        if value < 0:
            raise FormatError(f"{option}: expected a number >= 0 (0 = default), got {value}.")
    system = load_system(what)
    output = output_file(output)
    seed = new_seed() if as_seed(seed) is None else seed
    if method == "md":
        from boltzflow.simulation.molecular_dynamics import molecular_dynamics

        logger.info("simulating %s: molecular dynamics, %d frames of %d chains", system.name, n_frames, chains)
        result = molecular_dynamics(
            system.openmm_system,
            system.positions,
            temperature=system.temperature,
            n_frames=n_frames,
            stride=stride or 1000,
            n_replicas=chains,
            n_equilibration=burn_in or 10_000,
            seed=seed,
        )
    else:
        where = as_device(device)
        result = _parallel_tempering(
            system,
            where,
            n_frames=n_frames,
            n_chains=chains,
            stride=stride or 5,
            burn_in=burn_in or 500,
            max_temperature=max_temperature,
            seed=seed,
        )
    ensemble = chains_to_ensemble(system, result, method=method, seed=seed, wanted=n_frames * chains)
    ensemble.save(output)
    _report(ensemble, result, output, as_json=as_json)
    if ensemble.provenance.interrupted:
        raise typer.Exit(130)


def _parallel_tempering(
    system: System,
    device: torch.device,
    *,
    n_frames: int,
    n_chains: int,
    stride: int,
    burn_in: int,
    max_temperature: float,
    seed: int,
) -> ChainResult:
    if max_temperature < 1:
        raise FormatError(f"--max-temperature: expected a factor >= 1, got {max_temperature}.")
    # with ΔT/T = 2/√d about a quarter of the exchanges of d quadratic degrees of freedom succeed: fastest round trips
    n_rungs = 1 + math.ceil(math.log(max_temperature) / (2 / math.sqrt(system.dimension)))
    temperatures = (
        [system.temperature * max_temperature ** (k / (n_rungs - 1)) for k in range(n_rungs)]
        if n_rungs > 1
        else [system.temperature]
    )
    target = system.target.to(device)
    simulation = ParallelTempering(
        target,
        target.state(system.positions[None].to(device)),
        temperatures=temperatures,
        n_chains=n_chains,
        kernels=[kernel.to(device) for kernel in molecule_kernels(system.bonds, system.elements)],
        seed=seed,
    )
    logger.info(
        "simulating %s: parallel tempering, %d ladders of %d temperatures up to %.0f K, on %s",
        system.name,
        n_chains,
        n_rungs,
        temperatures[-1],
        describe_device(device),
    )
    simulation.burn_in(burn_in)
    parts: list[ChainResult] = []
    with tqdm(total=n_frames * n_chains, desc="simulate", unit="frame", disable=not sys.stderr.isatty()) as bar:
        try:
            while (done := sum(len(part.frames) for part in parts)) < n_frames:
                records = min(20, n_frames - done)
                parts.append(simulation.run(records, sweeps_per_record=stride))
                bar.update(records * n_chains)
        except KeyboardInterrupt:
            if not parts:
                raise
    energies = torch.cat([part.reduced_energies for part in parts])
    return replace(
        parts[-1],
        samples={name: torch.cat([part.samples[name] for part in parts]) for name in parts[0].samples},
        reduced_energies=energies,
        frames=torch.cat([part.frames for part in parts]),
        observables={"reduced_energy": energies},
        diagnostics=simulation.diagnostics() | {"series": series_diagnostics({"reduced_energy": energies})},
        seconds=sum(part.seconds for part in parts),
    )


def _report(ensemble: Ensemble, result: ChainResult, output: Path, *, as_json: bool) -> None:
    series = result.diagnostics["series"]["reduced_energy"]
    relabelled, outside = ensemble.provenance.extra["n_relabelled"], ensemble.provenance.n_nonfinite
    if as_json:
        found = {"system": ensemble.target, "n": len(ensemble), "output": str(output), "seconds": result.seconds}
        costs = {"n_energy": ensemble.provenance.n_energy, "n_force": ensemble.provenance.n_force}
        costs |= {"n_relabelled": relabelled, "n_outside_sector": outside}
        typer.echo(json.dumps({**found, **costs, **result.diagnostics}, indent=2, default=str))
        return
    stopped = " (interrupted)" if ensemble.provenance.interrupted else ""
    typer.echo(f"{output}: {len(ensemble)} frames of {ensemble.target}{stopped}, {result.seconds:.0f} s")
    typer.echo(f"  mean reduced energy  {ensemble.mean_reduced_energy()}")
    typer.echo(f"  R-hat of the energy  {series['split_r_hat']:.4f}")
    typer.echo(f"  effective frames     {series['n_effective']:.0f}")
    if relabelled or outside:
        typer.echo(f"  labelling sector     {relabelled} frames relabelled into it, {outside} outside with weight zero")
    if "swap_rates" in result.diagnostics:
        typer.echo(f"  swap rates           {' '.join(f'{rate:.2f}' for rate in result.diagnostics['swap_rates'])}")
        typer.echo(f"  round trips          {result.diagnostics['round_trips']}")
