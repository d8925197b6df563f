"""Correlated chains: statistical inefficiency, effective number of samples, split R-hat, bulk and tail ESS."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from boltzflow.statistics._pymbar import quiet_pymbar
from boltzflow.statistics.weights import ArrayLike, to_numpy

__all__ = ["bulk_ess", "effective_samples", "split_rhat", "statistical_inefficiency", "tail_ess"]


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


def split_rhat(chains: ArrayLike | Sequence[ArrayLike], *, ranked: bool = True) -> float:
    """Split R-hat of one observable, by arviz-stats.

    Args:
        chains: Shape (n_chains, n_frames), n_frames >= 4; the halves of a single chain count as two.
        ranked: Rank-normalised, the larger of bulk and tail; False compares means, which serves indicators of rare
            regions that some halves never visit.

    Returns:
        R-hat; below 1.01 the chains agree. +inf where no half of a chain ever changes but they differ; where nothing
        varies at all +inf, or NaN if not ranked.

    References:
        Vehtari et al., Bayesian Analysis 16, 667 (2021), section 4; Gelman et al., Bayesian Data Analysis, 3rd ed.,
        section 11.4.
    """
    values = _equally_long(chains)
    half = values.shape[1] // 2
    if len(values) == 1:
        values = np.stack([values[0, :half], values[0, -half:]])
        half //= 2
    if np.ptp(values) == 0:
        return np.inf if ranked else np.nan
    if np.all(np.ptp(values[:, :half], axis=1) == 0) and np.all(np.ptp(values[:, -half:], axis=1) == 0):
        return np.inf
    return float(_arviz().rhat(values, method="rank" if ranked else "split"))


def bulk_ess(chains: ArrayLike | Sequence[ArrayLike]) -> float:
    """Effective number of frames for the centre of the distribution of an observable, by arviz-stats.

    Args:
        chains: Shape (n_chains, n_frames), n_frames >= 4.

    Returns:
        The number over all chains; that of the chains where nothing varies.

    References:
        Vehtari et al., Bayesian Analysis 16, 667 (2021), section 4.
    """
    return _ess(chains, method="bulk")


def tail_ess(chains: ArrayLike | Sequence[ArrayLike]) -> float:
    """Effective number of frames for the 5 % and 95 % quantiles of an observable, the smaller one, by arviz-stats.

    Args:
        chains: Shape (n_chains, n_frames), n_frames >= 4.

    Returns:
        The number over all chains; that of the chains where nothing varies.

    References:
        Vehtari et al., Bayesian Analysis 16, 667 (2021), section 4.
    """
    return _ess(chains, method="tail", prob=(0.05, 0.95))


def _ess(chains: ArrayLike | Sequence[ArrayLike], **options: Any) -> float:
    values = _equally_long(chains)
    # of constants arviz says that every frame is independent
    return float(len(values)) if np.ptp(values) == 0 else float(_arviz().ess(values, **options))


def _equally_long(chains: ArrayLike | Sequence[ArrayLike]) -> np.ndarray:
    values = np.stack([to_numpy(c) for c in chains])
    if values.ndim != 2 or values.shape[1] < 4:
        raise ValueError(f"chains: expected the shape (n_chains, n_frames) with n_frames >= 4, got {values.shape}.")
    if not np.all(np.isfinite(values)):
        raise ValueError("chains: one holds NaN or inf; drop or repair those frames.")
    return values


def _arviz() -> Any:
    # imports scipy.stats, which takes a while
    from arviz_stats.base import array_stats

    return array_stats
