"""boltzflow: unbiased equilibrium ensembles and free energies from energy functions.

Names below are loaded on first use, so that `import boltzflow` is fast and needs neither OpenMM nor mdtraj.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Ensemble": "boltzflow.ensemble",
    "Estimate": "boltzflow.estimate",
    "Generator": "boltzflow.generators.generator",
    "Ledger": "boltzflow.run",
    "Run": "boltzflow.run",
    "Space": "boltzflow.state",
    "State": "boltzflow.state",
    "System": "boltzflow.systems",
    "Target": "boltzflow.targets.target",
    "cite": "boltzflow.citation",
    "init_system": "boltzflow.preparation.prepare:prepare",
    "list_systems": "boltzflow.systems",
    "load_config": "boltzflow.io.config",
    "load_system": "boltzflow.systems",
    "make_rng": "boltzflow.run",
}
_FOLDERS = (
    "analysis",
    "coordinates",
    "errors",
    "forcefield",
    "generators",
    "io",
    "networks",
    "objectives",
    "paths",
    "preparation",
    "simulation",
    "statistics",
    "systems",
    "targets",
    "testing",
    "training",
    "transitions",
)

__all__ = sorted([*_HOME, *_FOLDERS])


def __getattr__(name: str) -> Any:
    """Import a public name or subpackage on first use."""
    if name in _HOME:
        module, _, other_name = _HOME[name].partition(":")
        value = getattr(import_module(module), other_name or name)
    elif name in _FOLDERS:
        value = import_module(f"boltzflow.{name}")
    else:
        raise AttributeError(f"module 'boltzflow' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
