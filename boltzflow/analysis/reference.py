"""Comparison with reference samples of the target: what a generator misses, which its own samples cannot show."""

from dataclasses import dataclass, replace

from boltzflow.ensemble import Ensemble
from boltzflow.estimate import Estimate
from boltzflow.statistics.means import eubo
from boltzflow.statistics.weights import ArrayLike, forward_ess_fraction

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """A generator seen from reference samples.

    Args:
        forward_ess_fraction: 1/(E_p[w] E_p[1/w]) over the reference, between 0 and 1.
        eubo: E_p[log w] >= log Z, in the normalisation of the ensemble.
        elbo: E_q[log w] <= log Z, from the generator's own samples.
    """

    forward_ess_fraction: float
    eubo: Estimate
    elbo: Estimate

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


def compare(ensemble: Ensemble, reference: Ensemble, *, path_log_weights: ArrayLike) -> Comparison:
    """Compare a generator's ensemble with reference samples that were traced back through the same generator.

    Args:
        ensemble: Sampled by the generator.
        reference: Samples of the same target from elsewhere (MD, parallel tempering), with their own weights, groups
            or chains.
        path_log_weights: log w of the paths that `Generator.trace_back` found for the rows of the reference, shape
            (n_reference,).

    Raises:
        ValueError: If the targets differ or there is not one path per reference row.
        NonFiniteEnergyError: If a reference row has a path of weight zero.
    """
    if reference.target != ensemble.target or reference.context != ensemble.context:
        raise ValueError(
            f"compare: the ensemble is of {ensemble.target!r} at {ensemble.context}, the reference of "
            f"{reference.target!r} at "
            f"{reference.context}; reweight one of them."
        )
    if len(path_log_weights) != len(reference):
        raise ValueError(
            f"compare: expected one path per reference row, {len(reference)}, got {len(path_log_weights)}."
        )
    above = eubo(path_log_weights, reference_log_weights=reference.log_weights, groups=reference.grouping)
    if ensemble.normalisation == "absolute":
        above = replace(above, value=above.value + ensemble.log_z_base)
    else:
        above = replace(above, note=ensemble.normalisation)
    return Comparison(
        forward_ess_fraction(path_log_weights, reference_log_weights=reference.log_weights), above, ensemble.elbo()
    )
