"""What `system.yaml` says of a system."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boltzflow.errors import FormatError, nearest
from boltzflow.io.alchemical import AlchemicalDefinition

__all__ = ["SystemDefinition", "read_definition"]


class SystemDefinition(BaseModel):
    """What `system.yaml` says; paths are relative to its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    temperature: float | None = Field(None, gt=0, description="K; None for an analytic target.")
    target: str | None = Field(
        None, description="Analytic energy, by its name in boltzflow.targets; None = a molecule."
    )
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the analytic target.")
    system: str = Field("system.xml", description="Serialised openmm.System.")
    topology: str = Field("topology.pdb", description="Topology, with a relaxed structure that fixes the sector.")
    data: str | None = Field(None, description="Folder of references and checkpoints; None = the one that ships.")
    recipe: str | None = Field(None, description="Recipe that made checkpoint.pt.")
    forcefield: tuple[str, ...] = Field((), description="Its parameters, by the names of OpenMM files.")
    constraint_measure: Literal["mass-metric", "stiff", "rigid"] = Field(
        "mass-metric", description="What the density is with respect to if the System has constraints."
    )
    alchemical: AlchemicalDefinition | None = Field(None, description="Atoms that NAME@lambda=... switches.")
    energies: tuple[float, ...] = Field((), description="OpenMM energies of `probe_positions`, kJ/mol; verified.")


def read_definition(folder: Path) -> SystemDefinition:
    """Read the `system.yaml` of a folder, and see that what a molecule needs is there.

    Args:
        folder: Of the system.

    Raises:
        FormatError: If it has an unknown key or a wrong value, or is no YAML; if a molecule has no temperature, or a
            file that it names is missing.
    """
    path = folder / "system.yaml"
    definition = _read(path)
    if definition.target is not None:
        return definition
    if definition.temperature is None:
        raise FormatError(f"{path}: key 'temperature' is missing; a molecule has one, in K.")
    missing = [file for file in (definition.system, definition.topology) if not (folder / file).is_file()]
    if missing:
        raise FormatError(f"system folder {folder}: {' and '.join(missing)} missing, named by its system.yaml.")
    return definition


def _read(path: Path) -> SystemDefinition:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return SystemDefinition.model_validate(values)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not valid YAML: {error}") from None
    except ValidationError as error:
        messages = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            hint = f"; {nearest(key, SystemDefinition.model_fields)}" if item["type"] == "extra_forbidden" else ""
            messages.append(f"key {key!r}: {item['msg']}, got {item['input']!r}{hint}")
        raise FormatError(f"{path}: {'; '.join(messages)}") from None
