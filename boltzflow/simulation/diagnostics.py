"""Convergence of Markov chains: split R-hat, effective counts, independent visits to a region."""

import math

from boltzflow._typing import Bool, Float, Tensor
from boltzflow.statistics.chains import bulk_ess, split_rhat, statistical_inefficiency, tail_ess

__all__ = ["entries", "independent_visits", "series_diagnostics", "split_r_hat"]


def split_r_hat(series: Float[Tensor, "n_frames n_chains"]) -> float:
    """Potential scale reduction over halves of independent chains; 1 at convergence, below 1.01 is good.

    Compares means, so that it serves indicators of rare regions, which some halves never visit; the rank-normalised
    `boltzflow.statistics.split_rhat` is stricter, for continuous observables.

    Args:
        series: One column per chain; at least four frames.

    Returns:
        R-hat; NaN if nothing varies at all, inf if chains differ but none of them moves.

    Raises:
        ValueError: If there are fewer than four frames.
    """
    if series.shape[0] < 4:
        raise ValueError(f"split_r_hat: expected at least 4 frames, got {series.shape[0]}.")
    return split_rhat(series.T, ranked=False)


def independent_visits(inside: Bool[Tensor, "n_frames n_chains"]) -> float:
    """Frames inside a region divided by the statistical inefficiency of its indicator within chains.

    The relative error of the region's probability P is √((1 − P) / visits).

    Args:
        inside: Whether a frame of a chain is in the region.
    """
    return float(inside.sum()) / statistical_inefficiency(list(inside.double().T))


def entries(inside: Bool[Tensor, "n_frames n_chains"]) -> int:
    """How often a chain came into the region from outside between recorded frames; a start inside is no entry."""
    return int((inside[1:] & ~inside[:-1]).sum())


def series_diagnostics(series: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Mean, statistical inefficiency, effective numbers of samples (by it, of bulk and tails) and split R-hat.

    Args:
        series: Name to (n_records, n_chains), finite.
    """
    found = {}
    for name, x in series.items():
        g = statistical_inefficiency(list(x.double().T))
        found[name] = {
            "mean": float(x.double().mean()),
            "statistical_inefficiency": g,
            "n_effective": x.numel() / g,
            "bulk_ess": bulk_ess(x.T) if x.shape[0] >= 4 else math.nan,
            "tail_ess": tail_ess(x.T) if x.shape[0] >= 4 else math.nan,
            "split_r_hat": split_r_hat(x) if x.shape[0] >= 4 else math.nan,
        }
    return found
