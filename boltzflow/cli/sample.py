"""`boltzflow sample`: weighted samples from a trained Generator, kept as they come."""

import logging
from pathlib import Path
from typing import Annotated

import torch
import typer

from boltzflow.cli.app import command
from boltzflow.cli.common import as_device, as_seed, describe_device, find_trained, output_file, positive
from boltzflow.io.provenance import file_sha256
from boltzflow.training import local_device
from boltzflow.workflow import SAVE_EVERY, sample_to_file

__all__ = ["sample"]

logger = logging.getLogger(__name__)


@command("sample")
def sample(
    what: Annotated[
        str,
        typer.Argument(metavar="SYSTEM|RUN", help="A system (NAME or NAME@TEMPERATURE), a run folder, or its file."),
    ],
    n: Annotated[int | None, typer.Option("-n", help="Number of samples. [default: as the run says]")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="HDF5 file.")] = Path("ensemble.h5"),
    recipe: Annotated[
        str | None, typer.Option(help="Of the system: whose shipped checkpoint is used, or pilot run.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[int | None, typer.Option(help="Random by default; recorded.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per shard. [default: as the run says]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Top up the file, if it is there.")] = False,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between writes of the file.")] = SAVE_EVERY,
) -> None:
    """Draw weighted samples from a trained generator; kill it at any moment and continue with --resume."""
    if n is not None:
        positive("-n", n)
    if batch_size is not None:
        positive("--batch-size", batch_size)
    seed = as_seed(seed)
    where = local_device(as_device(device))
    output = output_file(output)
    trained = find_trained(what, recipe=recipe)
    config = trained.checkpoint.config.sampling
    system = trained.system
    generator = system.generator_from(trained.checkpoint, dtype=getattr(torch, config.dtype), device=where)
    n = config.n if n is None else n
    logger.info("sampling %s: n = %d, %s, on %s", system.name, n, config.dtype, describe_device(where))
    ensemble = sample_to_file(
        generator,
        system.target.to(where),
        output,
        n=n,
        seed=config.seed if seed is None else seed,
        batch_size=config.batch_size if batch_size is None else batch_size,
        extra={
            "system": system.name,
            "source": system.source,
            "temperature": system.temperature,
            "measure": system.target.measure,
            "checkpoint": str(trained.path.resolve()),
            "checkpoint_sha256": file_sha256(trained.path),
        },
        resume=resume,
        save_every=save_every,
    )
    if ensemble is None:  # another process writes and reports
        return
    if ensemble.provenance.interrupted:
        typer.echo(f"interrupted: {output} holds the {len(ensemble)} of {n} samples that were finished", err=True)
        raise typer.Exit(130)
    ess = f"ESS {ensemble.ess():.0f} ({ensemble.ess_fraction():.1%})"
    typer.echo(f"{output}: {len(ensemble)} samples of {system.name}, {ess}, {ensemble.provenance.seconds:.1f} s")
