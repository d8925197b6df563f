"""Frames of a simulation as they go into a file: relabelled, rounded, weighted, with what they cost."""

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from boltzflow.ensemble import Ensemble
from boltzflow.errors import LowOverlapError
from boltzflow.io.provenance import Provenance, method_names
from boltzflow.run import Ledger
from boltzflow.simulation.result import ChainResult
from boltzflow.statistics.tempered import ladder_groups, tempered_weights

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["Frames", "chains_to_ensemble"]

logger = logging.getLogger(__name__)

_BATCH = 4096


class Frames:
    """Frames of one simulation, collected part by part.

    Positions are relabelled into the system's sector, where it has one, and kept in float32, with the energies of these
    rounded positions.

    Args:
        system: What is simulated.
    """

    def __init__(self, system: "System") -> None:
        self.system = system
        self.n_relabelled = 0
        self._positions: list[torch.Tensor] = []
        self._energies: list[torch.Tensor] = []
        self._times: list[torch.Tensor] = []
        self._columns: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def __len__(self) -> int:
        """Number of frames over all columns."""
        return sum(energies.numel() for energies in self._energies)

    @property
    def n_records(self) -> int:
        """Number of frames of every column."""
        return sum(len(energies) for energies in self._energies)

    def add(self, part: ChainResult) -> None:
        """Append frames that follow in time; all parts have the same columns."""
        target = self.system.target
        positions = part.samples["positions"]
        kept, energies = [], []
        for rows in positions.flatten(0, 1).split(_BATCH):
            if self.system.box is None:  # a periodic system has no sector
                rows, n_relabelled = self.system.sector.relabel(rows.to(next(self.system.sector.buffers()).device))
                self.n_relabelled += n_relabelled
            rows = rows.float()
            kept.append(rows.cpu())
            energies.append(target.reduced_energy(target.state(rows.double())).cpu())
        self._positions.append(torch.cat(kept).unflatten(0, positions.shape[:2]))
        self._energies.append(torch.cat(energies).unflatten(0, positions.shape[:2]))
        self._times.append(part.frames)
        self._columns = (part.chains, part.rungs)

    def ensemble(
        self,
        *,
        method: str,
        seed: int,
        wanted: int,
        diagnostics: dict[str, Any],
        ledger: Ledger,
        seconds: float,
        methods: tuple[str, ...],
    ) -> Ensemble:
        """The frames up to now, of normalisation "none".

        Frames at the system's own temperature have equal weights, in time order within chains; those of all rungs of
        parallel tempering are weighted by MBAR, and the ladders are their groups. Frames that no relabelling brings
        into the sector, or that are off the constraints, have weight zero and count as `n_nonfinite`.

        Args:
            method: "pt" or "md", for the provenance.
            seed: Of the simulation.
            wanted: Frames that were asked for; fewer mark the ensemble as interrupted.
            diagnostics: Of the simulation, with "temperatures" if frames of all rungs are kept.
            ledger: Evaluations of the simulation.
            seconds: Wall time.
            methods: Names for `boltzflow.cite`.
        """
        positions, u = torch.cat(self._positions), torch.cat(self._energies)
        n_frames, n_columns = u.shape
        chains, rungs = self._columns
        target = self.system.target
        outside = ~torch.isfinite(u)
        if rungs is None:
            log_weights = torch.where(outside, -torch.inf, 0.0).double()
            rows = {
                "chain": chains.repeat(n_frames),
                "frame": torch.cat(self._times).repeat_interleave(n_columns),
            }
        else:
            log_weights, groups, found = _tempered(u, int(rungs[-1]) + 1, diagnostics["temperatures"])
            rows = {"groups": groups}
            diagnostics = {**diagnostics, "mbar": found}
        extra = {
            "system": self.system.name,
            "source": self.system.source,
            "temperature": self.system.temperature,
            "method": method,
            "measure": target.measure,
            "n_relabelled": self.n_relabelled,
            "simulation": json.loads(json.dumps(diagnostics)),
        }
        return Ensemble(
            samples={"positions": positions.flatten(0, 1)},
            spaces=target.fields,
            log_weights=log_weights.flatten(),
            reduced_energies=u.flatten(),
            target=target.name,
            normalisation="none",
            topology=self.system.topology,
            provenance=Provenance(
                seed=seed,
                dtype="float64",
                ledger=ledger.as_dict(),
                seconds=seconds,
                n_nonfinite=int(outside.sum()),
                interrupted=u.numel() < wanted,
                methods=method_names(*methods, *(() if rungs is None else ("mbar",)), target),
                extra=extra,
            ),
            **rows,
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values of what was collected."""
        return {
            "n_relabelled": int(self.n_relabelled),
            "positions": list(self._positions),
            "energies": list(self._energies),
            "times": list(self._times),
            "columns": self._columns,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.n_relabelled, self._columns = saved["n_relabelled"], saved["columns"]
        self._positions, self._energies = list(saved["positions"]), list(saved["energies"])
        self._times = list(saved["times"])

    def cold(self) -> torch.Tensor:
        """Energies of the frames at the system's own temperature, (n_frames, n_chains)."""
        u, (_, rungs) = torch.cat(self._energies), self._columns
        return u if rungs is None else u[:, rungs == 0]


def _tempered(
    u: torch.Tensor, n_rungs: int, temperatures: list[float]
) -> tuple[torch.Tensor, np.ndarray, dict[str, Any]]:
    """Weights of frames (n_frames, n_rungs · n_ladders), their groups, and what MBAR found."""
    energies = u.unflatten(1, (n_rungs, -1)).numpy()
    groups = np.broadcast_to(ladder_groups(len(u), energies.shape[2])[:, None], energies.shape).reshape(-1)
    try:
        found = tempered_weights(energies, temperatures[0] / np.asarray(temperatures))
    except (LowOverlapError, ValueError) as error:
        # a simulation that was stopped early, or too wide a ladder: its cold frames are still what they are
        logger.warning("only the frames at %g K have a weight: %s", temperatures[0], error)
        cold = np.where(np.isfinite(energies) & (np.arange(n_rungs) == 0)[:, None], 0.0, -np.inf)
        described = {"n_ladders": energies.shape[2], "failed": str(error)}
        return torch.from_numpy(cold).flatten(1), groups, described
    described = {
        "n_ladders": energies.shape[2],
        "temperatures": temperatures,
        "free_energies": found.free_energies.tolist(),
        "errors": found.errors.tolist(),
        "meaning": f"-log Z(T) of exp(-U/kT), relative to {temperatures[-1]:g} K, in kT",
    }
    return torch.from_numpy(found.log_weights).flatten(1), groups, described


def chains_to_ensemble(system: "System", result: ChainResult, *, method: str, seed: int, wanted: int) -> Ensemble:
    """All frames of a finished simulation; see `Frames.ensemble`.

    Args:
        system: What was simulated.
        result: Its chains.
        method: "pt" or "md", for the provenance.
        seed: Of the simulation.
        wanted: Frames that were asked for; fewer mark the ensemble as interrupted.
    """
    frames = Frames(system)
    frames.add(result)
    return frames.ensemble(
        method=method,
        seed=seed,
        wanted=wanted,
        diagnostics=result.diagnostics,
        ledger=result.ledger,
        seconds=result.seconds,
        methods=result.methods,
    )
