"""Which rows are independent of each other: the variance of a sum between groups, or inside correlated chains."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from boltzflow._typing import Tensor
from boltzflow.statistics.chains import statistical_inefficiency
from boltzflow.statistics.weights import ArrayLike, to_numpy

__all__ = ["GroupError", "Groups"]


@dataclass(frozen=True)
class GroupError:
    """Standard error of a sum over rows: `error`, its `degrees` of freedom, and the `method` in words."""

    error: float
    degrees: float
    method: str


@dataclass(frozen=True, eq=False)
class Groups:
    """How the rows of an ensemble depend on each other.

    Every estimator here is a smooth function of sums over rows; linearised, its fluctuation is a sum of one term per
    row, and only the variance of that sum depends on how the rows were made. `error` computes it.

    Args:
        ids: Group of every row, shape (n,), int64, in 0 … n_groups − 1: population, base frame, lineage, parent.
        sizes: Rows with which every group started, shape (n_groups,), float64. It differs from the count of its rows
            after resampling: a lineage that died out started with one row and has none. Only ratios matter.
        chains: For correlated frames, the rows of every chain in time order; then `ids` is not used for errors.
    """

    ids: np.ndarray
    sizes: np.ndarray
    chains: tuple[np.ndarray, ...] | None = None

    @classmethod
    def rows(cls, n: int) -> "Groups":
        """Independent rows: every row its own group."""
        return cls(np.arange(n), np.ones(n))

    @classmethod
    def of(cls, ids: ArrayLike | None, n: int, *, sizes: ArrayLike | None = None) -> "Groups":
        """Groups from ids of any integers (None: independent rows).

        Args:
            ids: Shape (n,); relabelled to 0 … M − 1 in sorted order unless `sizes` is given, which fixes the labels.
            n: Number of rows.
            sizes: Rows with which group 0 … M − 1 started, shape (M,).
        """
        if ids is None:
            if sizes is not None:
                raise ValueError("Groups: sizes were given without the group of every row.")
            return cls.rows(n)
        ids = np.asarray(ids.detach().cpu() if isinstance(ids, Tensor) else ids)
        if ids.shape != (n,) or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"Groups: expected one integer per row, shape ({n},), got {ids.dtype} of shape {ids.shape}."
            )
        if sizes is None:
            _, ids = np.unique(ids, return_inverse=True)
            return cls(ids.astype(np.int64), np.bincount(ids).astype(float))
        sizes = to_numpy(sizes)
        if sizes.ndim != 1 or not np.all(np.isfinite(sizes)) or np.any(sizes < 0) or sizes.sum() <= 0:
            raise ValueError(
                f"Groups: expected sizes >= 0 of shape (n_groups,), not all zero, got shape {sizes.shape}."
            )
        if n and (ids.min() < 0 or ids.max() >= len(sizes)):
            raise ValueError(
                f"Groups: ids must lie in 0 … {len(sizes) - 1} (one size each), got {ids.min()} … {ids.max()}."
            )
        return cls(ids.astype(np.int64), sizes)

    @classmethod
    def of_chains(cls, chain: ArrayLike, frame: ArrayLike | None = None) -> "Groups":
        """Correlated frames of one or several independent chains.

        Args:
            chain: Chain id of every row, shape (n,), integers.
            frame: Time index of every row, shape (n,); rows of a chain are taken in their order without it.
        """
        chain = np.asarray(chain.detach().cpu() if isinstance(chain, Tensor) else chain)
        frame = (
            np.arange(len(chain))
            if frame is None
            else np.asarray(frame.detach().cpu() if isinstance(frame, Tensor) else frame)
        )
        if frame.shape != chain.shape or chain.ndim != 1:
            raise ValueError(f"Groups: chain and frame need one shape (n,), got {chain.shape} and {frame.shape}.")
        _, ids = np.unique(chain, return_inverse=True)
        order = np.lexsort((frame, ids))
        ends = np.cumsum(np.bincount(ids))[:-1]
        return cls(ids.astype(np.int64), np.bincount(ids).astype(float), tuple(np.split(order, ends)))

    def __len__(self) -> int:
        """Number of groups that started with a row or more."""
        return int(np.count_nonzero(self.sizes))

    @cached_property
    def shares(self) -> np.ndarray:
        """Part of the whole with which every group started, shape (n_groups,); sums to one."""
        return self.sizes / self.sizes.sum()

    def totals(self, terms: np.ndarray) -> np.ndarray:
        """Sum of the terms of every group, shape (n_groups,)."""
        return np.bincount(self.ids, weights=terms, minlength=len(self.sizes))

    def blocks(self, terms: np.ndarray) -> "Groups":
        """Groups that may be resampled: chains are cut into blocks of three statistical inefficiencies of the terms."""
        if self.chains is None:
            return self
        length = max(1, int(np.ceil(3 * self.inefficiency(terms))))
        ids = np.empty(len(self.ids), dtype=np.int64)
        first = 0
        for rows in self.chains:
            ids[rows] = first + np.arange(len(rows)) // length
            first = int(ids[rows[-1]]) + 1
        return Groups(ids, np.bincount(ids).astype(float))

    def inefficiency(self, terms: np.ndarray) -> float:
        """Statistical inefficiency g >= 1 of the terms along the chains, about their common mean; 1 without chains."""
        return 1.0 if self.chains is None else statistical_inefficiency([terms[rows] for rows in self.chains])

    def error(self, terms: np.ndarray) -> GroupError:
        """Standard error of the sum of the terms.

        Between groups, var = M/(M−1) Σ_g (t_g − s_g Σt)², t_g the sum over group g and s_g the share with which it
        started. Inside chains, var = g m/(m−1) Σ (t − mean)², m = n/g independent frames, with the correlation
        function taken about the mean of all chains, so that chains that disagree give a large g.

        Args:
            terms: Linearised contribution of every row, shape (n,), float64.

        Raises:
            ValueError: If there is only one group and no chains.
        """
        if self.chains is not None:
            g = self.inefficiency(terms)
            n_independent = len(terms) / g
            if n_independent < 2:
                raise ValueError(
                    f"The {len(terms)} frames of {len(self.chains)} chain(s) hold fewer than 2 independent ones "
                    f"(statistical inefficiency {g:.3g}): run longer or more chains."
                )
            variance = g * np.sum((terms - terms.mean()) ** 2) * n_independent / (n_independent - 1)
            method = f"inside {len(self.chains)} chain(s), statistical inefficiency {g:.3g}"
            return GroupError(float(np.sqrt(variance)), n_independent - 1, method)
        m = len(self)
        if m < 2:
            raise ValueError(
                f"All {len(terms)} rows belong to one group, so there is no error between groups: sample several "
                "populations, or "
                "give the lineage of every row."
            )
        deviations = self.totals(terms) - self.shares * terms.sum()
        variance = np.sum(deviations**2) * m / (m - 1)
        return GroupError(float(np.sqrt(variance)), float(m - 1), f"between {m} groups")
