"""Plain OpenMM molecular dynamics: the independent check of every other sampler."""

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openmm
import torch
from openmm import unit

from boltzflow._typing import Tensor
from boltzflow.run import Ledger, new_seed
from boltzflow.simulation.diagnostics import series_diagnostics
from boltzflow.simulation.result import ChainResult
from boltzflow.targets.molecule import as_temperature, kT

__all__ = ["faster_platform", "molecular_dynamics"]

_log = logging.getLogger(__name__)


def _context(
    system: openmm.System, platform: str, step: float, temperature: float, friction: float, seed: int
) -> openmm.Context:
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, step)
    integrator.setRandomNumberSeed(seed)
    properties = {"Threads": "1"} if platform == "CPU" else {}
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)


def faster_platform(system: openmm.System, positions: np.ndarray, *, n_forces: int = 50) -> str:
    """Whichever of OpenMM's Reference and CPU (one thread) platforms evaluates forces faster on this system.

    Args:
        system: OpenMM System.
        positions: (n_atoms, 3), nm.
        n_forces: Evaluations timed on each.
    """
    seconds = {}
    for platform in ("Reference", "CPU"):
        context = _context(system, platform, 0.001, 300.0, 1.0, 1)
        context.setPositions(positions)
        context.getState(getForces=True)
        began = time.perf_counter()
        for _ in range(n_forces):
            context.setPositions(positions)
            context.getState(getForces=True, getEnergy=True)
        seconds[platform] = time.perf_counter() - began
    return min(seconds, key=seconds.__getitem__)


def _state(
    context: openmm.Context, replica: int, frame: int, frames: np.ndarray, energies: np.ndarray, platform: str
) -> dict[str, Any]:
    """What dynamics that was killed goes on from."""
    return {
        "replica": replica,
        "frame": frame,
        "platform": platform,
        "checkpoint": torch.frombuffer(bytearray(context.createCheckpoint()), dtype=torch.uint8),
        "frames": torch.from_numpy(frames),
        "energies": torch.from_numpy(energies),
    }


def molecular_dynamics(
    system: openmm.System,
    positions: Tensor | np.ndarray,
    *,
    temperature: float | unit.Quantity,
    n_frames: int,
    stride: int,
    n_replicas: int = 1,
    n_equilibration: int = 10_000,
    step: float | unit.Quantity = 0.001,
    friction: float | unit.Quantity = 1.0,
    platform: str | None = None,
    seed: int | None = None,
    on_steps: Callable[[int], None] | None = None,
    on_frame: Callable[[Callable[[], dict[str, Any]]], None] | None = None,
    saved: Mapping[str, Any] | None = None,
) -> ChainResult:
    """Langevin dynamics of independent replicas, one after the other on one thread.

    Args:
        system: OpenMM System.
        positions: Start of all replicas, (n_atoms, 3), nm; minimised first.
        temperature: In K, or an `openmm.unit.Quantity`.
        n_frames: Frames per replica.
        stride: MD steps between frames.
        n_replicas: Independent replicas, each with velocities and noise of its own.
        n_equilibration: MD steps before the first frame.
        step: Time step in ps, or a Quantity; without constraints at most 0.001. Unlike the other samplers of this
            package, MD carries a discretisation error that falls with its square.
        friction: In 1/ps, or a Quantity.
        platform: An OpenMM platform; None measures Reference and CPU and takes the faster.
        seed: Random by default, and kept in the diagnostics.
        on_steps: Called with the number of MD steps after every stretch of them, e.g. to move a progress bar.
        on_frame: Called after every frame with a function that makes tensors and plain values to go on from.
        saved: Such values, of a simulation with the same arguments, on the same machine; it goes on bit for bit.

    Returns:
        Frames of field "positions", (n_frames, n_replicas, n_atoms, 3), float64, nm; after an interrupt those of the
        replicas that were finished.

    Raises:
        KeyboardInterrupt: If it came before the first replica was finished.

    References:
        Zhang et al., J. Phys. Chem. A 123, 6056 (2019): the middle scheme.
    """
    if min(n_frames, stride, n_replicas) < 1:
        raise ValueError(f"n_frames, stride, n_replicas: expected at least 1, got {n_frames}, {stride}, {n_replicas}.")
    kelvin = as_temperature(temperature)
    step = step.value_in_unit(unit.picosecond) if unit.is_quantity(step) else float(step)
    friction = friction.value_in_unit(unit.picosecond**-1) if unit.is_quantity(friction) else float(friction)
    seed = new_seed() if seed is None else seed
    start = np.asarray(positions, dtype=np.float64)
    if saved is not None:
        platform = saved["platform"]
    platform = platform or faster_platform(system, start)
    _log.info("molecular dynamics on OpenMM's %s platform", platform)
    began = time.perf_counter()
    n_atoms = system.getNumParticles()
    frames = np.zeros((n_frames, n_replicas, n_atoms, 3))
    energies = np.zeros((n_frames, n_replicas))
    # OpenMM takes 31-bit seeds; 0 would mean a random one
    streams = 1 + np.random.SeedSequence(seed).generate_state(2 * n_replicas) % (2**31 - 2)
    first = (0, -1)
    if saved is not None:
        first = (saved["replica"], saved["frame"] + 1)
        frames[:], energies[:] = saved["frames"].numpy(), saved["energies"].numpy()
    done = 0
    try:
        for r in range(first[0], n_replicas):
            context = _context(system, platform, step, kelvin, friction, int(streams[2 * r]))
            if saved is not None and r == first[0]:
                context.loadCheckpoint(bytes(saved["checkpoint"].numpy()))
            else:
                context.setPositions(start)
                openmm.LocalEnergyMinimizer.minimize(context)
                context.setVelocitiesToTemperature(kelvin, int(streams[2 * r + 1]))
            integrator = context.getIntegrator()
            for f in range(first[1] if r == first[0] else -1, n_frames):
                n_steps = n_equilibration if f < 0 else stride
                integrator.step(n_steps)
                if on_steps is not None:
                    on_steps(n_steps)
                if f < 0:
                    continue
                state = context.getState(getPositions=True, getEnergy=True)
                frames[f, r] = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
                energies[f, r] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) / kT(kelvin)
                if on_frame is not None:
                    on_frame(functools.partial(_state, context, r, f, frames, energies, platform))
            done = r + 1
    except KeyboardInterrupt:
        if not done:
            raise
        frames, energies = frames[:, :done], energies[:, :done]
    steps = done * (n_equilibration + n_frames * stride)
    ledger = Ledger()
    ledger.count("openmm", energy=n_frames * done, force=steps)
    u = torch.from_numpy(energies)
    diagnostics: dict[str, Any] = {"platform": platform, "step": step, "friction": friction, "seed": seed}
    return ChainResult(
        {"positions": torch.from_numpy(frames)},
        u,
        stride * torch.arange(1, n_frames + 1),
        torch.arange(done),
        {"reduced_energy": u},
        diagnostics | {"series": series_diagnostics({"reduced_energy": u})},
        ledger,
        time.perf_counter() - began,
        ("molecular_dynamics", "OpenMM"),
    )
