"""Comparison with reference samples of the target: what a generator misses, which its own samples cannot show."""

from dataclasses import dataclass, replace

import numpy as np

from boltzflow.ensemble import Ensemble
from boltzflow.errors import NonFiniteEnergyError
from boltzflow.estimate import Estimate
from boltzflow.statistics.means import eubo
from boltzflow.statistics.weights import ArrayLike, forward_ess_fraction, to_numpy

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """A generator seen from reference samples.

    Args:
        forward_ess_fraction: 1/(E_p[w] E_p[1/w]) over the reference, between 0 and 1.
        eubo: E_p[log w] >= log Z, in the normalisation of the ensemble.
        elbo: E_q[log w] <= log Z, from the generator's own samples.
        n_failed: Reference rows without a path of finite weight, left out of the first two.
    """

    forward_ess_fraction: float
    eubo: Estimate
    elbo: Estimate
    n_failed: int = 0

    @property
    def gap(self) -> Estimate:
        """EUBO − ELBO, the sum of both Kullback–Leibler divergences; 0 for a perfect generator."""
        error = (self.eubo.error**2 + self.elbo.error**2) ** 0.5
        method = "difference of independent estimates"
        return Estimate(
            self.eubo.value - self.elbo.value,
            error,
            method=method,
            n_effective=min(self.eubo.n_effective, self.elbo.n_effective),
            degrees=min(self.eubo.degrees, self.elbo.degrees),
        )


def compare(
    ensemble: Ensemble, reference: Ensemble, *, path_log_weights: ArrayLike, max_failed_fraction: float = 0.01
) -> Comparison:
    """Compare a generator's ensemble with reference samples that were traced back through the same generator.

    Reference rows without a path of finite weight (the inverse failed, or the generator cannot make them) are left
    out, counted and warned of, since they flatter the generator.

    Args:
        ensemble: Sampled by the generator.
        reference: Samples of the same target from elsewhere (MD, parallel tempering), with their own weights, groups or
            chains.
        path_log_weights: log w of the paths that `Generator.trace_back` found for the rows of the reference, shape
            (n_reference,).
        max_failed_fraction: More rows without a path raise.

    Raises:
        ValueError: If the targets differ or there is not one path per reference row.
        NonFiniteEnergyError: If too many reference rows have no path.
    """
    if reference.target != ensemble.target or reference.context != ensemble.context:
        raise ValueError(
            f"compare: the ensemble is of {ensemble.target!r} at {ensemble.context}, the reference of "
            f"{reference.target!r} at {reference.context}; reweight one of them."
        )
    log_w = to_numpy(path_log_weights)
    if log_w.shape != (len(reference),):
        raise ValueError(f"compare: expected one path per reference row, ({len(reference)},), got {log_w.shape}.")
    carries = reference.log_weights > -np.inf
    found = carries & np.isfinite(log_w)
    n_failed = int(np.sum(carries & ~found))
    if n_failed > max_failed_fraction * np.sum(carries):
        raise NonFiniteEnergyError(
            f"compare: {n_failed} of {np.sum(carries)} reference rows have no path of finite weight, more than "
            f"max_failed_fraction={max_failed_fraction:.2%}: the generator cannot make them (other labels of identical "
            "hydrogens, other chirality, outside its support), or its inverse fails."
        )
    rows = reference.select(found)
    above = eubo(log_w[found], reference_log_weights=rows.log_weights, groups=rows.grouping)
    if n_failed:
        above = above.with_warnings(f"{n_failed} reference rows have no path and were left out")
    if ensemble.normalisation == "absolute":
        above = replace(above, value=above.value + ensemble.log_z_base)
    else:
        above = replace(above, note=ensemble.normalisation)
    fraction = forward_ess_fraction(log_w[found], reference_log_weights=rows.log_weights)
    return Comparison(fraction, above, ensemble.elbo(), n_failed)
