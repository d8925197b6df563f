"""`boltzflow cite`: the BibTeX of the methods that made a result."""

from typing import Annotated

import typer

from boltzflow.citation import cite as references
from boltzflow.cli.app import command

__all__ = ["cite"]


@command("cite")
def cite(
    what: Annotated[
        str | None, typer.Argument(metavar="ENSEMBLE|RUN|SYSTEM", help="A file, a folder or a name. [default: core]")
    ] = None,
) -> None:
    """Print the BibTeX of the methods that were used, as recorded in an ensemble, a run or a system."""
    typer.echo(references(what), nl=False)
