"""Parity of the torch force field with OpenMM's Reference platform: force by force, and all together."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.kernel import Kernel
from boltzflow.forcefield.openmm_bridge import OpenMMPotential
from boltzflow.forcefield.oracle import Platform, exact, platform_for
from boltzflow.forcefield.pme_offset import pme_offset
from boltzflow.forcefield.potential import ForceField
from boltzflow.forcefield.registry import IGNORED, from_openmm

__all__ = ["ENERGY_LIMIT", "FORCE_LIMIT", "Deviation", "ForceParity", "Geometries", "Parity", "geometries", "parity"]

ENERGY_LIMIT = 1e-6
"""Largest |ΔU|/max(1, |U|) in float64, U in kJ/mol."""

FORCE_LIMIT = 1e-5
"""Largest max_i |ΔF_i|/(1 + rms |F|) in float64, F in kJ/mol/nm."""

SINGLE_LIMITS = (1e-4, 1e-2)
"""Likewise, where OpenMM's CPU platform is compared with, which computes in single precision."""

DISPLACEMENTS = (0.002, 0.01, 0.05)
"""nm, in each Cartesian direction, of the perturbed structures."""

DISTANCES = (0.05, 0.02, 0.005, 0.002)
"""nm, between the two atoms of a clash."""

_CHUNK = 4_000_000
"""Squared distances at once, for each of which eager torch keeps some tens of numbers."""

Backend = Literal["compiled", "eager", "bridge", "none"]


@dataclass(frozen=True)
class Geometries:
    """Structures at which energies are compared.

    Args:
        positions: (n, n_atoms, 3) nm, float64.
        kinds: of each structure: "relaxed", "perturbed 2 pm", "clash 5 pm", ...
    """

    positions: Tensor
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Deviation:
    """How far energies and forces are from those of OpenMM, at worst.

    Args:
        energy: largest |ΔU|/max(1, |U|); infinite where one is finite and the other is not.
        force: largest max_i |ΔF_i|/(1 + rms |F|), likewise.
        energy_at: kind of the structure with the largest deviation of the energy; "" where there is none.
        force_at: kind of the structure with the largest deviation of the force, likewise.
        atom: the atom with that force; None where there is no deviation.
        platform: of OpenMM.
    """

    energy: float
    force: float
    energy_at: str = ""
    force_at: str = ""
    atom: int | None = None
    platform: Platform = "Reference"

    @property
    def passed(self) -> bool:
        """Whether both are within the limits, those of the platform's precision."""
        energy, force = (ENERGY_LIMIT, FORCE_LIMIT) if self.platform == "Reference" else SINGLE_LIMITS
        return self.energy < energy and self.force < force


@dataclass(frozen=True)
class ForceParity:
    """One force of the System.

    Args:
        index: in the System.
        group: force group.
        kind: class of openmm.Force.
        name: given to it in the System, the class by default.
        backend: what evaluates it in the torch force field: the "compiled" kernel or "eager" torch; "bridge" for a
            force that torch does not know, "none" for one without energy.
        deviation: of float64, the larger of the kernel's and of eager torch; None where torch does not evaluate it.
        reason: why torch does not evaluate it; empty where it does.
    """

    index: int
    group: int
    kind: str
    name: str
    backend: Backend
    deviation: Deviation | None = None
    reason: str = ""


@dataclass(frozen=True)
class Parity:
    """All forces of a System.

    Args:
        forces: in the order of the System.
        total: of all together in float64, the larger of the kernel's and of eager torch; None if there is a force that
            torch does not know.
        single: of all together in float32 without the clashes, which overflow; None likewise. It has no limit.
        kinds: of the structures, and how many there are of each.
        pme_offset: energy (kJ/mol) of OpenMM's PME, at the System's tolerance, less that of the Ewald sum, at the
            relaxed structure; None without PME.
    """

    forces: tuple[ForceParity, ...]
    total: Deviation | None
    single: Deviation | None
    kinds: dict[str, int]
    pme_offset: float | None = None

    @property
    def unknown(self) -> tuple[ForceParity, ...]:
        """The forces that OpenMM has to evaluate."""
        return tuple(force for force in self.forces if force.backend == "bridge")

    @property
    def failed(self) -> tuple[ForceParity, ...]:
        """The forces beyond the limits."""
        return tuple(force for force in self.forces if force.deviation is not None and not force.deviation.passed)

    @property
    def passed(self) -> bool:
        """Whether what torch evaluates is within the limits, force by force and all together."""
        return not self.failed and (self.total is None or self.total.passed)


