"""Files: HDF5 ensembles, run configurations, checkpoints, system folders; written atomically, checked when read."""

from boltzflow.io.atomic import atomic_path
from boltzflow.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, strip_checkpoint
from boltzflow.io.config import RunConfig, load_config, parse_config
from boltzflow.io.provenance import Provenance
from boltzflow.io.system_definition import SystemDefinition, read_definition
from boltzflow.io.system_folders import find_folder, list_systems, shipped_folder
from boltzflow.io.system_name import SystemName, read_name

__all__ = [
    "Checkpoint",
    "Provenance",
    "RunConfig",
    "SystemDefinition",
    "SystemName",
    "atomic_path",
    "find_folder",
    "list_systems",
    "load_checkpoint",
    "load_config",
    "parse_config",
    "read_definition",
    "read_name",
    "save_checkpoint",
    "shipped_folder",
    "strip_checkpoint",
]
