"""Correlated chains: statistical inefficiency, effective number of samples, split R-hat."""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from boltzflow.statistics._pymbar import quiet_pymbar
from boltzflow.statistics.weights import ArrayLike, to_numpy

__all__ = ["effective_samples", "split_rhat", "statistical_inefficiency"]


def statistical_inefficiency(chains: Sequence[ArrayLike]) -> float:
    """Statistical inefficiency g = 1 + 2τ of one or several chains of one process, about their common mean.

    Args:
        chains: One series per chain, each (n_frames,), possibly of different length.

    Returns:
        g, between 1 and the mean length; a series that never changes counts as one sample per chain, so g is its
        length.

    References:
        Chodera et al., J. Chem. Theory Comput. 3, 26 (2007), eq. 26; computed by pymbar.timeseries.
    """
    series = [to_numpy(c) for c in chains]
    mean_length = float(np.mean([len(s) for s in series]))
    pooled = np.concatenate(series)
    if not np.all(np.isfinite(pooled)):
        raise ValueError("statistical_inefficiency: a chain holds NaN or inf; drop or repair those frames.")
    # a spread at the level of rounding is no signal: the chain is stuck
    if np.ptp(pooled) <= 1e-12 * max(1e-300, float(np.max(np.abs(pooled)))):
        return mean_length
    return float(
        np.clip(quiet_pymbar().timeseries.statistical_inefficiency_multiple(series), 1.0, max(1.0, mean_length))
    )


def effective_samples(chains: Sequence[ArrayLike]) -> float:
    """Number of independent samples in one or several chains of one process, Σ n_frames / g."""
    return sum(len(c) for c in chains) / statistical_inefficiency(chains)


def split_rhat(chains: ArrayLike | Sequence[ArrayLike]) -> float:
    """Rank-normalised split R-hat of one observable, the larger of bulk and tail.

    Args:
        chains: Shape (n_chains, n_frames), n_frames >= 4; one chain is allowed, as its halves are compared.

    Returns:
        R-hat; below 1.01 the chains agree. +inf where a half chain never changes while others do, or none does.

    References:
        Vehtari et al., Bayesian Analysis 16, 667 (2021), section 4.
    """
    values = np.stack([to_numpy(c) for c in chains])
    if values.ndim != 2 or values.shape[1] < 4:
        raise ValueError(
            f"split_rhat: expected chains of shape (n_chains, n_frames) with n_frames >= 4, got {values.shape}."
        )
    if not np.all(np.isfinite(values)):
        raise ValueError("split_rhat: a chain holds NaN or inf; drop or repair those frames.")
    half = values.shape[1] // 2
    halves = np.concatenate([values[:, :half], values[:, -half:]])
    if np.any(np.ptp(halves, axis=1) == 0):
        return np.inf
    return max(_rhat(_normal_scores(halves)), _rhat(_normal_scores(np.abs(halves - np.median(halves)))))


def _normal_scores(values: np.ndarray) -> np.ndarray:
    """Normal quantiles of the fractional ranks (Blom)."""
    return ndtri((rankdata(values).reshape(values.shape) - 0.375) / (values.size + 0.25))


def _rhat(values: np.ndarray) -> float:
    n = values.shape[1]
    within = np.mean(np.var(values, axis=1, ddof=1))
    between = n * np.var(np.mean(values, axis=1), ddof=1)
    with np.errstate(divide="ignore"):
        return float(np.sqrt((between / within + n - 1) / n))
