"""Several ways to the same target at once: MBAR between protocols whose normalisations are known and the target."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from boltzflow.errors import LowOverlapError, NonFiniteEnergyError
from boltzflow.estimate import Estimate
from boltzflow.statistics.bar import fermi_functions
from boltzflow.statistics.groups import Groups
from boltzflow.statistics.weights import ArrayLike, to_numpy

__all__ = ["ProtocolWeights", "protocol_weights"]

FEWEST_SHARED = 5.0
"""Effective samples that the protocols and the reference must share, as for `boltzflow.analysis.two_sided`."""


@dataclass(frozen=True, eq=False)
class ProtocolWeights:
    """What several protocols and a reference say together.

    Args:
        log_z: log Z of the target, in the normalisation of `log_z_k`.
        log_weights: log w of all N samples for the target, shape (N,); their mean weight is Z.
        overlap: ``overlap[i, j]`` is the probability that a sample of state i was drawn by state j, shape (K + 1,
            K + 1), the reference last; rows sum to one but for noise.
        n_shared: Effective samples that the protocols and the reference share; NaN without a reference.
    """

    log_z: Estimate
    log_weights: np.ndarray
    overlap: np.ndarray
    n_shared: float


def protocol_weights(
    log_w_kn: ArrayLike,
    N_k: Sequence[int],
    *,
    log_z_k: Sequence[float] | None = None,
    groups: Sequence[Groups] | None = None,
    min_shared: float = FEWEST_SHARED,
) -> ProtocolWeights:
    """Estimate log Z from samples of K protocols and of the target, each weighed under every protocol.

    Protocol k has the density p_k ∝ exp(−u − log w_k), whose normalisation is known: the log Z of its base. MBAR of
    p_1 … p_K and the target then has one unknown, log Z, and is Bennett's acceptance ratio between the mixture
    Σ N_k p_k and the target. With one protocol it is the two-sided estimate; without samples of the target it is the
    balance heuristic of multiple importance sampling, log Z = log mean 1/Σ (N_k/N) exp(−log w_k). Protocols need not
    overlap with each other, as states of unknown normalisation must, but a mode of the target that one of them has is
    not missed. Paths of stochastic protocols are densities as well: of x and of all paths back from it, one under each.

    Args:
        log_w_kn: ``log_w_kn[k, n]`` is log w of sample n under protocol k: for its own samples that of the path that
            made them, for others that of the path back from them. Shape (K, N), the samples in the order of the
            protocols, those of the target last. +inf is a density of zero; −inf is allowed for samples of weight zero.
        N_k: Samples of every protocol and of the target, shape (K + 1,); the last may be 0.
        log_z_k: log Z of the base of every protocol, shape (K,); None = all the same, and log Z relative to it.
        groups: How the samples of every protocol, and of the target where it has some, depend on each other; None =
            independent.
        min_shared: Fewer effective samples that protocols and target share raise.

    Raises:
        ValueError: If shapes do not fit.
        NonFiniteEnergyError: If a log-weight is NaN, or −inf where another one of that sample is not.
        LowOverlapError: If the protocols share too few samples with those of the target.

    References:
        Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008), eq. 11; Veach & Guibas, SIGGRAPH 1995, section 3 (the
        balance heuristic).
    """
    log_w, n = to_numpy(log_w_kn), np.asarray(N_k, dtype=int)
    k = len(log_w) if log_w.ndim == 2 else 0
    if not k or n.shape != (k + 1,) or n.sum() != log_w.shape[1] or np.any(n[:k] < 1) or n[k] < 0:
        raise ValueError(
            f"protocol_weights: expected log_w_kn of shape (K, N) and K + 1 counts that sum to N, got {log_w.shape} "
            f"and {n.tolist()}."
        )
    groups = [Groups.rows(int(m)) for m in n if m] if groups is None else list(groups)
    if [len(g.ids) for g in groups] != [m for m in n if m]:
        raise ValueError(f"protocol_weights: expected groups of {[m for m in n if m]} samples.")
    offsets = np.zeros(k) if log_z_k is None else np.asarray(log_z_k, dtype=float)
    zero = np.all(log_w == -np.inf, axis=0)
    bad = np.isnan(log_w) | ((log_w == -np.inf) & ~zero)
    if bad.any() or zero.all():
        raise NonFiniteEnergyError(
            f"protocol_weights: {int(bad.any(axis=0).sum())} of {log_w.shape[1]} samples have a log-weight of NaN, or "
            f"of -inf under some protocols only, and {int(zero.sum())} have no weight at all; look for failures of the "
            "models on the way back."
        )
    # densities of the protocols relative to exp(−u)
    log_p = -log_w - offsets[:, None]
    mixed = logsumexp(log_p, b=n[:k, None] / n[:k].sum(), axis=0)
    n_f = int(n[:k].sum())
    if n[k]:
        delta, f, r, shared = fermi_functions(mixed[:n_f], -mixed[n_f:])
        if shared < min_shared:
            raise LowOverlapError(
                f"protocol_weights: {n_f} samples of {k} protocols and {n[k]} of the target share {shared:.2g} "
                f"effective samples, fewer than {min_shared:g}: the error bar would be too small. Add a protocol that "
                "reaches where the others do not, or anneal more slowly; more samples help only in proportion."
            )
        value, terms, scale = -delta, [*np.split(f, np.cumsum(n[: k - 1])), r], shared
    else:
        weights = np.where(zero, 0.0, np.exp(-(mixed - mixed[~zero].min())))
        value, shared, scale = float(logsumexp(-mixed[~zero]) - np.log(n_f)), np.nan, 1.0
        terms = np.split(weights / weights.sum(), np.cumsum(n[: k - 1]))
    # the number of samples of every protocol is fixed: what differs between protocols is no noise
    errors = [g.error(t) for g, t in zip(groups, terms, strict=True)]
    error = float(np.sqrt(sum(e.error**2 for e in errors))) / scale
    log_z = Estimate(
        value,
        error,
        method=f"MBAR over {k} protocols of known normalisation{' and the target' if n[k] else ''}, "
        f"{', '.join(dict.fromkeys(e.method for e in errors))}",
        n_effective=1.0 / error**2 if error > 0 else np.inf,
        degrees=min(e.degrees for e in errors),
    )
    states = np.vstack([log_p, np.full(log_p.shape[1], -value)])
    total = logsumexp(states[:, ~zero], b=n[:, None], axis=0)
    shares = np.exp(states[:, ~zero] - total)
    log_weights = np.full(log_w.shape[1], -np.inf)
    log_weights[~zero] = np.log(n.sum()) - total
    return ProtocolWeights(log_z, log_weights, (shares @ shares.T) * n, shared)
