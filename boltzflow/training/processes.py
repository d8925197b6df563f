"""The processes of a run: one, or as many as torchrun started."""

import atexit
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed

from boltzflow._typing import Float, Tensor
from boltzflow.errors import CheckpointMismatchError

__all__ = ["Processes", "local_device", "processes", "started_processes"]

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes that work on one run, seen from one of them.

    Args:
        rank: Number of this process, from 0.
        size: How many there are.

    Example:
        >>> Processes().gather(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def gather(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "size_k n"]:
        """Rows of all processes in the order of their ranks, the same on every one."""
        if self.size == 1:
            return rows
        found = [torch.empty_like(rows) for _ in range(self.size)]
        torch.distributed.all_gather(found, rows.contiguous())
        return torch.cat(found)

    def gather_objects(self, value: T) -> list[T]:
        """A picklable value of every process in the order of their ranks, the same on every one."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def collect(self, value: T) -> list[T]:
        """As `gather_objects` on the first process; elsewhere nothing."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.is_first else None
        torch.distributed.gather_object(value, found)
        return found or []

    def agree(self, value: T) -> T:
        """The value of the first process, on every one."""
        if self.size == 1:
            return value
        found = [value]
        torch.distributed.broadcast_object_list(found)
        return found[0]

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def require_same(self, what: str, value: object) -> None:
        """Check that all processes work on the same thing.

        Raises:
            CheckpointMismatchError: If they do not, as when the nodes of a job read different files.
        """
        found = self.gather_objects(value)
        if any(other != found[0] for other in found):
            listed = "; ".join(f"process {rank}: {other}" for rank, other in enumerate(found))
            raise CheckpointMismatchError(
                f"the {self.size} processes of this run do not have the same {what} ({listed}). Give all nodes the "
                "same files."
            )


def started_processes() -> Processes:
    """What torchrun says in the environment, without a connection; a single process elsewhere."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return Processes(int(os.environ["RANK"]), size) if size > 1 and "RANK" in os.environ else Processes()


def processes() -> Processes:
    """The processes of this run, connected: gloo on CPUs, NCCL between GPUs."""
    if not torch.distributed.is_initialized():
        found = started_processes()
        if found.size == 1:
            return found
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(_disconnect)
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def _disconnect() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def local_device(device: torch.device | str) -> torch.device:
    """Where this process computes: of "cuda", the GPU of its number on this node.

    Args:
        device: As configured.

    Raises:
        ValueError: If there are fewer GPUs than processes on this node.
    """
    device = torch.device(device)
    if device.type != "cuda" or started_processes().size == 1:
        return device
    local, n_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(f"device {device}: names one GPU for all processes; under torchrun say cuda.")
    if local >= n_gpus:
        raise ValueError(
            f"device cuda: process {local} of this node has no GPU of its own, there are {n_gpus}; start "
            f"torchrun with --nproc-per-node {n_gpus}."
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
