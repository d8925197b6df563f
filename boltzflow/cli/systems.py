"""`boltzflow systems`: what ships."""

import json
from typing import Annotated

import typer

from boltzflow.cli.app import command
from boltzflow.systems import list_systems, load_system

__all__ = ["systems"]


@command("systems")
def systems(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the systems that ship: name, atoms, dimension, temperature, recipes, checkpoint."""
    found = {}
    for name in list_systems():
        system = load_system(name)
        found[name] = {
            "description": system.description,
            "atoms": getattr(system, "n_atoms", None),
            "dimension": system.dimension,
            "temperature": system.temperature,
            "recipes": system.recipes,
            "checkpoint": system.checkpoint_path is not None,
            "reference": system.has_reference,
        }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    width = max(map(len, found))
    typer.echo(f"{'name':<{width}}  {'atoms':>5} {'dim':>5} {'T / K':>7}  {'checkpoint':<10} {'reference':<9}  recipes")
    for name, s in found.items():
        kelvin = "-" if s["temperature"] is None else f"{s['temperature']:g}"
        marks = ["yes" if s[key] else "-" for key in ("checkpoint", "reference")]
        typer.echo(
            f"{name:<{width}}  {s['atoms'] or '-':>5} {s['dimension']:>5} {kelvin:>7}  {marks[0]:<10} "
            f"{marks[1]:<9}  {', '.join(s['recipes'])}"
        )
        typer.echo(f"    {s['description']}")
