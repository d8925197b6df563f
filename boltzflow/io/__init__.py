"""Files: HDF5 ensembles, run configurations, checkpoints; written atomically, checked when they are read."""

from boltzflow.io.atomic import atomic_path
from boltzflow.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, strip_checkpoint
from boltzflow.io.config import RunConfig, load_config, parse_config
from boltzflow.io.provenance import Provenance

__all__ = [
    "Checkpoint",
    "Provenance",
    "RunConfig",
    "atomic_path",
    "load_checkpoint",
    "load_config",
    "parse_config",
    "save_checkpoint",
    "strip_checkpoint",
]
