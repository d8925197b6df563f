"""Samples of several generators, and of the target, as one log Z and one ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.errors import NormalisationError
from boltzflow.estimate import Estimate
from boltzflow.io.provenance import method_names
from boltzflow.statistics.groups import Groups
from boltzflow.statistics.protocols import FEWEST_SHARED, protocol_weights
from boltzflow.statistics.weights import ArrayLike, to_numpy

__all__ = ["CombinedProtocols", "combine_protocols"]


@dataclass(frozen=True)
class CombinedProtocols:
    """What several generators say together.

    Args:
        log_z: In the normalisation of the ensembles.
        ensemble: All samples, those of the reference last, weighted for the target. Its normalisation is "none",
            because the weights are made with `log_z`, which has the error.
        overlap: ``overlap[i, j]``, the probability that a sample of state i was drawn by state j; states are the
            generators, then the target.
        n_shared: Effective samples that the generators and the reference share; NaN without a reference.
    """

    log_z: Estimate
    ensemble: Ensemble
    overlap: np.ndarray
    n_shared: float


def combine_protocols(
    ensembles: Sequence[Ensemble],
    reference: Ensemble | None = None,
    *,
    path_log_weights: ArrayLike,
    min_shared: float = FEWEST_SHARED,
) -> CombinedProtocols:
    """Combine samples of several generators, and of the target, by MBAR over the densities of their paths.

    Every sample is weighed under every generator (`boltzflow.workflow.cross_log_weights`), so that a mode that one of
    them has is there with its weight, and the others do not count as having it. Since the normalisations of the
    generators are known, they need not overlap with each other.

    Args:
        ensembles: Of one target, one of every generator, without resampling on the way.
        reference: Samples of the target of equal weights, with their own groups or chains.
        path_log_weights: log w of every sample under every generator, shape (K, N): those of the ensembles in their
            order, then the reference.
        min_shared: Fewer effective samples that generators and reference share raise.

    Raises:
        ValueError: If the targets differ, the weights do not fit, the reference has weights, or an ensemble was
            resampled on the way.
        NormalisationError: If the ensembles are neither all absolute nor all relative to one base.
        NonFiniteEnergyError: As `boltzflow.statistics.protocol_weights`.
        LowOverlapError: The same.

    References:
        Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008), eq. 11; Veach & Guibas, SIGGRAPH 1995, section 3.

    Example:
        >>> from boltzflow.generators import annealed_importance
        >>> from boltzflow.targets import Gaussian, harmonic_pair
        >>> from boltzflow.transitions import MALA
        >>> from boltzflow.workflow import cross_log_weights
        >>> base, target = harmonic_pair(2)
        >>> fast = annealed_importance(base, MALA(0.1), [0.5, 1.0])
        >>> slow = annealed_importance(Gaussian(2, scale=2.0), MALA(0.1), [0.25, 0.5, 0.75, 1.0])
        >>> ensembles = [g.sample(500, target, seed=k) for k, g in enumerate([fast, slow])]
        >>> log_w = cross_log_weights([fast, slow], ensembles, target, seed=3)
        >>> found = combine_protocols(ensembles, path_log_weights=log_w)
        >>> abs(found.log_z.z_score(target.log_z)) < 4
        True
    """
    first, parts = ensembles[0], [*ensembles, *([] if reference is None else [reference])]
    for part in parts[1:]:
        if part.target != first.target or part.context != first.context:
            raise ValueError(
                f"combine_protocols: the first ensemble is of {first.target!r} at {first.context}, another one of "
                f"{part.target!r} at {part.context}; reweight one of them."
            )
    if any("populations" in part.provenance.extra for part in ensembles):
        raise ValueError(
            "combine_protocols: an ensemble was resampled on the way, so its weights are those of populations and not "
            "of single paths; sample the same levels without resampling (annealed_importance)."
        )
    if reference is not None and np.ptp(reference.log_weights) > 0:
        raise ValueError("combine_protocols: the reference has weights; draw equal ones, reference.resample(n).")
    kinds = sorted({part.normalisation for part in ensembles})
    if len(kinds) > 1 or kinds == ["none"]:
        raise NormalisationError(
            f"combine_protocols: expected all ensembles absolute, or all relative to one base, got {', '.join(kinds)}; "
            "their weights must be of one scale."
        )
    log_w, n = to_numpy(path_log_weights), [len(part) for part in parts]
    own = np.concatenate([part.log_weights for part in ensembles])
    mine = np.repeat(np.arange(len(ensembles)), n[: len(ensembles)])
    if log_w.shape != (len(ensembles), sum(n)) or not np.array_equal(log_w[mine, np.arange(len(own))], own):
        raise ValueError(
            f"combine_protocols: expected path_log_weights of shape ({len(ensembles)}, {sum(n)}), with the log-weights "
            f"of every ensemble in the row of its generator, got shape {log_w.shape}; "
            "boltzflow.workflow.cross_log_weights makes them."
        )
    absolute = kinds == ["absolute"]
    found = protocol_weights(
        log_w,
        n if reference is not None else [*n, 0],
        log_z_k=[part.log_z_base for part in ensembles] if absolute else None,
        groups=[part.grouping for part in parts],
        min_shared=min_shared,
    )
    return CombinedProtocols(
        found.log_z if absolute else replace(found.log_z, note=first.normalisation),
        _together(parts, found.log_weights),
        found.overlap,
        found.n_shared,
    )


def _together(parts: Sequence[Ensemble], log_weights: np.ndarray) -> Ensemble:
    """All rows as one ensemble; groups of different parts are independent."""
    first, groups, n_groups = parts[0], [], 0
    for part in parts:
        # chains are cut into pieces that are independent by their energy, so that all parts have groups
        grouping: Groups = part.grouping.blocks(np.nan_to_num(part.reduced_energies, posinf=0.0, neginf=0.0))
        _, ids = np.unique(grouping.ids, return_inverse=True)
        groups.append(ids + n_groups)
        n_groups += int(ids.max()) + 1
    provenance = Provenance.merged([part.provenance for part in parts])
    return Ensemble(
        samples={name: np.concatenate([part.samples[name] for part in parts]) for name in first.samples},
        spaces=first.spaces,
        log_weights=log_weights,
        reduced_energies=np.concatenate([part.reduced_energies for part in parts]),
        target=first.target,
        context=first.context,
        normalisation="none",
        groups=np.concatenate(groups),
        topology=first.topology_json,
        provenance=replace(provenance, methods=method_names(*provenance.methods, "protocol_weights")),
    )
