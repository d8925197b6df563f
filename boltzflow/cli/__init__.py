"""The command line: one subcommand per file, thin over the library."""

from boltzflow.cli.app import main

__all__ = ["main"]
