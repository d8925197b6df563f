"""Log Z from paths in both directions: Bennett's acceptance ratio over a generator's samples and a reference's."""

from dataclasses import dataclass, replace

import numpy as np

from boltzflow.ensemble import Ensemble
from boltzflow.errors import LowOverlapError
from boltzflow.estimate import Estimate
from boltzflow.statistics.bar import bar, bar_overlap
from boltzflow.statistics.means import exp_free_energy
from boltzflow.statistics.weights import ArrayLike, to_numpy

__all__ = ["TwoSided", "two_sided"]

FEWEST_SHARED = 5.0
"""Effective samples that both directions must share: of Gaussian work 95 % intervals cover 97 % with 9, 88 % with 2."""


@dataclass(frozen=True)
class TwoSided:
    """What paths in both directions say of log Z.

    Args:
        log_z: From both, in the normalisation of the ensemble.
        overlap: 1/2 where both directions make the same paths, 0 where they share none.
        n_shared: Effective samples that both directions share.
        forward: log Z from the generator's samples alone; too small, mostly, where the generator misses something.
        reverse: log Z from the reference alone; too large then.
    """

    log_z: Estimate
    overlap: float
    n_shared: float
    forward: Estimate
    reverse: Estimate


def two_sided(
    ensemble: Ensemble, reference: Ensemble, *, path_log_weights: ArrayLike, min_shared: float = FEWEST_SHARED
) -> TwoSided:
    """Bennett's acceptance ratio between the paths of a generator and those that end in a reference.

    The work of a path is −log w in both directions. With two states MBAR is the same estimate. Its error is far below
    those of the one-sided estimates where both directions overlap; where they do not it is too small, so that too few
    shared samples raise.

    Args:
        ensemble: Sampled by the generator, without resampling on the way.
        reference: Samples of the same target from elsewhere, of equal weights, with their own groups or chains.
        path_log_weights: log w of the paths that `Generator.trace_back` found for the rows of the reference, shape
            (n_reference,).
        min_shared: Fewer shared effective samples raise.

    Raises:
        ValueError: If the targets differ, there is not one path per reference row, the reference has weights, or the
            ensemble was resampled on the way.
        NonFiniteEnergyError: If a work is NaN or −inf, or none of a direction is finite.
        LowOverlapError: If both directions share too few effective samples.

    References:
        Bennett, J. Comput. Phys. 22, 245 (1976); Crooks, Phys. Rev. E 61, 2361 (2000); Shirts et al., Phys. Rev. Lett.
        91, 140601 (2003).

    Example:
        >>> from boltzflow.generators import annealed_importance
        >>> from boltzflow.targets import harmonic_pair
        >>> from boltzflow.transitions import MALA
        >>> from boltzflow.workflow import path_log_weights
        >>> base, target = harmonic_pair(2)
        >>> generator = annealed_importance(base, MALA(0.1), [0.25, 0.5, 0.75, 1.0])
        >>> reference = annealed_importance(target, [], [1.0]).sample(1000, target, seed=1)
        >>> log_w = path_log_weights(generator, reference, target, seed=2)
        >>> found = two_sided(generator.sample(1000, target, seed=3), reference, path_log_weights=log_w)
        >>> abs(found.log_z.z_score(target.log_z)) < 4  # the base is normalised, so log Z is absolute
        True
    """
    if reference.target != ensemble.target or reference.context != ensemble.context:
        raise ValueError(
            f"two_sided: the ensemble is of {ensemble.target!r} at {ensemble.context}, the reference of "
            f"{reference.target!r} at {reference.context}; reweight one of them."
        )
    if "populations" in ensemble.provenance.extra:
        raise ValueError(
            "two_sided: the ensemble was resampled on the way, so its weights are those of populations and not of "
            "single paths; sample the same levels without resampling (annealed_importance)."
        )
    if np.ptp(reference.log_weights) > 0:
        raise ValueError("two_sided: the reference has weights; draw equal ones from it, reference.resample(n).")
    backward = to_numpy(path_log_weights)
    if backward.shape != (len(reference),):
        raise ValueError(f"two_sided: expected one path per reference row, ({len(reference)},), got {backward.shape}.")
    w_F, w_R = -ensemble.log_weights, backward
    shared = bar_overlap(w_F, w_R) * min(len(w_F), len(w_R))
    overlap = 0.5 * shared * (1 / len(w_F) + 1 / len(w_R))
    if shared < min_shared:
        raise LowOverlapError(
            f"two_sided: {len(ensemble)} paths from {ensemble.base} and {len(reference)} that end in the reference "
            f"share {shared:.2g} effective samples (overlap {overlap:.2g}), fewer than {min_shared:g}: the error bar "
            "would be too small. Anneal more slowly (more levels, or more steps at each), train the generator further, "
            "or go through an intermediate temperature; more samples help only in proportion."
        )
    difference = bar(w_F, w_R, groups_F=ensemble.grouping, groups_R=reference.grouping)
    reverse = exp_free_energy(w_R, groups=reference.grouping)
    return TwoSided(
        _normalised(difference.scaled(-1.0, "kT"), ensemble),
        overlap,
        shared,
        ensemble.log_z(),
        _normalised(reverse, ensemble),
    )


def _normalised(log_ratio: Estimate, ensemble: Ensemble) -> Estimate:
    if ensemble.normalisation == "absolute":
        return replace(log_ratio, value=log_ratio.value + ensemble.log_z_base)
    return replace(log_ratio, note=ensemble.normalisation)
