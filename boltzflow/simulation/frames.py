"""Frames of a simulation as they go into a file: relabelled, rounded, weighted, with what they cost."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from boltzflow.ensemble import Ensemble
from boltzflow.errors import LowOverlapError
from boltzflow.io.provenance import Provenance, method_names
from boltzflow.run import Ledger
from boltzflow.simulation.result import ChainResult
from boltzflow.statistics.tempered import ladder_groups, tempered_weights
from boltzflow.targets.target import Target

if TYPE_CHECKING:
    from boltzflow.systems import AnalyticSystem, System

__all__ = ["Frames", "SystemFrames", "chains_to_ensemble"]

logger = logging.getLogger(__name__)

_BATCH = 4096


class Frames:
    """Frames of one simulation, collected part by part.

    Args:
        target: What is simulated, in the coordinates that are kept.
        topology: Of the ensemble.
        dtype: In which the chains run, for the provenance.
        extra: Goes into the provenance.
    """

    def __init__(
        self, target: Target, *, topology: Any = None, dtype: str = "float64", extra: Mapping[str, Any] | None = None
    ) -> None:
        self.target, self.topology, self.dtype, self.extra = target, topology, dtype, dict(extra or {})
        self.n_relabelled = 0
        self._samples: dict[str, list[torch.Tensor]] = {name: [] for name in target.fields}
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
        samples, energies = self._kept(part)
        for name, values in samples.items():
            self._samples[name].append(values)
        self._energies.append(energies)
        self._times.append(part.frames)
        self._columns = (part.chains, part.rungs)

    def _kept(self, part: ChainResult) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Fields and energies as they are kept, on the host, (n_frames, n_columns, *event)."""
        return dict(part.samples), part.reduced_energies

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
            method: "pt", "md", "neutra" or "flow-mcmc", for the provenance.
            seed: Of the simulation.
            wanted: Frames that were asked for; fewer mark the ensemble as interrupted.
            diagnostics: Of the simulation, with "temperatures" if frames of all rungs are kept.
            ledger: Evaluations of the simulation.
            seconds: Wall time.
            methods: Names for `boltzflow.cite`.
        """
        u = torch.cat(self._energies)
        n_frames, n_columns = u.shape
        chains, rungs = self._columns
        target = self.target
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
            **self.extra,
            "method": method,
            "measure": target.measure,
            "n_relabelled": self.n_relabelled,
            "simulation": json.loads(json.dumps(diagnostics)),
        }
        return Ensemble(
            samples={name: torch.cat(parts).flatten(0, 1) for name, parts in self._samples.items()},
            spaces=target.fields,
            log_weights=log_weights.flatten(),
            reduced_energies=u.flatten(),
            target=target.name,
            normalisation="none",
            topology=self.topology,
            provenance=Provenance(
                seed=seed,
                dtype=self.dtype,
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
            "samples": {name: list(parts) for name, parts in self._samples.items()},
            "energies": list(self._energies),
            "times": list(self._times),
            "columns": self._columns,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.n_relabelled, self._columns = saved["n_relabelled"], saved["columns"]
        self._samples = {name: list(parts) for name, parts in saved["samples"].items()}
        self._energies, self._times = list(saved["energies"]), list(saved["times"])

    def cold(self) -> torch.Tensor:
        """Energies of the frames at the system's own temperature, (n_frames, n_chains)."""
        u, (_, rungs) = torch.cat(self._energies), self._columns
        return u if rungs is None else u[:, rungs == 0]


class SystemFrames(Frames):
    """Frames of a system as they go into its reference.

    Positions of a molecule are relabelled into its sector, where it has one, and kept in float32, with the energies of
    these rounded positions; those of a Target in a periodic box are brought into it.

    Args:
        system: What is simulated.
    """

    def __init__(self, system: "System | AnalyticSystem") -> None:
        self.system, self._is_molecule = system, system.temperature is not None
        extra = {"system": system.name, "source": system.source}
        if self._is_molecule:
            extra["temperature"] = system.temperature
        elif hasattr(system.target, "temperature"):
            extra["reduced_temperature"] = system.target.temperature
        super().__init__(system.target, topology=system.topology if self._is_molecule else None, extra=extra)

    @classmethod
    def joined(cls, system: "System | AnalyticSystem", parts: Sequence[Mapping[str, Any]]) -> "SystemFrames":
        """Frames of several simulations of the same length and temperatures, their chains one after the other.

        Args:
            system: What was simulated.
            parts: `state_dict` of each.
        """
        found = cls(system)
        found.n_relabelled = sum(part["n_relabelled"] for part in parts)
        rungs = parts[0]["columns"][1]
        n_rungs = 1 if rungs is None else int(rungs.max()) + 1
        n_ladders = [len(part["columns"][0]) // n_rungs for part in parts]

        def side_by_side(of_parts: list[list[torch.Tensor]]) -> list[torch.Tensor]:
            # rungs are slowest among the columns
            whole = [torch.cat(values).unflatten(1, (n_rungs, -1)) for values in of_parts]
            return [torch.cat(whole, 2).flatten(1, 2)]

        found._samples = {name: side_by_side([part["samples"][name] for part in parts]) for name in found._samples}
        found._energies = side_by_side([part["energies"] for part in parts])
        found._times = [torch.cat(parts[0]["times"])]
        chains = torch.arange(sum(n_ladders)).repeat(n_rungs)
        found._columns = chains, None if rungs is None else torch.arange(n_rungs).repeat_interleave(sum(n_ladders))
        return found

    def _kept(self, part: ChainResult) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        if not self._is_molecule:
            samples, energies = super()._kept(part)
            wrap = getattr(self.target, "wrap", None)
            return (samples if wrap is None else {k: wrap(x) for k, x in samples.items()}), energies
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
        shape = positions.shape[:2]
        return {"positions": torch.cat(kept).unflatten(0, shape)}, torch.cat(energies).unflatten(0, shape)


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


def chains_to_ensemble(
    system: "System | AnalyticSystem", result: ChainResult, *, method: str, seed: int, wanted: int
) -> Ensemble:
    """All frames of a finished simulation; see `Frames.ensemble`.

    Args:
        system: What was simulated.
        result: Its chains.
        method: "pt" or "md", for the provenance.
        seed: Of the simulation.
        wanted: Frames that were asked for; fewer mark the ensemble as interrupted.
    """
    frames = SystemFrames(system)
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
