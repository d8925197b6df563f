"""`boltzflow sample`: weighted samples from a trained Generator, kept as they come."""

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm.auto import tqdm

from boltzflow.cli.app import command
from boltzflow.cli.common import as_device, describe_device, find_trained, output_file, positive, sha256
from boltzflow.ensemble import Ensemble
from boltzflow.errors import NonFiniteEnergyError
from boltzflow.generators.generator import Generator
from boltzflow.run import new_seed
from boltzflow.targets.target import Target

__all__ = ["sample", "sample_to_file"]

logger = logging.getLogger(__name__)

MAX_FAILED_FRACTION = 0.01
SAVE_EVERY = 30.0


@command("sample")
def sample(
    what: Annotated[str, typer.Argument(metavar="SYSTEM|RUN", help="A system (NAME or NAME@TEMPERATURE), or a run.")],
    n: Annotated[int | None, typer.Option("-n", help="Number of samples. [default: as the run says]")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="HDF5 file.")] = Path("ensemble.h5"),
    recipe: Annotated[str | None, typer.Option(help="Recipe whose shipped checkpoint is used.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[int | None, typer.Option(help="Random by default; recorded.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per shard. [default: as the run says]")] = None,
) -> None:
    """Draw weighted samples from a trained generator."""
    if n is not None:
        positive("-n", n)
    if batch_size is not None:
        positive("--batch-size", batch_size)
    where = as_device(device)
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
            "temperature": system.temperature,
            "checkpoint": str(trained.path.resolve()),
            "checkpoint_sha256": sha256(trained.path),
        },
    )
    if ensemble.provenance.interrupted:
        typer.echo(f"interrupted: {output} holds the {len(ensemble)} of {n} samples that were finished", err=True)
        raise typer.Exit(130)
    ess = f"ESS {ensemble.ess():.0f} ({ensemble.ess_fraction():.1%})"
    typer.echo(f"{output}: {len(ensemble)} samples of {system.name}, {ess}, {ensemble.provenance.seconds:.1f} s")


def sample_to_file(
    generator: Generator,
    target: Target,
    path: Path,
    *,
    n: int,
    seed: int | None = None,
    batch_size: int = 1000,
    extra: dict | None = None,
) -> Ensemble:
    """Sample shard by shard into a file; an interrupt or an error keeps the shards that are finished.

    Args:
        generator: Draws the samples.
        target: What the weights are for.
        path: HDF5 file; written every half minute and at the end, each time complete.
        n: Number of samples.
        seed: Random by default; recorded.
        batch_size: Rows per shard.
        extra: Goes into the provenance.

    Returns:
        The ensemble; `provenance.interrupted` says whether it has all n rows.

    Raises:
        KeyboardInterrupt: If it came before the first shard was finished.
        NonFiniteEnergyError: If the model failed in too many rows; the file is written nevertheless.
    """
    seed = new_seed() if seed is None else seed
    shards: list[Ensemble] = []
    saved = time.monotonic()
    interrupted = False
    with tqdm(total=n, desc="sample", unit="", disable=not sys.stderr.isatty()) as bar:
        try:
            for shard in generator.sample_shards(n, target, seed, batch_size=batch_size):
                shards.append(shard)
                bar.update(len(shard))
                if time.monotonic() - saved > SAVE_EVERY:
                    _save(shards, path, extra, interrupted=True)
                    saved = time.monotonic()
        except BaseException as error:
            if shards:
                _save(shards, path, extra, interrupted=True)
            if not shards or not isinstance(error, KeyboardInterrupt):
                raise
            interrupted = True
    ensemble = _save(shards, path, extra, interrupted=interrupted)
    failed = ensemble.provenance.n_failed / len(ensemble)
    if failed > MAX_FAILED_FRACTION:
        raise NonFiniteEnergyError(
            f"{path} is written, but the model gave NaN or inf in {failed:.2%} of its rows, more than "
            f"{MAX_FAILED_FRACTION:.0%}: every estimate is biased. Train further, or sample in float64."
        )
    return ensemble


def _save(shards: list[Ensemble], path: Path, extra: dict | None, *, interrupted: bool) -> Ensemble:
    ensemble = Ensemble.merge(shards)
    ensemble.provenance = replace(
        ensemble.provenance, interrupted=interrupted, extra={**ensemble.provenance.extra, **(extra or {})}
    )
    ensemble.save(path)
    return ensemble
