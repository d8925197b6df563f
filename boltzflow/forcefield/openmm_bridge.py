"""OpenMM as a potential: the oracle of the torch force field, and the fallback for forces that it does not know."""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
import weakref
from typing import Any

import numpy as np
import torch
from torch import nn

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.errors import BoltzflowError
from boltzflow.forcefield.cached_force import energy_with_force
from boltzflow.forcefield.constraints import read_constraints

__all__ = ["OpenMMPotential", "WorkerError"]

_log = logging.getLogger(__name__)


class WorkerError(BoltzflowError, RuntimeError):
    """A worker process raised, or died."""


class _Evaluator:
    """One Context on one thread."""

    def __init__(self, xml: str, platform: str) -> None:
        import openmm

        self._system = openmm.XmlSerializer.deserialize(xml)
        properties = {"Threads": "1"} if platform == "CPU" else {}
        self._context = openmm.Context(
            self._system,
            openmm.VerletIntegrator(0.001),
            openmm.Platform.getPlatformByName(platform),
            properties,
        )
        self._sites = [k for k in range(self._system.getNumParticles()) if self._system.isVirtualSite(k)]
        used = self._context.getPlatform().getName()
        if used != platform:
            raise RuntimeError(f"asked OpenMM for platform {platform!r}, got {used!r}")

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return energies (n,) and forces (n, n_atoms, 3) in float64; rows with a non-finite position are NaN."""
        energies = np.full(len(positions), np.nan)
        forces = np.full(positions.shape, np.nan)
        # The CPU platform raises for NaN, and has given such a row energy zero in other versions.
        for row in np.flatnonzero(np.isfinite(positions).all(axis=(1, 2))):
            self._context.setPositions(positions[row])
            self._context.computeVirtualSites()
            state = self._context.getState(getEnergy=True, getForces=True)
            energies[row] = state.getPotentialEnergy()._value
            forces[row] = state.getForces(asNumpy=True)._value
            forces[row, self._sites] = 0.0  # OpenMM has handed them on to the parents, and leaves them standing
        return energies, forces


def _work(connection: multiprocessing.connection.Connection, xml: str, platform: str) -> None:
    """Answer chunks of positions until the parent closes its end of the pipe, which it also does by dying."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            evaluate = _Evaluator(xml, platform)
            while True:
                connection.send(evaluate(connection.recv()))
        except EOFError:
            return
        except Exception:
            connection.send(traceback.format_exc())


