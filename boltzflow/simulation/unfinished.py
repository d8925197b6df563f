"""What a simulation that was killed goes on from: one file beside its output, gone when it is finished."""

import logging
import pickle
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from boltzflow.errors import CheckpointMismatchError
from boltzflow.io.atomic import atomic_path
from boltzflow.io.config import SimulationConfig
from boltzflow.run import new_seed

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["Unfinished"]

logger = logging.getLogger(__name__)


class Unfinished:
    """The file OUTPUT.unfinished: settings, system, and everything that the simulation remembers.

    Args:
        output: File of the ensemble; None = nothing is written.
        system: What is simulated.
        settings: Completed; the seed may be open.
        every: Seconds between writes.
        shard: Number of a part that has a file of its own, OUTPUT.SHARD.unfinished.
    """

    def __init__(
        self,
        output: str | Path | None,
        system: "System",
        settings: SimulationConfig,
        *,
        every: float,
        shard: int | None = None,
    ) -> None:
        name = output if shard is None else f"{output}.{shard}"
        self.path = None if output is None else Path(f"{name}.unfinished")
        self.every = every
        self._identity = {"system": system.name, "fingerprint": system.fingerprint, "temperature": system.temperature}
        self._identity |= settings.model_dump(mode="json")
        self._saved = self._began = time.monotonic()
        self._seconds = 0.0

    @property
    def seed(self) -> int:
        """Of the simulation: that of the settings, else that of the file that was read, else a random one."""
        if self._identity["seed"] is None:
            self._identity["seed"] = new_seed()
        return self._identity["seed"]

    def set_seed(self, seed: int) -> None:
        """The seed that all shards of a simulation share, where the settings leave it open."""
        self._identity["seed"] = seed

    @staticmethod
    def settings_of(path: Path) -> dict[str, Any]:
        """System and settings of the simulation of a file."""
        return dict(_read(path)["identity"])

    @property
    def seconds(self) -> float:
        """Time that was spent, that before interruptions included."""
        return self._seconds + time.monotonic() - self._began

    @property
    def exists(self) -> bool:
        """Whether there is a file."""
        return self.path is not None and self.path.exists()

    @property
    def is_due(self) -> bool:
        """Whether it is time to write."""
        return self.path is not None and time.monotonic() - self._saved >= self.every

    def write(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write the state, made only now, if there is a file to write."""
        if self.path is not None:
            with atomic_path(self.path) as temporary:
                torch.save({"identity": self._identity, "seconds": self.seconds, "state": state()}, temporary)
            self._saved = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The state to go on from; None if there is no file.

        Raises:
            CheckpointMismatchError: If it is damaged, or of another simulation.
        """
        if not self.exists:
            return None
        content = _read(self.path)
        if self._identity["seed"] is None:
            self._identity["seed"] = content["identity"]["seed"]
        changed = [
            f"{name}: {content['identity'].get(name)} there, {value} here"
            for name, value in self._identity.items()
            if content["identity"].get(name) != value
        ]
        if changed:
            raise CheckpointMismatchError(
                f"{self.path}: is of another simulation ({'; '.join(changed)}). Resume with the same settings, or name "
                "another output."
            )
        self._seconds = content["seconds"]
        logger.info("going on after %.0f s", self._seconds)
        return content["state"]

    def remove(self) -> None:
        """Remove the file: the simulation is finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointMismatchError(f"{path}: damaged; remove it, and the simulation starts anew.") from error
