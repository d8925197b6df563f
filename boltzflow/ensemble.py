"""Ensemble: weighted samples of one target, what they cost, and the estimates they give."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from boltzflow._typing import Tensor
from boltzflow.errors import FormatError, NonFiniteEnergyError, NormalisationError, UnknownNameError, nearest
from boltzflow.estimate import Estimate
from boltzflow.io.hdf5 import EnsembleRecord, read_ensemble, write_ensemble
from boltzflow.io.provenance import Provenance
from boltzflow.io.topology import topology_from_json, topology_to_json
from boltzflow.run import Context, make_rng, new_seed
from boltzflow.state import Space, State
from boltzflow.statistics import means, weights
from boltzflow.statistics.groups import Groups
from boltzflow.statistics.weights import ArrayLike

__all__ = ["Ensemble", "Provenance"]

Observable = Callable[[State], ArrayLike] | ArrayLike | str


class Ensemble:
    """Samples x with log-weights log w of one target, one context and one base.

    E[w] = Z_target / Z_base over all rows, those of weight zero included. Immutable: methods return new ensembles.

    Args:
        samples: Field name to values, each (n, *event), array or tensor; kept in their dtype on the host.
        log_weights: log w, shape (n,), float64; −inf is a weight of zero and counts.
        reduced_energies: u of the target in kT, shape (n,), float64; may be +inf or NaN where the weight is zero.
        target: Name of the target.
        spaces: Field name to `Space`; None = lines.
        context: Temperature, λ, …, in values that JSON can hold; tensors become numbers or lists.
        base: Name of the base.
        normalisation: "absolute" (log Z of the base is known), "relative to <base>" or "none" (MD, MCMC: the scale of
            the weights means nothing). None = whichever follows from `log_z_base` and `base`.
        log_z_base: log Z of the base, for "absolute".
        groups: Population, base frame or lineage of every row, int64 (n,); None = independent rows.
        group_sizes: Rows with which group 0 … M − 1 started, shape (M,), where the ids alone do not tell: for a
            resampled population with `groups` its surviving lineages this is np.ones(number of particles). None =
            counted.
        groups_shared: Whether equal ids in other shards mean the same group (frames of a base ensemble, by index) and
            not new ones.
        chain: Chain id of every row of correlated frames, int64 (n,); errors are then found inside and between chains.
        frame: Time index of every row in its chain, int64 (n,).
        topology: OpenMM or mdtraj Topology, PDB text or MDTraj JSON.
        provenance: Seed, versions, device, ledger, ….

    Raises:
        ValueError: If shapes or names disagree.
        NonFiniteEnergyError: If a log-weight is NaN or +inf, or a row with a weight holds a non-finite sample or
            energy.
    """

    def __init__(
        self,
        *,
        samples: Mapping[str, Tensor | np.ndarray],
        log_weights: ArrayLike,
        reduced_energies: ArrayLike,
        target: str,
        spaces: Mapping[str, Space] | None = None,
        context: Context | None = None,
        base: str | None = None,
        normalisation: str | None = None,
        log_z_base: float | None = None,
        groups: ArrayLike | None = None,
        group_sizes: ArrayLike | None = None,
        groups_shared: bool = False,
        chain: ArrayLike | None = None,
        frame: ArrayLike | None = None,
        topology: Any = None,
        provenance: Provenance | None = None,
    ) -> None:
        self.samples = {name: _to_array(values) for name, values in samples.items()}
        self.log_weights = weights.to_numpy(log_weights)
        self.reduced_energies = weights.to_numpy(reduced_energies)
        self.target = target
        self.spaces = (
            {n: Space("line", v.shape[1:]) for n, v in self.samples.items()} if spaces is None else dict(spaces)
        )
        self.context = None if context is None else {str(k): _plain(v) for k, v in context.items()}
        self.base = base
        self.log_z_base = None if log_z_base is None else float(log_z_base)
        follows = "absolute" if log_z_base is not None else f"relative to {base}" if base else "none"
        self.normalisation = follows if normalisation is None else normalisation
        self.chain = None if chain is None else _to_array(chain).astype(np.int64)
        self.frame = None if frame is None else _to_array(frame).astype(np.int64)
        self.topology_json = None if topology is None else topology_to_json(topology)
        self.provenance = Provenance() if provenance is None else provenance
        self._check()
        self.groups_shared = groups_shared
        # ids as they were given: shards of one base ensemble must still agree on them when they are merged
        self.groups = np.arange(len(self)) if groups is None else _to_array(groups).astype(np.int64)
        self._groups = Groups.of(self.groups, len(self), sizes=group_sizes)
        self.group_sizes = None if group_sizes is None else self._groups.sizes

    def _check(self) -> None:
        n = len(self)
        if n == 0 or self.log_weights.ndim != 1:
            raise ValueError(f"Ensemble: expected log_weights of shape (n,) with n >= 1, got {self.log_weights.shape}.")
        rows = {"reduced_energies": self.reduced_energies, "chain": self.chain, "frame": self.frame}
        for name, values in rows.items():
            if values is not None and values.shape != (n,):
                raise ValueError(f"Ensemble: expected {name} of shape ({n},) like log_weights, got {values.shape}.")
        if self.frame is not None and self.chain is None:
            raise ValueError("Ensemble: frame was given without chain.")
        if not self.samples or set(self.samples) != set(self.spaces):
            raise ValueError(
                f"Ensemble: samples {sorted(self.samples)} and spaces {sorted(self.spaces)} must have the same names."
            )
        for name, values in self.samples.items():
            expected = (n, *self.spaces[name].shape)
            if values.shape != expected:
                raise ValueError(f"Ensemble: expected samples[{name!r}] of shape {expected}, got {values.shape}.")
        allowed = {"none"} | (
            {"absolute"} if self.log_z_base is not None else {f"relative to {self.base}"} if self.base else set()
        )
        if self.normalisation not in allowed:
            raise NormalisationError(
                f"Ensemble: normalisation {self.normalisation!r} does not go with base={self.base!r} and "
                f"log_z_base={self.log_z_base}, "
                f"which allow {' or '.join(sorted(allowed))}."
            )
        self._check_finite()

    def _check_finite(self) -> None:
        n = len(self)
        bad = np.isnan(self.log_weights) | (self.log_weights == np.inf)
        if bad.any():
            raise NonFiniteEnergyError(
                f"Ensemble: {bad.sum()} of {n} log-weights are NaN or +inf (first row {np.argmax(bad)}); only -inf, "
                "a weight of zero, is allowed."
            )
        carries = self.log_weights > -np.inf
        bad = carries & ~np.isfinite(self.reduced_energies)
        if bad.any():
            raise NonFiniteEnergyError(
                f"Ensemble: {bad.sum()} of {n} rows have a weight but no finite energy (first row {np.argmax(bad)})."
            )
        for name, values in self.samples.items():
            if np.issubdtype(values.dtype, np.floating):
                bad = carries & ~np.isfinite(values).reshape(n, -1).all(axis=1)
                if bad.any():
                    raise NonFiniteEnergyError(
                        f"Ensemble: {bad.sum()} of {n} rows have a weight but NaN or inf in samples[{name!r}] (first "
                        f"row {np.argmax(bad)})."
                    )

    def __len__(self) -> int:
        """Number of rows, those of weight zero included."""
        return self.log_weights.size

    def __repr__(self) -> str:
        """The essentials in one line."""
        fields = ", ".join(f"{name} {values.shape[1:]}" for name, values in self.samples.items())
        if np.all(self.log_weights == -np.inf):
            ess = "all weights zero"
        else:
            ess = f"ESS {self.ess():.1f} ({100 * self.ess_fraction():.1f} %)"
        return f"Ensemble(n={len(self)}, target={self.target!r}, {ess}, normalisation {self.normalisation}, {fields})"

    @cached_property
    def grouping(self) -> Groups:
        """What is independent of what, for the estimators in `boltzflow.statistics`."""
        return self._groups if self.chain is None else Groups.of_chains(self.chain, self.frame)

    @cached_property
    def weights(self) -> np.ndarray:
        """Weights that sum to one, float64 (n,)."""
        return weights.normalised_weights(self.log_weights)

    @property
    def temperature(self) -> float | None:
        """Temperature in K, from the context, else from provenance.extra; None if neither knows."""
        value = (self.context or {}).get("temperature", self.provenance.extra.get("temperature"))
        return None if value is None else float(value)

    @property
    def topology(self) -> Any:
        """The mdtraj.Topology, or None."""
        return None if self.topology_json is None else topology_from_json(self.topology_json)

    def ess(self) -> float:
        """Kish effective sample size over all rows, unfiltered; blind to modes that were missed and to correlation."""
        return weights.kish_ess(self.log_weights)

    def ess_fraction(self) -> float:
        """`ess()` per row."""
        return self.ess() / len(self)

    def pareto_k(self) -> float:
        """Pareto shape of the weight tail: above 0.7 error bars cannot be trusted; −inf for equal weights."""
        return weights.pareto_k(self.log_weights)

    def log_z(self, *, error: Literal["linear", "bootstrap"] = "linear") -> Estimate:
        """Log Z of the target (normalisation "absolute"), or log(Z_target / Z_base), which the Estimate says.

        Raises:
            NormalisationError: If the weights carry no normalisation (MD, MCMC).
        """
        self._require_normalisation("log_z")
        return self._shifted(means.log_z(self.log_weights, groups=self.grouping, error=error))

    def elbo(self) -> Estimate:
        """Lower bound E[log w] of `log_z()`, in the same normalisation."""
        self._require_normalisation("elbo")
        return self._shifted(means.elbo(self.log_weights, groups=self.grouping))

    def _require_normalisation(self, what: str) -> None:
        if self.normalisation == "none":
            raise NormalisationError(
                f"{what}: the weights of this ensemble of {self.target!r} carry no normalisation (MD or MCMC "
                "samples); sample it with a "
                "Generator, or reweight it to another target for a difference."
            )

    def _shifted(self, estimate: Estimate) -> Estimate:
        if self.normalisation == "absolute":
            return replace(estimate, value=estimate.value + self.log_z_base)
        return replace(estimate, note=self.normalisation)

    def values(self, observable: Observable) -> np.ndarray:
        """An observable at every row, float64 (n,).

        Args:
            observable: A function of the `State` of all rows, an array (n,), "reduced_energy", or the name of a field
                of one entry.
        """
        if isinstance(observable, str):
            if observable in ("reduced_energy", "reduced_energies"):
                return self.reduced_energies
            if observable not in self.samples:
                raise UnknownNameError(
                    f"Ensemble has no field {observable!r}; {nearest(observable, [*self.samples, 'reduced_energy'])}"
                )
            observable = self.samples[observable].reshape(len(self), -1)
            observable = observable[:, 0] if observable.shape[1] == 1 else observable
        found = weights.to_numpy(observable(self.to_state()) if callable(observable) else observable)
        if found.shape != (len(self),):
            raise ValueError(
                f"Ensemble: expected an observable of shape ({len(self)},), one number per row, got {found.shape}."
            )
        return found

    def expectation(
        self, observable: Observable, *, error: Literal["linear", "bootstrap"] = "linear", unit: str = ""
    ) -> Estimate:
        """Weighted mean of an observable over the target's distribution; `observable` as in `values`."""
        return means.expectation(
            self.values(observable), log_weights=self.log_weights, groups=self.grouping, error=error, unit=unit
        )

    def mean_reduced_energy(self) -> Estimate:
        """⟨u⟩ of the target in kT."""
        return self.expectation("reduced_energy", unit="kT")

    def select(self, rows: np.ndarray | slice) -> "Ensemble":
        """Some rows (indices, mask or slice); their groups then start with the rows that were kept."""
        rows = np.arange(len(self))[rows]
        return self._rows(rows, self.log_weights[rows], groups=self.groups, sizes=None)

    def resample(self, n: int, *, seed: int | None = None) -> "Ensemble":
        """Draw n rows by weight (systematic resampling); all get the log-mean-exp of the weights, so E[w] is kept.

        Rows keep their parent's group, so that errors account for parents drawn more than once. Repeated frames add
        nothing
        to the precision: use it for plots, files and starting points, not for estimates.

        Args:
            n: Number of rows to draw.
            seed: None = random; recorded in the provenance.
        """
        if n < 1:
            raise ValueError(f"resample: expected n >= 1, got {n}.")
        seed = new_seed() if seed is None else seed
        offset = torch.rand((), generator=make_rng(seed), dtype=torch.float64).item()
        edges = np.cumsum(self.weights)
        rows = np.searchsorted(edges / edges[-1], (np.arange(n) + offset) / n, side="right").clip(max=len(self) - 1)
        level = float(weights.log_mean_exp(torch.from_numpy(self.log_weights)))
        groups, sizes = self._started()
        drawn = self._rows(rows, np.full(n, level), groups=groups, sizes=sizes)
        drawn.provenance = replace(
            self.provenance, extra={**self.provenance.extra, "resampled_from": len(self), "resample_seed": seed}
        )
        return drawn

    def _rows(
        self, rows: np.ndarray, log_weights: np.ndarray, *, groups: np.ndarray, sizes: np.ndarray | None
    ) -> "Ensemble":
        return self._like(
            samples={name: values[rows] for name, values in self.samples.items()},
            log_weights=log_weights,
            reduced_energies=self.reduced_energies[rows],
            groups=groups[rows],
            group_sizes=sizes,
            chain=None if self.chain is None else self.chain[rows],
            frame=None if self.frame is None else self.frame[rows],
        )

    def _like(self, **changes: Any) -> "Ensemble":
        """A new ensemble with some constructor arguments changed."""
        kept = {
            "samples": self.samples,
            "log_weights": self.log_weights,
            "reduced_energies": self.reduced_energies,
            "target": self.target,
            "spaces": self.spaces,
            "context": self.context,
            "base": self.base,
            "normalisation": self.normalisation,
            "log_z_base": self.log_z_base,
            "groups": self.groups,
            "group_sizes": self.group_sizes,
            "groups_shared": self.groups_shared,
            "chain": self.chain,
            "frame": self.frame,
            "topology": self.topology_json,
            "provenance": self.provenance,
        }
        return Ensemble(**{**kept, **changes})

    @classmethod
    def merge(cls, parts: Sequence["Ensemble"]) -> "Ensemble":
        """Join shards of one target, context, normalisation and base; no log-weight is changed.

        Groups and chains of different shards are taken as independent of each other.

        Raises:
            ValueError: If they differ in one of those, which the error names.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("Ensemble.merge: expected at least one ensemble, got none.")
        first = parts[0]
        for number, part in enumerate(parts[1:], start=2):
            differing = first._differences(part)
            if differing:
                raise ValueError(
                    f"Ensemble.merge: ensemble {number} differs from the first in {'; '.join(differing)}. Merge only "
                    "shards of one run, "
                    "or reweight one to the other's target."
                )
        groups, sizes = first._merged_groups(parts)
        chains, frames, next_chain = [], [], 0
        for part in parts:
            if part.chain is not None:
                _, ids = np.unique(part.chain, return_inverse=True)
                chains.append(ids + next_chain)
                frames.append(np.arange(len(part)) if part.frame is None else part.frame)
                next_chain += int(ids.max()) + 1
        return first._like(
            samples={name: np.concatenate([p.samples[name] for p in parts]) for name in first.samples},
            log_weights=np.concatenate([p.log_weights for p in parts]),
            reduced_energies=np.concatenate([p.reduced_energies for p in parts]),
            groups=groups,
            group_sizes=sizes,
            chain=np.concatenate(chains) if chains else None,
            frame=np.concatenate(frames) if chains else None,
            provenance=Provenance.merged([p.provenance for p in parts]),
        )

    def _merged_groups(self, parts: list["Ensemble"]) -> tuple[np.ndarray, np.ndarray | None]:
        """Group ids and starting sizes of merged shards: shared groups stay one, others are new in every shard."""
        if self.groups_shared:
            ids = np.concatenate([p.groups for p in parts])
            if all(p.group_sizes is None for p in parts):
                return ids, None
            counts = [np.bincount(p.groups) if p.group_sizes is None else p.group_sizes for p in parts]
            total = np.zeros(max(map(len, counts)))
            for count in counts:
                total[: len(count)] += count
            return ids, total
        groups, sizes, first = [], [], 0
        for part in parts:
            ids, started = part._started()
            groups.append(ids + first)
            # after resampling a shard started with another number of rows than it has now
            sizes.append(started * (len(part) / started.sum()))
            first += 0 if self.groups_shared else len(started)
        if not self.groups_shared:
            return np.concatenate(groups), np.concatenate(sizes)
        total = np.zeros(max(len(started) for started in sizes))
        for started in sizes:
            total[: len(started)] += started
        return np.concatenate(groups), total

    def _started(self) -> tuple[np.ndarray, np.ndarray]:
        """Group of every row and the rows with which every group started; shared groups keep their ids."""
        if self.groups_shared and self.group_sizes is None:
            return self.groups, np.bincount(self.groups).astype(float)
        return self._groups.ids, self._groups.sizes

    def _differences(self, other: "Ensemble") -> list[str]:
        """What keeps two ensembles from being merged, in words."""
        pairs = {
            "target": (self.target, other.target),
            "context": (self.context, other.context),
            "normalisation": (self.normalisation, other.normalisation),
            "base": (self.base, other.base),
            "log_z_base": (self.log_z_base, other.log_z_base),
            "fields": (self.spaces, other.spaces),
            "groups_shared": (self.groups_shared, other.groups_shared),
            "chains": (self.chain is not None, other.chain is not None),
        }
        found = [f"{name}: {mine!r} and {theirs!r}" for name, (mine, theirs) in pairs.items() if mine != theirs]
        return found if self.topology_json == other.topology_json else [*found, "topology"]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file, atomically; with a topology `mdtraj.load` opens it as a trajectory."""
        columns = {"log_weights": self.log_weights, "reduced_energies": self.reduced_energies, "groups": self.groups}
        columns.update({n: v for n, v in (("chain", self.chain), ("frame", self.frame)) if v is not None})
        tables = {} if self.group_sizes is None else {"group_sizes": self.group_sizes}
        metadata = {
            "target": self.target,
            "spaces": {
                n: {"kind": s.kind, "shape": list(s.shape), "dimension": s.dimension} for n, s in self.spaces.items()
            },
            "context": self.context,
            "base": self.base,
            "normalisation": self.normalisation,
            "log_z_base": self.log_z_base,
            "groups_shared": self.groups_shared,
            "provenance": self.provenance.as_dict(),
        }
        write_ensemble(path, EnsembleRecord(self.samples, columns, tables, metadata, self.topology_json))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Ensemble":
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: If there is none.
            FormatError: If the file is from elsewhere, damaged, or holds NaN or inf where a weight is.
        """
        record = read_ensemble(path)
        meta = record.metadata
        try:
            spaces = {n: Space(s["kind"], tuple(s["shape"]), s["dimension"]) for n, s in meta["spaces"].items()}
            provenance = Provenance.from_dict(meta["provenance"])
            known = {k: meta[k] for k in ("target", "context", "base", "normalisation", "log_z_base", "groups_shared")}
            columns = {
                k: record.columns.get(k) for k in ("log_weights", "reduced_energies", "groups", "chain", "frame")
            }
            if columns["log_weights"] is None or columns["reduced_energies"] is None:
                raise KeyError("log_weights or reduced_energies")
            return cls(
                samples=record.samples,
                spaces=spaces,
                provenance=provenance,
                topology=record.topology,
                group_sizes=record.tables.get("group_sizes"),
                **known,
                **columns,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path}: the ensemble file is damaged: {error}") from error

    def to_state(self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> State:
        """All rows as a State; `dtype` applies to floating-point fields (None = as sampled)."""
        return State({n: torch.from_numpy(v) for n, v in self.samples.items()}, self.spaces).to(
            device=device, dtype=dtype
        )

    def to_mdtraj(self) -> Any:
        """An mdtraj.Trajectory of the field "positions" (all rows, unweighted; see `resample`).

        Raises:
            ValueError: If there is no topology or no such field.
        """
        import mdtraj

        if self.topology_json is None or "positions" not in self.samples:
            raise ValueError(
                "to_mdtraj: needs a topology and a field 'positions'; this ensemble has fields "
                f"{sorted(self.samples)} and "
                f"{'a' if self.topology_json else 'no'} topology."
            )
        return mdtraj.Trajectory(self.samples["positions"].astype(np.float32), self.topology)


def _to_array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _plain(value: Any) -> Any:
    """A context value as JSON can hold it."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"context: expected numbers, strings, tensors or lists of them, got {type(value).__name__}.")
