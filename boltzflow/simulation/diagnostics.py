"""Convergence of Markov chains: split R-hat, effective counts, independent visits to a region."""

import math

import torch

from boltzflow._typing import Bool, Float, Tensor
from boltzflow.statistics.chains import statistical_inefficiency

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

    References:
        Gelman et al., Bayesian Data Analysis, 3rd ed., section 11.4.
    """
    half = series.shape[0] // 2
    if half < 2:
        raise ValueError(f"split_r_hat: expected at least 4 frames, got {series.shape[0]}.")
    halves = torch.cat([series[:half], series[-half:]], dim=1).double()
    within = float(halves.var(0).mean())
    between = float(halves.mean(0).var())
    if within == 0.0:
        return math.inf if between > 0.0 else math.nan
    return math.sqrt((half - 1) / half + between / within)


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
    """Mean, statistical inefficiency, effective number of samples and split R-hat of every series.

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
            "split_r_hat": split_r_hat(x) if x.shape[0] >= 4 else math.nan,
        }
    return found
