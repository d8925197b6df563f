"""The README of a system folder: definition, provenance, and what to type next."""

import hashlib
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from boltzflow.preparation.readers import Source
from boltzflow.preparation.solvent import solvent_counts
from boltzflow.systems import System

__all__ = ["net_charge", "next_commands", "readme_text"]


def net_charge(system: Any) -> float:
    """Sum of the charges of all NonbondedForces of an openmm.System, e.

    Args:
        system: The `openmm.System`.
    """
    total = 0.0
    for force in system.getForces():
        if type(force).__name__ == "NonbondedForce":
            total += sum(force.getParticleParameters(k)[0]._value for k in range(force.getNumParticles()))
    return round(total, 4) + 0.0


def next_commands(system: System, folder: Path) -> list[str]:
    """What to type to get from a new system to a report.

    Args:
        system: With its recipes.
        folder: Where it is, or will be.
    """
    recipe = folder / "recipes" / f"{system.definition.recipe}.yaml"
    trains = "generator" in yaml.safe_load((system.folder / "recipes" / recipe.name).read_text(encoding="utf-8"))
    commands = [f"boltzflow forecast {shlex.quote(str(folder))}"]
    if trains:
        commands += [f"boltzflow {verb} {shlex.quote(str(recipe))}" for verb in ("simulate", "train")]
        run = shlex.quote(f"runs/{folder.name}-{recipe.stem}")
        commands.append(f"boltzflow sample {run} -n 20000 -o ensemble.h5")
    else:
        commands.append(f"boltzflow simulate {shlex.quote(str(recipe))} -o ensemble.h5")
    if system.alchemical_atoms:
        ends = [shlex.quote(f"{folder}@lambda={lam}") for lam in (1, 0)]
        commands.append(f"boltzflow free-energy --from {ends[0]} --to {ends[1]}")
    return [*commands, "boltzflow report ensemble.h5 -o report.html"]


def readme_text(system: System, source: Source, *, folder: Path, command: str, versions: dict[str, str]) -> str:
    """Describe a system.

    Args:
        system: As written.
        source: What it was made from.
        folder: Where it will be.
        command: What makes it again.
        versions: Of the packages that made it.
    """
    topology = source.topology
    residues = Counter(residue.name for residue in topology.residues())
    forces = Counter(type(force).__name__ for force in source.system.getForces())
    counts = solvent_counts(topology)
    rows = {
        "energy": f"{source.definition}; no cutoff, no constraints",
        "temperature": f"{system.temperature:g} K",
        "atoms": f"{system.n_atoms} in {topology.getNumResidues()} residues in {topology.getNumChains()} chain(s)",
        "residues": ", ".join(f"{n} {name}" for name, n in residues.items()),
        "dimension": f"{system.dimension} degrees of freedom without rigid motions",
        "net charge": f"{net_charge(source.system):+g} e",
        "forces": ", ".join(name if n == 1 else f"{n} {name}" for name, n in forces.items()),
    }
    if system.alchemical_atoms:
        rows["alchemical atoms"] = (
            f"{len(system.alchemical_atoms)}, `{system.definition.alchemical.atoms}`; λ from 1 to 0 switches off their "
            f"interactions with the rest, `{folder}@lambda=0.5`"
        )
    if counts:
        rows["water and ions"] = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    files = [f"| `{path.name}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" for path in source.files]
    parts = [
        f"# {system.name}\n\n{system.description}.\n",
        "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items()) + "\n",
        "`topology.pdb` holds the minimised structure, to the thousandth of an ångström. It fixes the handedness of "
        "stereo-centres and the labelling of\nidentical hydrogens: the density is zero elsewhere.\n",
        "## How it was made\n\n```bash\n" + command + "\n```\n",
        "\n".join(f"- {note}" for note in source.notes) + "\n",
    ]
    if files:
        parts.append("| input | SHA-256 |\n|---|---|\n" + "\n".join(files) + "\n")
    parts += [
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n",
        "## Next\n\n```bash\n" + "\n".join(next_commands(system, folder)) + "\n```\n",
    ]
    return "\n".join(parts)
