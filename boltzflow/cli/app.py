"""The `boltzflow` command: its subcommands, and errors as one line."""

import functools
import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from boltzflow.errors import BoltzflowError
from boltzflow.training import started_processes

__all__ = ["app", "main"]

app = typer.Typer(
    name="boltzflow",
    help="Unbiased equilibrium ensembles and free energies from energy functions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would take "[default: ...]" for markup and swallow it
)


def command(name: str, *, of: typer.Typer = app) -> Callable[[Callable], Callable]:
    """Register a subcommand; what goes wrong in it is printed as one line, unless --debug was given.

    Args:
        name: Of the subcommand.
        of: The group that it belongs to.
    """

    def register(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except KeyboardInterrupt:
                typer.echo("interrupted", err=True)
                raise typer.Exit(130) from None
            except BrokenPipeError:
                # the reader of a pipe, such as head, has left: nothing to tell it, and nothing to flush at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(0) from None
            except (BoltzflowError, ValueError, TypeError, OSError) as error:
                # torchrun prints the traceback of the process that failed first
                if logging.getLogger("boltzflow").isEnabledFor(logging.DEBUG) or started_processes().size > 1:
                    raise
                # these are written for the user; others may be defects of the program
                hint = "" if isinstance(error, BoltzflowError | OSError) else " (boltzflow --debug shows where)"
                typer.echo(f"error: {' '.join(str(error).split())}{hint}", err=True)
                raise typer.Exit(2) from None

        return of.command(name)(run)

    return register


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"boltzflow {importlib.metadata.version('boltzflow')}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Warnings and results only.")] = False,
) -> None:
    """Unbiased equilibrium ensembles and free energies from energy functions."""
    quiet = quiet or not started_processes().is_first
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s" if debug else "%(message)s"))
    logger = logging.getLogger("boltzflow")
    logger.handlers[:] = [handler]
    logger.setLevel(level)


def main() -> None:
    """Entry point of the `boltzflow` command."""
    # registered here, so that each command file can import `command`
    from boltzflow.cli import (  # noqa: F401
        analyze,
        cite,
        forcefield,
        forecast,
        free_energy,
        init,
        report,
        sample,
        simulate,
        systems,
        train,
    )

    if started_processes().size == 1:
        app()
    else:
        from torch.distributed.elastic.multiprocessing.errors import record

        record(app)()
