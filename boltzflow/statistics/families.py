"""Families of a resampled population: how many of the first rows have descendants, and how large they are."""

from dataclasses import dataclass

import numpy as np

from boltzflow._typing import Tensor
from boltzflow.statistics.weights import ArrayLike, normalised_weights

__all__ = ["FamilyStatistics", "family_statistics"]


@dataclass(frozen=True)
class FamilyStatistics:
    """What the ancestry of a population says of it.

    Args:
        n: Rows with which it started.
        n_families: First rows that have a descendant of non-zero weight.
        rho_t: n Σ ν², ν the share of every family in the weight: 1 if all families are alike, n if there is one.
            Errors are about those of n / rho_t independent rows.
        rho_s: n exp(Σ ν ln ν), the same from the entropy of the families.
        largest: Share of the largest family.
    """

    n: int
    n_families: int
    rho_t: float
    rho_s: float
    largest: float


def family_statistics(
    lineage: ArrayLike, *, log_weights: ArrayLike | None = None, n: int | None = None
) -> FamilyStatistics:
    """Sizes of the families of one population, by weight.

    Args:
        lineage: First row from which every row descends, shape (n_rows,), integers; `Trajectory.lineage`, or the
            `groups` of a population that was sampled alone.
        log_weights: Shape (n_rows,); None = equal.
        n: Rows with which the population started; None = n_rows.

    References:
        Wang, Machta and Katzgraber, Phys. Rev. E 92, 063307 (2015): the mean square family size rho_t, and rho_s.

    Example:
        >>> family_statistics([0, 0, 1, 1]).rho_t
        2.0
    """
    ids = np.asarray(lineage.detach().cpu() if isinstance(lineage, Tensor) else lineage)
    n = len(ids) if n is None else n
    weights = np.full(len(ids), 1.0 / len(ids)) if log_weights is None else normalised_weights(log_weights)
    _, ids = np.unique(ids, return_inverse=True)
    share = np.bincount(ids, weights=weights)
    share = share[share > 0]
    return FamilyStatistics(
        n=n,
        n_families=len(share),
        rho_t=float(n * np.sum(share**2)),
        rho_s=float(n * np.exp(np.sum(share * np.log(share)))),
        largest=float(share.max()),
    )