class _Pool:
    """Worker processes, each with a pipe; every worker has at most one chunk in hand, so that no pipe fills up."""

    def __init__(self, n_workers: int, xml: str, platform: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.processes, self.connections = [], []
        for _ in range(n_workers):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, xml, platform), daemon=True)
            process.start()
            there.close()
            self.processes.append(process)
            self.connections.append(here)

    def map(self, chunks: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        results: list = [None] * len(chunks)
        waiting = list(range(len(chunks)))[::-1]
        busy: dict[multiprocessing.connection.Connection, int] = {}
        idle = list(self.connections)
        while waiting or busy:
            while waiting and idle:
                connection = idle.pop()
                busy[connection] = waiting.pop()
                # A worker that died has closed its end; what it had to say is still to be read.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.send(chunks[busy[connection]])
            for connection in multiprocessing.connection.wait(list(busy)):
                results[busy.pop(connection)] = self._receive(connection)
                idle.append(connection)
        return results

    def _receive(self, connection: multiprocessing.connection.Connection) -> tuple[np.ndarray, np.ndarray]:
        index = self.connections.index(connection)
        process = self.processes[index]
        try:
            reply = connection.recv()
        except (EOFError, ConnectionResetError):
            process.join(5)
            raise WorkerError(
                f"OpenMM worker {index} (process {process.pid}) died with exit code {process.exitcode}; "
                "a script that starts workers needs an 'if __name__ == \"__main__\":' guard, "
                "and each worker needs memory for one Context"
            ) from None
        if isinstance(reply, str):
            raise WorkerError(f"OpenMM worker {index} (process {process.pid}) raised:\n{reply}")
        return reply

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(1)
            if process.is_alive():
                process.kill()
                process.join()


class OpenMMPotential(nn.Module):
    """A System evaluated by OpenMM: positions (batch, n_atoms, 3) in nm -> energies (batch,) in kJ/mol.

    The same face as `ForceField`, for any force that OpenMM knows, one conformation at a time. Gradients use the force
    of the forward pass; OpenMM has no second derivatives.

    Virtual sites are placed as by `ForceField`. A periodic System is evaluated in its default box.

    With several workers, use it as a context manager or call `close`; workers also end with this process.

    Example:
        >>> from boltzflow import load_system
        >>> system = load_system("alanine_dipeptide")
        >>> with OpenMMPotential(system.openmm_system, platform="Reference") as potential:
        ...     energy, force = potential.energy_and_force(system.positions[None])
        >>> print(f"{energy.item():.2f} kJ/mol", tuple(force.shape))
        -173.17 kJ/mol (1, 22, 3)
    """

    def __init__(self, system: Any, *, n_workers: int = 1, platform: str | None = None, chunk_size: int = 64) -> None:
        """Copy the System and choose the platform.

        Args:
            system: an ``openmm.System``.
            n_workers: number of processes with one Context on one thread each; 0 or 1 evaluates in this process.
            platform: name of an OpenMM platform; None measures Reference and CPU on this System and takes the faster.
            chunk_size: most conformations in one message to a worker.

        Raises:
            ValueError: a platform that this OpenMM does not have, or a negative number.
        """
        import openmm

        super().__init__()
        if n_workers < 0 or chunk_size < 1:
            raise ValueError(f"expected n_workers >= 0 and chunk_size >= 1; found {n_workers} and {chunk_size}")
        available = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
        if platform is not None and platform not in available:
            raise ValueError(f"OpenMM has no platform {platform!r} here; available: {', '.join(available)}")
        self.n_atoms = system.getNumParticles()
        self.constraints = read_constraints(system)
        self.n_workers = n_workers
        self.chunk_size = chunk_size
        self._xml = openmm.XmlSerializer.serialize(system)
        self.platform = platform or self._faster([name for name in ("Reference", "CPU") if name in available])
        self._forget()

    def _faster(self, platforms: list[str]) -> str:
        """Measure one energy and force on each platform, on one thread."""
        side = int(np.ceil(self.n_atoms ** (1 / 3)))
        grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[: self.n_atoms]
        positions = (0.2 * grid)[None].astype(float)
        seconds = {}
        for platform in platforms:
            evaluate = _Evaluator(self._xml, platform)
            evaluate(positions)
            start, n = time.perf_counter(), 0
            while n < 3 or (n < 100 and time.perf_counter() - start < 0.05):
                evaluate(positions)
                n += 1
            seconds[platform] = (time.perf_counter() - start) / n
        fastest = min(seconds, key=seconds.get)
        measured = ", ".join(f"{name} {1e6 * second:.0f} us" for name, second in seconds.items())
        _log.info("OpenMM platform %s (%s for one energy and force)", fastest, measured)
        return fastest

    def forward(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Float64[Tensor, "batch"]:
        """Return the energy of each conformation.

        Args:
            positions: in nm.

        Returns:
            Energies in kJ/mol, float64. A conformation with a non-finite position has energy NaN.

        Raises:
            WorkerError: a worker raised (with its traceback) or died.
        """
        return energy_with_force(self, positions)

    def differentiable(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Float64[Tensor, "batch"]:
        """Raise RuntimeError: there are no second derivatives."""
        raise RuntimeError("OpenMM has no second derivatives (create_graph=True); use boltzflow.forcefield.from_openmm")

    def energy_and_force(
        self, positions: Float[Tensor, "batch n_atoms 3"]
    ) -> tuple[Float64[Tensor, "batch"], Float[Tensor, "batch n_atoms 3"]]:
        """Return energies (kJ/mol, float64) and forces (kJ/mol/nm, dtype of the positions), both detached."""
        if positions.ndim != 3 or positions.shape[1:] != (self.n_atoms, 3):
            raise ValueError(f"positions must be (batch, {self.n_atoms}, 3) in nm; found {tuple(positions.shape)}")
        energies, forces = self._evaluate(positions.detach().to("cpu", torch.float64).numpy())
        energy = torch.from_numpy(energies).to(positions.device)
        return energy, torch.from_numpy(forces).to(positions.device, positions.dtype)

    def _evaluate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.n_workers < 2:
            if self._evaluator is None:
                self._evaluator = _Evaluator(self._xml, self.platform)
            return self._evaluator(positions)
        if len(positions) == 0:
            return np.zeros(0), np.zeros(positions.shape)
        if self._pool is None:
            self._pool = _Pool(self.n_workers, self._xml, self.platform)
            self._finalizer = weakref.finalize(self, self._pool.close)
        size = min(self.chunk_size, -(-len(positions) // self.n_workers))
        try:
            parts = self._pool.map([positions[start : start + size] for start in range(0, len(positions), size)])
        except BaseException:  # replies may still be on their way: the next call starts with new workers
            self.close()
            raise
        energies, forces = zip(*parts, strict=True)
        return np.concatenate(energies), np.concatenate(forces)

    def close(self) -> None:
        """End the workers; a later evaluation starts new ones."""
        if self._finalizer is not None:
            self._finalizer()
        self._forget()

    def _forget(self) -> None:
        self._evaluator: _Evaluator | None = None
        self._pool: _Pool | None = None
        self._finalizer: weakref.finalize | None = None

    def __enter__(self) -> "OpenMMPotential":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out Contexts and processes, which are made anew where they are needed."""
        return {**self.__dict__, "_evaluator": None, "_pool": None, "_finalizer": None}

    def extra_repr(self) -> str:
        """Name the platform and the workers."""
        return f"n_atoms={self.n_atoms}, platform={self.platform!r}, n_workers={self.n_workers}"
