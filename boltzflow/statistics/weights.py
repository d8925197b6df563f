"""Log-weights: means of exponentials, effective sample sizes and the Pareto shape of their tail."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp

from boltzflow._typing import Tensor
from boltzflow.errors import NonFiniteEnergyError

__all__ = [
    "ArrayLike",
    "ParetoTail",
    "checked_log_weights",
    "forward_ess_fraction",
    "kish_ess",
    "log_mean_exp",
    "log_sum_exp",
    "normalised_weights",
    "pareto_k",
    "pareto_tail",
    "to_numpy",
    "weighted_quantile",
]

ArrayLike = Tensor | np.ndarray | Sequence[float] | Sequence[int]


def to_numpy(values: ArrayLike) -> np.ndarray:
    """A float64 array on the host; a tensor is detached."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def log_sum_exp(values: Tensor, dim: int = -1) -> Tensor:
    """Log Σ exp along a dimension, in float64."""
    return torch.logsumexp(values.double(), dim)


def log_mean_exp(values: Tensor, dim: int = -1) -> Tensor:
    """Log of the mean of exp along a dimension, in float64; rows of −inf count in the mean."""
    return log_sum_exp(values, dim) - np.log(values.shape[dim])


def checked_log_weights(log_weights: ArrayLike) -> np.ndarray:
    """Log-weights as a float64 array (n,).

    Raises:
        ValueError: If there is none, or the shape is not (n,).
        NonFiniteEnergyError: If one is NaN or +inf, or all are −inf.
    """
    log_w = to_numpy(log_weights)
    if log_w.ndim != 1 or log_w.size == 0:
        raise ValueError(f"log_weights: expected shape (n,) with n >= 1, got {log_w.shape}.")
    bad = int(np.sum(np.isnan(log_w) | (log_w == np.inf)))
    if bad:
        raise NonFiniteEnergyError(
            f"log_weights: {bad} of {log_w.size} are NaN or +inf (-inf is a weight of zero and allowed); the energy "
            "of the target or the "
            "log-ratio of a transition is wrong for those rows."
        )
    if np.all(log_w == -np.inf):
        raise NonFiniteEnergyError(
            f"log_weights: all {log_w.size} are -inf, so every sample has a non-finite energy; check the generator "
            "against the target."
        )
    return log_w


def normalised_weights(log_weights: ArrayLike) -> np.ndarray:
    """Weights that sum to one, float64 (n,)."""
    log_w = checked_log_weights(log_weights)
    w = np.exp(log_w - log_w.max())
    return w / w.sum()


def kish_ess(log_weights: ArrayLike) -> float:
    """Effective sample size (Σw)²/Σw² over all rows, unfiltered.

    It says nothing of correlation between rows, and cannot see a mode that the samples missed.

    References:
        Kish, Survey Sampling (1965).
    """
    return float(1.0 / np.sum(normalised_weights(log_weights) ** 2))


def forward_ess_fraction(log_weights: ArrayLike, *, reference_log_weights: ArrayLike | None = None) -> float:
    """Effective sample fraction seen from the target, 1/(E_p[w] E_p[1/w]), with w = p/q at samples of p.

    Unlike the Kish ESS of a generator's own samples it falls when the generator q misses a mode of p.

    Args:
        log_weights: log w of the paths traced back from the reference samples, shape (n,).
        reference_log_weights: The reference's own log-weights, shape (n,); None = equal.

    Returns:
        Between 0 and 1; 0 if some row has w = 0.
    """
    log_w = checked_log_weights(log_weights)
    own = np.zeros_like(log_w) if reference_log_weights is None else checked_log_weights(reference_log_weights)
    if own.shape != log_w.shape:
        raise ValueError(
            f"forward_ess_fraction: expected one reference weight per row, {log_w.shape}, got {own.shape}."
        )
    keep = own > -np.inf
    own, log_w = own[keep] - logsumexp(own[keep]), log_w[keep]
    return float(np.exp(-logsumexp(own + log_w) - logsumexp(own - log_w)))


