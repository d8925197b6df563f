"""Frames of all temperatures of parallel tempering, weighted for the first by MBAR."""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from boltzflow.errors import NonFiniteEnergyError
from boltzflow.statistics.bar import mbar
from boltzflow.statistics.groups import Groups

__all__ = ["TemperedWeights", "ladder_groups", "tempered_weights"]

FEWEST = 10
"""Groups below which ladders are cut in time: an error from fewer is itself badly known."""


@dataclass(frozen=True, eq=False)
class TemperedWeights:
    """What MBAR says of frames at several temperatures.

    Args:
        log_weights: log w of every frame for the first temperature, shape of the energies; the mean weight is 1.
        free_energies: f_k = −log Z_k of every temperature relative to the last, in kT, shape (n_rungs,): Z_k is the
            integral of exp(−β_k u).
        errors: Standard errors of `free_energies` between the groups, shape (n_rungs,); 0 for the last.
    """

    log_weights: np.ndarray
    free_energies: np.ndarray
    errors: np.ndarray


def ladder_groups(n_frames: int, n_ladders: int) -> np.ndarray:
    """What of a parallel tempering is independent: its ladders; fewer than 10 are cut into blocks of time.

    Blocks are independent only if they are longer than the correlation in time.

    Args:
        n_frames: Frames of every ladder, equally spaced in time.
        n_ladders: Independent ladders.

    Returns:
        Group of every frame, shape (n_frames, n_ladders), int64.
    """
    n_blocks = min(-(-FEWEST // n_ladders), n_frames)
    block = np.arange(n_frames) * n_blocks // n_frames
    return block[:, None] + n_blocks * np.arange(n_ladders)


def tempered_weights(reduced_energies: np.ndarray, betas: np.ndarray) -> TemperedWeights:
    """Weigh frames of exp(−β_k u), k = 1 … K, for β_1: log w = −β_1 u − log Σ_k N_k exp(f_k − β_k u) + constant.

    Errors are between `ladder_groups`. Averages with these weights take the f_k as known: their errors are then
    somewhat too small for an observable that follows the energy (by an eighth for the energy of a harmonic system),
    and right for one that does not.

    Args:
        reduced_energies: u of the frames at β = 1, shape (n_frames, n_rungs, n_ladders); frames with +inf have no
            weight.
        betas: β_k, shape (n_rungs,).

    Raises:
        NonFiniteEnergyError: If an energy is NaN or −inf.
        LowOverlapError: If the temperatures fall into parts that share less than one effective sample.
        ValueError: If there is one ladder with one frame, so that nothing tells the errors.

    References:
        Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008), eqs. 9 and 11.
    """
    # rungs slowest, as MBAR wants them
    u = np.asarray(reduced_energies, dtype=np.float64).transpose(1, 0, 2)
    finite = u < np.inf
    if np.any(np.isnan(u) | (u == -np.inf)):
        raise NonFiniteEnergyError("tempered_weights: an energy is NaN or -inf.")
    counts = finite.sum(axis=(1, 2))
    groups = np.broadcast_to(ladder_groups(*u.shape[1:]), u.shape)[finite]
    u_kn = np.outer(betas, u[finite])
    found = mbar(u_kn, counts, groups=Groups.of(groups, len(groups)))
    f = found.Delta_f[-1]
    log_w = np.full(u.shape, -np.inf)
    log_w[finite] = -u_kn[0] - logsumexp(f[:, None] - u_kn, axis=0, b=counts[:, None])
    log_w += np.log(log_w.size) - logsumexp(log_w)
    return TemperedWeights(log_w.transpose(1, 0, 2), f, found.dDelta_f[-1])
