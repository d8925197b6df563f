"""Weighted means and normalisation constants, with errors between groups by linearisation or bootstrap."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.special import logsumexp

from boltzflow.errors import NonFiniteEnergyError
from boltzflow.estimate import Estimate
from boltzflow.statistics.groups import Groups
from boltzflow.statistics.weights import (
    ArrayLike,
    checked_log_weights,
    kish_ess,
    normalised_weights,
    pareto_k,
    to_numpy,
)

__all__ = ["bootstrap_error", "elbo", "eubo", "exp_free_energy", "expectation", "log_z", "weight_warnings"]

ErrorMethod = Literal["linear", "bootstrap"]
N_BOOTSTRAP = 1000
# means over more groups than this are resampled in random blocks of groups, which are as independent as the groups
MAX_BLOCKS = 2000


def weight_warnings(log_weights: ArrayLike) -> tuple[str, ...]:
    """Reasons in the weights to distrust error bars: Pareto k-hat above 0.7, fewer than 50 effective samples."""
    log_w = checked_log_weights(log_weights)
    if np.ptp(log_w) == 0:
        return ()
    warnings = []
    k = pareto_k(log_w)
    if k > 0.7:
        warnings.append(f"k-hat {k:.2f} > 0.7: the error bar cannot be trusted")
    ess = kish_ess(log_w)
    if ess < min(50, 0.5 * log_w.size):
        warnings.append(f"low overlap: Kish ESS {ess:.1f} of {log_w.size}")
    return tuple(warnings)


def log_z(
    log_weights: ArrayLike, *, groups: Groups | None = None, error: ErrorMethod = "linear", seed: int = 0
) -> Estimate:
    """Log of the mean weight, i.e. log(Z_target / Z_base).

    Args:
        log_weights: Shape (n,), float64.
        groups: How the rows depend on each other; None = independent. With the lineages of one resampled population the
            error also holds the coalescence of lineages of equal weight, and is up to a factor of 3 too large
            (measured); errors between populations have no such excess.
        error: "linear" (delta method) or "bootstrap", both between groups.
        seed: Of the bootstrap.

    Returns:
        An Estimate in units of kT (a pure logarithm).

    Raises:
        NonFiniteEnergyError: If the weights are NaN, +inf or all zero.
        ValueError: If all weights are equal or there is one group, so that no error can be found.
    """
    log_w = checked_log_weights(log_weights)
    groups = Groups.rows(log_w.size) if groups is None else groups
    w = normalised_weights(log_w)
    found = groups.error(w)
    value = float(logsumexp(log_w) - np.log(log_w.size))
    std, method = found.error, f"delta method {found.method}"
    # equal weights leave rounding, not a measured spread
    if std <= 1e-13:
        raise ValueError(
            f"log_z: all {log_w.size} weights are equal (log w = {value:.12g}), so their spread shows no error; if "
            "the generator samples "
            "the target exactly this value is exact."
        )
    if error == "bootstrap":
        blocks = groups.blocks(w)
        std = bootstrap_error(lambda s: np.log(s[0] / s[1]), [blocks.totals(w), blocks.shares], seed=seed)
        method = f"bootstrap over {len(blocks)} groups"
    return Estimate(
        value,
        std,
        method=method,
        n_effective=1.0 / (std**2 + 1.0 / log_w.size),
        degrees=found.degrees,
        warnings=weight_warnings(log_w),
    )


def expectation(
    values: ArrayLike,
    *,
    log_weights: ArrayLike | None = None,
    groups: Groups | None = None,
    error: ErrorMethod = "linear",
    seed: int = 0,
    unit: str = "",
) -> Estimate:
    """Self-normalised weighted mean Σ w a / Σ w, its error by linearisation of the ratio.

    Args:
        values: a, shape (n,); may be non-finite where the weight is zero.
        log_weights: Shape (n,); None = equal weights.
        groups: How the rows depend on each other; None = independent.
        error: "linear" or "bootstrap", both between groups.
        seed: Of the bootstrap.
        unit: Of the values.

    Raises:
        NonFiniteEnergyError: If a value with a weight is not finite, or the weights are unusable.
        ValueError: If the values do not vary, or there is one group.
    """
    a = to_numpy(values)
    log_w = np.zeros(a.shape) if log_weights is None else to_numpy(log_weights)
    if a.ndim != 1 or a.shape != log_w.shape:
        raise ValueError(f"expectation: expected one value per row, shape {log_w.shape}, got {a.shape}.")
    w = normalised_weights(log_w)
    bad = int(np.sum(~np.isfinite(a[w > 0])))
    if bad:
        raise NonFiniteEnergyError(f"expectation: {bad} of {a.size} values are NaN or inf in rows of non-zero weight.")
    a = np.where(w > 0, a, 0.0)
    groups = Groups.rows(a.size) if groups is None else groups
    mean = float(np.sum(w * a))
    terms = w * (a - mean)
    found = groups.error(terms)
    std, method = found.error, f"ratio estimator {found.method}"
    if error == "bootstrap":
        blocks = groups.blocks(terms)
        std = bootstrap_error(lambda s: s[0] / s[1], [blocks.totals(w * a), blocks.totals(w)], seed=seed)
        method = f"bootstrap over {len(blocks)} groups"
    spread = float(np.sum(w * (a - mean) ** 2))
    if std <= 1e-13 * max(abs(mean), float(np.max(np.abs(a)))):
        raise ValueError(f"expectation: the values do not vary between rows (mean {mean:.6g}), so they show no error.")
    return Estimate(
        mean,
        std,
        method=method,
        n_effective=spread / std**2,
        unit=unit,
        degrees=found.degrees,
        warnings=weight_warnings(log_w),
    )


def exp_free_energy(
    work: ArrayLike, *, groups: Groups | None = None, error: ErrorMethod = "linear", seed: int = 0
) -> Estimate:
    """One-sided free-energy difference −log E[exp(−w)] from reduced work values w (n,), in kT.

    References:
        Zwanzig, J. Chem. Phys. 22, 1420 (1954); Jarzynski, Phys. Rev. Lett. 78, 2690 (1997).
    """
    return log_z(-to_numpy(work), groups=groups, error=error, seed=seed).scaled(-1.0, "kT")


def elbo(log_weights: ArrayLike, *, groups: Groups | None = None) -> Estimate:
    """Evidence lower bound E_q[log w] <= log(Z_target / Z_base), from a generator's own samples.

    Raises:
        NonFiniteEnergyError: If a weight is zero: the bound is then −inf.
    """
    log_w = checked_log_weights(log_weights)
    zero = int(np.sum(log_w == -np.inf))
    if zero:
        raise NonFiniteEnergyError(f"elbo: {zero} of {log_w.size} rows have weight zero, so the bound is -inf.")
    return _plain_mean(log_w, None, groups)


def eubo(
    log_weights: ArrayLike, *, reference_log_weights: ArrayLike | None = None, groups: Groups | None = None
) -> Estimate:
    """Evidence upper bound E_p[log w] >= log(Z_target / Z_base), from reference samples traced back.

    Args:
        log_weights: log w of the paths traced back, shape (n,).
        reference_log_weights: The reference's own log-weights, shape (n,); None = equal.
        groups: How the reference rows depend on each other.
    """
    return _plain_mean(to_numpy(log_weights), reference_log_weights, groups)


def _plain_mean(values: np.ndarray, log_weights: ArrayLike | None, groups: Groups | None) -> Estimate:
    return expectation(values, log_weights=log_weights, groups=groups, unit="kT")


def bootstrap_error(
    statistic: Callable[[np.ndarray], np.ndarray],
    sums: list[np.ndarray],
    *,
    seed: int = 0,
    n_resamples: int = N_BOOTSTRAP,
) -> float:
    """Standard deviation of a statistic of sums over groups when whole groups are drawn with replacement.

    Args:
        statistic: Takes an array (len(sums), n_resamples) of resampled sums and returns (n_resamples,).
        sums: Sums by group, each (n_groups,), float64.
        seed: Of the resampling.
        n_resamples: Number of bootstrap replicates.

    Raises:
        ValueError: If there are fewer than 2 groups, or more than a hundredth of the replicates are not finite.

    References:
        Efron, Ann. Statist. 7, 1 (1979).
    """
    rng = np.random.default_rng(seed)
    table = np.stack(sums)
    m = table.shape[1]
    if m < 2:
        raise ValueError("bootstrap: only one group; give several populations or chains.")
    if m > MAX_BLOCKS:
        block = rng.permutation(m) % MAX_BLOCKS
        table = np.stack([np.bincount(block, weights=row, minlength=MAX_BLOCKS) for row in table])
        m = MAX_BLOCKS
    # histograms of uniform draws are ten times faster than multinomial numbers
    draws = rng.integers(0, m, size=(n_resamples, m)) + m * np.arange(n_resamples)[:, None]
    counts = np.bincount(draws.ravel(), minlength=n_resamples * m).reshape(n_resamples, m)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = statistic(table @ counts.T.astype(float))
    finite = np.isfinite(replicates)
    if finite.mean() < 0.99:
        raise ValueError(
            f"bootstrap: {int(np.sum(~finite))} of {n_resamples} replicates are not finite, because too few groups "
            "carry the "
            "estimate: use more samples."
        )
    return float(np.std(replicates[finite], ddof=1) * np.sqrt(m / (m - 1)))
