"""Where annealing in temperature starts: the frames of an ensemble file at a higher temperature."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError, UnsupportedForceError
from boltzflow.io.provenance import file_sha256
from boltzflow.paths import Path as AnnealingPath
from boltzflow.paths import TemperedPath
from boltzflow.targets.bases import FramesBase
from boltzflow.targets.target import Target

if TYPE_CHECKING:
    from boltzflow.systems import AnalyticSystem, System

__all__ = ["hot_frames"]

logger = logging.getLogger(__name__)

N_CHECKED = 64
"""Frames whose recorded energies are compared with those of the system."""
TOLERANCE = 1e-4
"""Largest |Δu|/max(1, |u|) between a recorded and a computed energy, which single precision reaches."""


def hot_frames(
    system: "System | AnalyticSystem", file: str | Path, *, sha256: str | None = None
) -> tuple[FramesBase, Callable[[Target, Target], AnnealingPath]]:
    """Frames at a higher temperature as a base, and the path on which the temperature falls to that of the system.

    Frames of a molecule are relabelled into its sector; those outside, and those of weight zero, are left out, so that
    log Z is relative to the hot system within the sector. Frames of one chain are one group of the error bars; those of
    a single chain are cut into blocks of three statistical inefficiencies of the energy.

    Args:
        system: At the temperature where annealing ends.
        file: Ensemble file, e.g. of `boltzflow simulate SYSTEM@TEMPERATURE`.
        sha256: What the file must have; None = anything.

    Returns:
        The base, and what makes the path of a base and a target: `TemperedPath` from the temperature of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsupportedForceError: If the target has no temperature.
        CheckpointMismatchError: If the file has another digest, is of another system or potential, does not know its
            temperature, or is colder than the system.

    References:
        Hukushima and Iba, AIP Conf. Proc. 690, 200 (2003).
    """
    target = system.target
    end = getattr(target, "temperature", None)
    if end is None:
        raise UnsupportedForceError(
            f"system {system.name} has no temperature, so it has no frames at a higher one: leave "
            "generator.annealing.base out, and annealing starts from a normal distribution."
        )
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"generator.annealing.base {file}: no such file; make it by `boltzflow simulate SYSTEM@TEMPERATURE -o "
            f"{Path(file).name}`, or put it where it was."
        )
    if sha256 not in (None, file_sha256(file)):
        raise CheckpointMismatchError(
            f"generator.annealing.base {file}: is not the file from which the pilot of this sampler started. Put that "
            "back, or run the pilot anew in another folder."
        )
    ensemble = Ensemble.load(file)
    start = ensemble.provenance.extra.get("reduced_temperature", ensemble.temperature)
    if start is None or start < end:
        found = "does not say its temperature" if start is None else f"is at {start:g}, which is colder"
        raise CheckpointMismatchError(
            f"generator.annealing.base {file}: {found}, and {system.name} is at {end:g}. Give frames of the system at "
            "a higher temperature."
        )
    keep = torch.from_numpy(ensemble.log_weights) > -torch.inf
    state = ensemble.to_state(device=_device(target))
    expected, found = ({name: s.shape for name, s in of.items()} for of in (target.fields, state.spaces))
    if found != expected:
        raise CheckpointMismatchError(
            f"generator.annealing.base {file}: expected the fields and shapes {expected} of {system.name}, got "
            f"{found}; these frames are of another system."
        )
    _require_energies(ensemble, target, start, keep, file=file)
    if system.temperature is not None and system.box is None:
        positions, n_relabelled = system.sector.relabel(state["positions"])
        state, inside = state.replace(positions=positions), target.in_support(positions).cpu()
        n_outside = int((keep & ~inside).sum())
        if n_relabelled or n_outside:
            logger.info("%s: %d frames relabelled, %d outside the sector left out", file, n_relabelled, n_outside)
        keep = keep & inside
    if not bool(keep.any()):
        raise CheckpointMismatchError(
            f"generator.annealing.base {file}: no frame lies in the support of {system.name}."
        )
    grouping = ensemble.grouping
    if grouping.chains is not None and len(grouping) == 1:
        grouping = grouping.blocks(ensemble.reduced_energies)
    base = FramesBase(
        state.index(keep.to(state.device)),
        target,
        log_weights=torch.from_numpy(ensemble.log_weights)[keep],
        groups=torch.from_numpy(grouping.ids)[keep],
        context={"temperature": start},
        name=f"frames of {system.definition.name} at {start:g}{' K' if system.temperature is not None else ''}",
    )
    return base, partial(TemperedPath, beta_0=end / start)


def _device(target: Target) -> torch.device:
    return next((b.device for b in target.buffers()), torch.device("cpu"))


def _require_energies(
    ensemble: Ensemble, target: Target, temperature: float, keep: torch.Tensor, *, file: str | Path
) -> None:
    """Check that the frames were sampled from this potential at this temperature, by what they record of it.

    A file of parallel tempering holds the energies at the first temperature, which is its own.
    """
    rows = torch.nonzero(keep).flatten()
    rows = rows[torch.linspace(0, len(rows) - 1, min(N_CHECKED, len(rows))).long()]
    state = ensemble.to_state(device=_device(target), dtype=torch.float64).index(rows.to(_device(target)))
    with torch.no_grad():
        found = target.reduced_energy(state, {"temperature": temperature}).cpu()
    recorded = torch.from_numpy(ensemble.reduced_energies)[rows]
    error = (found - recorded).abs() / recorded.abs().clamp_min(1.0)
    if not bool((error < TOLERANCE).all()):
        worst = int(error.nan_to_num(torch.inf).argmax())
        raise CheckpointMismatchError(
            f"generator.annealing.base {file}: records u = {recorded[worst]:.6g} kT at {temperature:g} where "
            f"{target.name} has {found[worst]:.6g}; these frames are of another system or force field."
        )