def pareto_k(log_weights: ArrayLike) -> float:
    """Shape k of the generalised Pareto distribution fitted to the largest weights (PSIS diagnostic).

    Below 0.7 the error bars of weighted means can be trusted; the variance of the weights is finite below 0.5.

    Args:
        log_weights: Shape (n,); rows of −inf count in n.

    Returns:
        k-hat; +inf if fewer than 5 distinct weights lie in the tail, which shows nothing, or −inf if all weights are
        equal.

    References:
        Vehtari et al., Pareto smoothed importance sampling, J. Mach. Learn. Res. 25, 72 (2024): tail of min(n/5, 3√n)
        weights, and the weak prior towards k = 1/2; fit of Zhang & Stephens, Technometrics 51, 316 (2009).
    """
    log_w = checked_log_weights(log_weights)
    if np.ptp(log_w) == 0:
        return -np.inf
    tail = pareto_tail(log_w)
    return np.inf if tail is None else tail.k


@dataclass(frozen=True, eq=False)
class ParetoTail:
    """A generalised Pareto distribution fitted to the largest weights, in units of the mean weight.

    Args:
        k: Shape, with its weak prior.
        scale: Scale, of the excess over the threshold.
        threshold: Weight at which the tail begins.
        weights: Those in the tail, ascending.
        n: Number of all weights.
    """

    k: float
    scale: float
    threshold: float
    weights: np.ndarray
    n: int

    def survival(self, w: np.ndarray) -> np.ndarray:
        """Fraction of all weights that the fit puts above w >= threshold, of the shape of w."""
        relative = (np.asarray(w) - self.threshold) / self.scale
        if abs(self.k) < 1e-9:
            decay = np.exp(-relative)
        else:
            decay = np.maximum(0.0, 1.0 + self.k * relative) ** (-1.0 / self.k)
        return self.weights.size / self.n * decay


def pareto_tail(log_weights: ArrayLike) -> ParetoTail | None:
    """The fit behind `pareto_k`; None if fewer than 5 distinct weights lie in the tail.

    Args:
        log_weights: Shape (n,); rows of −inf count in n.
    """
    log_w = checked_log_weights(log_weights)
    n = log_w.size
    n_tail = int(min(0.2 * n, 3 * np.sqrt(n)))
    if n_tail < 5:
        return None
    top = np.sort(np.partition(log_w, n - n_tail - 1)[n - n_tail - 1 :])
    highest, top = top[-1], np.exp(top - top[-1])
    excess = top[1:] - top[0]
    above = excess > 0
    if np.unique(excess[above]).size < 5:
        return None
    k, scale = _pareto_fit(excess[above])
    unit = float(np.exp(highest - logsumexp(log_w) + np.log(n)))
    return ParetoTail(k, scale * unit, float(top[0]) * unit, top[1:][above] * unit, n)


def _pareto_fit(excess: np.ndarray) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution by posterior means; excess is sorted and positive."""
    n = excess.size
    prior = 3.0
    m = 30 + int(np.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    theta = 1.0 / excess[-1] + (1.0 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (prior * quartile)
    shape = np.mean(np.log1p(-theta[:, None] * excess), axis=1)
    log_likelihood = n * (np.log(-theta / shape) - shape - 1.0)
    posterior = np.exp(log_likelihood - logsumexp(log_likelihood))
    best = float(np.sum(theta * posterior))
    k = float(np.mean(np.log1p(-best * excess)))
    # prior worth 10 observations at k = 1/2
    return (n * k + 10 * 0.5) / (n + 10), -k / best


def weighted_quantile(
    values: ArrayLike, q: float | Sequence[float], *, log_weights: ArrayLike | None = None
) -> np.ndarray:
    """Quantiles of a weighted sample by linear interpolation of its cumulative weight at mid-steps.

    Args:
        values: Shape (n,).
        q: One level or several, each in [0, 1].
        log_weights: Shape (n,); None = equal weights.

    Returns:
        float64, of the shape of q.
    """
    x = to_numpy(values)
    w = np.full(x.size, 1.0 / x.size) if log_weights is None else normalised_weights(log_weights)
    levels = np.asarray(q, dtype=float)
    if x.shape != w.shape:
        raise ValueError(f"weighted_quantile: expected one weight per value, {x.shape}, got {w.shape}.")
    if np.any((levels < 0) | (levels > 1)):
        raise ValueError(f"weighted_quantile: expected levels in [0, 1], got {q}.")
    x, w = x[w > 0], w[w > 0]
    order = np.argsort(x)
    cumulative = np.cumsum(w[order]) - 0.5 * w[order]
    return np.asarray(np.interp(levels, cumulative, x[order]))
