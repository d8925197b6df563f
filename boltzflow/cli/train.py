"""`boltzflow train`: train a Generator in a run folder."""

import json
import logging
import shlex
from pathlib import Path
from typing import Annotated

import torch
import typer

from boltzflow.cli.app import command
from boltzflow.cli.common import as_device, describe_device, run_folder
from boltzflow.errors import FormatError, UnknownNameError
from boltzflow.io.config import load_config
from boltzflow.systems import load_system
from boltzflow.training import local_device, started_processes
from boltzflow.workflow import train as train_in_folder

__all__ = ["train"]

logger = logging.getLogger(__name__)


@command("train")
def train(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN.yaml",
            help="File of the run: system, generator, objective, training, ...; every system has some in recipes/.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Run folder. (default: runs/RUN, or runs/SYSTEM-RUN for a recipe of your own)"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, e.g. training.steps=5000; give it again.")
    ] = None,
    initial: Annotated[Path | None, typer.Option(help="Checkpoint of an earlier stage, of the same generator.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its folder.")] = False,
) -> None:
    """Train a generator; kill it at any moment and continue with --resume."""
    if run.suffix not in {".yaml", ".yml"}:
        raise _not_a_run(run)
    config = load_config(run, overrides=set_)
    if "simulation" in config.model_fields_set and not config.model_fields_set & {"generator", "objective", "training"}:
        raise FormatError(f"{run}: holds a simulation and nothing to train; run it with `boltzflow simulate {run}`.")
    device = local_device(as_device(config.training.device))
    folder = run_folder(run) if output is None else output
    system = load_system(config.system)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    words = ["boltzflow", "train", str(run), *(["-o", str(output)] if output else [])]
    words += ["--initial", str(initial)] if initial else []
    words += [word for override in set_ or [] for word in ("--set", override)] + ["--resume"]
    if not config.generator.is_piloted:
        logger.info(
            "training %s for %d steps in %s, on %s", system.name, config.training.steps, folder, describe_device(device)
        )
    logger.info("to continue after an interruption: %s", shlex.join(words))
    train_in_folder(config, folder, resume=resume, initial=initial)
    if not started_processes().is_first:
        return
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    if config.generator.is_piloted:
        typer.echo(f"{folder / 'checkpoint.pt'}: {last['step']} levels, found in {last['seconds']:.0f} s")
    else:
        # a loss that was not finite is none, and its step was left out
        loss = f"loss {last['loss']:.4g}" if last.get("loss") is not None else "no finite loss since the line before"
        done = f"{last['step']} steps in {last['seconds']:.0f} s, {loss}"
        typer.echo(f"{folder / 'checkpoint.pt'}: {done}")
    typer.echo(f"sample from it: boltzflow sample {shlex.quote(str(folder))} -n 20000 -o ensemble.h5")


def _not_a_run(run: Path) -> FormatError:
    """What to give instead of a system, a run folder or something unknown."""
    if (run / "run.json").is_file():
        return FormatError(f"{run}: is a run folder; give the YAML file of the run, with -o {run} --resume to go on.")
    try:
        system = load_system(run)
    except (UnknownNameError, FormatError):
        return FormatError(f"{run}: expected the YAML file of a run; systems and their recipes: `boltzflow systems`.")
    recipes = ", ".join(str(system.folder / "recipes" / f"{name}.yaml") for name in system.recipes)
    return FormatError(
        f"{run}: is a system; give the YAML file of a run: {recipes or 'it has no recipes, see docs/training.md'}."
    )