def geometries(positions: Float[Tensor, "n_atoms 3"], *, frames: int = 4, seed: int = 1) -> Geometries:
    """Return a structure, random displacements of it, and clashes: one atom put next to another, which may be far.

    Args:
        positions: a relaxed structure, nm.
        frames: structures of each displacement (2, 10 and 50 pm) and of each distance of a clash (50, 20, 5 and 2 pm).
        seed: of displacements and clashes.
    """
    rng = torch.Generator().manual_seed(seed)
    x = positions.detach().double().cpu()
    n = len(x)
    rows, kinds = [x[None]], ["relaxed"]
    for width in DISPLACEMENTS:
        rows.append(x + width * torch.randn(frames, n, 3, generator=rng, dtype=torch.float64))
        kinds += [f"perturbed {1000 * width:g} pm"] * frames
    for distance in DISTANCES if n > 1 else ():
        clash = x.repeat(frames, 1, 1)
        for row in clash:
            moved, other = torch.randperm(n, generator=rng)[:2].tolist()
            direction = torch.randn(3, generator=rng, dtype=torch.float64)
            row[moved] = row[other] + distance * direction / direction.norm()
        rows.append(clash)
        kinds += [f"clash {1000 * distance:g} pm"] * frames
    return Geometries(torch.cat(rows), tuple(kinds))


def parity(
    system: Any,
    positions: Float[Tensor, "n_atoms 3"],
    *,
    potential: nn.Module | None = None,
    frames: int = 4,
    seed: int = 1,
) -> Parity:
    """Compare energies and forces of the torch force field with OpenMM's Reference platform in float64.

    Every force is converted and evaluated alone, so that a large one cannot hide the error of another, by the compiled
    kernel and by eager torch, and then all together. PME is compared with OpenMM's Ewald sum at a tight tolerance (in a
    triclinic box, which OpenMM's Ewald sum does not take, with its PME at a tight one), and its own error is reported.
    In triclinic boxes in which the Reference platform misses pairs, forces with a cutoff are compared with the CPU
    platform, in single precision and without clashes.

    Args:
        system: the ``openmm.System``.
        positions: a relaxed structure, nm.
        potential: what stands for the whole System, a `CompiledForceField` in float64 such as one from a cache; by
            default the System is converted.
        frames: see `geometries`.
        seed: see `geometries`.

    Returns:
        The deviations; ``passed`` is the verdict.

    Raises:
        ValueError: the positions are not finite or of another number of atoms.

    Example:
        >>> from boltzflow import load_system
        >>> system = load_system("alanine_dipeptide")
        >>> found = parity(system.openmm_system, system.positions, frames=1)
        >>> found.passed, len(found.forces)
        (True, 6)
    """
    if tuple(positions.shape) != (system.getNumParticles(), 3) or not bool(positions.isfinite().all()):
        raise ValueError(
            f"positions must be ({system.getNumParticles()}, 3), in nm and finite; found {tuple(positions.shape)} with "
            f"{int((~positions.isfinite()).any(-1).sum())} atoms that are not finite"
        )
    at = geometries(positions, frames=frames, seed=seed)
    platform = platform_for(system, at.positions)
    if platform == "CPU":
        at = _mild(at)
    rows, converted, reference = [], [], _zero(at)
    for index, force in enumerate(system.getForces()):
        row = {"index": index, "group": force.getForceGroup(), "kind": type(force).__name__, "name": force.getName()}
        if row["kind"] in IGNORED:
            rows.append((row, "none", None, "has no energy"))
            continue
        alone = _only(system, [index])
        try:
            term = from_openmm(alone)
        except UnsupportedForceError as error:
            # the message names the force as one of a System of its own
            reason = " ".join(str(error).split()).removeprefix(f"{row['kind']} (force 0, group {row['group']})")
            rows.append((row, "bridge", None, reason.removeprefix(":").strip()))
            continue
        own = platform if hasattr(force, "getCutoffDistance") else "Reference"
        expected = OpenMMPotential(exact(alone), platform=own).energy_and_force(at.positions)
        reference = reference[0] + expected[0], reference[1] + expected[1]
        rows.append((row, "eager", replace(_both(term.compiled(), expected, at), platform=own), ""))
        converted.append(index)
    known = all(backend != "bridge" for _, backend, *_ in rows)
    whole = from_openmm(_only(system, converted)) if converted else None
    compiled = set() if whole is None else _in_kernel(whole, converted)
    forces = tuple(
        ForceParity(**row, backend="compiled" if row["index"] in compiled else backend, deviation=found, reason=reason)
        for row, backend, found, reason in rows
    )
    total = single = None
    if known and whole is not None:
        total = _both(whole.compiled() if potential is None else potential, reference, at)
        total = replace(total, platform=platform)
        mild = _mild(at)
        gentle = torch.tensor([kind in mild.kinds for kind in at.kinds])
        single = _deviation(
            _evaluate(whole.to(torch.float32).compiled(), mild.positions),
            (reference[0][gentle], reference[1][gentle]),
            mild.kinds,
        )
    kinds = {kind: at.kinds.count(kind) for kind in dict.fromkeys(at.kinds)}
    meshes = any(_has_mesh(system.getForce(index)) for index in converted)
    offset = pme_offset(system, at.positions[:1], platform=platform).item() if meshes else None
    return Parity(forces, total, single, kinds, offset)


def _mild(at: Geometries) -> Geometries:
    """Return the structures without clashes, which overflow in single precision."""
    kept = [row for row, kind in enumerate(at.kinds) if not kind.startswith("clash")]
    return Geometries(at.positions[kept], tuple(at.kinds[row] for row in kept))


def _zero(at: Geometries) -> tuple[Tensor, Tensor]:
    return at.positions.new_zeros(len(at.positions)), torch.zeros_like(at.positions)


def _only(system: Any, indices: list[int]) -> Any:
    """Return a copy of the System with some of its forces, in their order."""
    clone = copy.deepcopy(system)
    for index in reversed(range(clone.getNumForces())):
        if index not in indices:
            clone.removeForce(index)
    return clone


def _has_mesh(force: Any) -> bool:
    return type(force).__name__ == "NonbondedForce" and force.getNonbondedMethod() == force.PME


def _in_kernel(forcefield: ForceField, indices: list[int]) -> set[int]:
    """Indices of the forces that the compiled kernel evaluates; each force is one term."""
    if forcefield.compiled().backend != "compiled":
        return set()
    rest = Kernel(forcefield).rest
    left = set() if rest is None else {id(term) for term in rest.terms}
    return {index for index, term in zip(indices, forcefield.terms, strict=True) if id(term) not in left}


def _evaluate(potential: nn.Module, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return energies and forces, a part of the conformations at a time where there are many pairs of atoms."""
    parts = [potential.energy_and_force(x) for x in positions.split(max(1, _CHUNK // positions.shape[1] ** 2))]
    energies, forces = zip(*parts, strict=True)
    return torch.cat(energies), torch.cat(forces)


def _both(potential: nn.Module, expected: tuple[Tensor, Tensor], at: Geometries) -> Deviation:
    """The larger deviation of a compiled force field and of its eager twin, which may be all that it has."""
    twins = (potential, potential.eager) if potential.backend == "compiled" else (potential.eager,)
    found = [_deviation(_evaluate(p, at.positions), expected, at.kinds) for p in twins]
    energy, force = max(found, key=lambda d: d.energy), max(found, key=lambda d: d.force)
    return Deviation(energy.energy, force.force, energy.energy_at, force.force_at, force.atom)


def _deviation(
    found: tuple[Float64[Tensor, "batch"], Float[Tensor, "batch n_atoms 3"]],
    expected: tuple[Float64[Tensor, "batch"], Float[Tensor, "batch n_atoms 3"]],
    kinds: tuple[str, ...],
) -> Deviation:
    """Return the largest deviations; where neither code has a finite value, there is none."""
    (u, f), (u_ref, f_ref) = found, expected
    energy = _settled((u - u_ref).abs() / u_ref.abs().clamp(min=1), u.isfinite(), u_ref.isfinite())
    rms = f_ref.square().sum(-1).mean(-1, keepdim=True).sqrt()
    force = (f.double() - f_ref).norm(dim=-1) / (1 + rms)
    force = _settled(force, f.isfinite().all(-1), f_ref.isfinite().all(-1))
    row, atom = divmod(int(force.argmax()), force.shape[1])
    worst = int(energy.argmax())
    du, df = energy[worst].item(), force[row, atom].item()
    return Deviation(du, df, kinds[worst] if du else "", kinds[row] if df else "", atom if df else None)


def _settled(deviation: Tensor, finite: Tensor, expected: Tensor) -> Tensor:
    deviation = torch.where(finite == expected, deviation, math.inf)
    return torch.where(finite | expected, deviation, 0.0)
