"""Free-energy differences between samples of two or more states: BAR and MBAR."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logsumexp

from boltzflow.errors import LowOverlapError, NonFiniteEnergyError
from boltzflow.estimate import Estimate
from boltzflow.statistics._pymbar import quiet_pymbar
from boltzflow.statistics.groups import Groups
from boltzflow.statistics.weights import ArrayLike, to_numpy

__all__ = ["MBARResult", "bar", "bar_overlap", "fermi_functions", "mbar"]

# smallest overlap at which errors can be relied on: Klimovich et al., J. Comput.-Aided Mol. Des. 29, 397 (2015)
LOW_OVERLAP = 0.03


def bar(w_F: ArrayLike, w_R: ArrayLike, *, groups_F: Groups | None = None, groups_R: Groups | None = None) -> Estimate:
    """Bennett's acceptance ratio: Delta_f = f_B − f_A in kT from work in both directions.

    The error linearises the implicit equation, so that it respects groups; for independent rows it is Bennett's.

    Args:
        w_F: u_B(x) − u_A(x) at samples of A (mapped work: minus log |det J|), shape (n_F,), float64; +inf is allowed.
        w_R: u_A(x) − u_B(x) at samples of B, shape (n_R,).
        groups_F: How the samples of A depend on each other; None = independent.
        groups_R: The same for B.

    Raises:
        NonFiniteEnergyError: If a work value is NaN or −inf, or a direction has no finite one.
        LowOverlapError: If the two sides share less than one effective sample.

    References:
        Bennett, J. Comput. Phys. 22, 245 (1976), eqs. 10 and 12; Shirts et al., Phys. Rev. Lett. 91, 140601 (2003).
    """
    forward, reverse = _checked_work("w_F", w_F), _checked_work("w_R", w_R)
    delta, f, r, shared = fermi_functions(forward, reverse)
    overlap = shared / min(forward.size, reverse.size)
    if shared < 1:
        raise LowOverlapError(
            f"bar: the two states share {shared:.2g} effective samples (overlap {overlap:.2g}), so Delta_f near "
            f"{delta:.4g} kT means "
            "nothing: add intermediate states or a better map, or more samples."
        )
    error_f = (Groups.rows(f.size) if groups_F is None else groups_F).error(f)
    error_r = (Groups.rows(r.size) if groups_R is None else groups_R).error(r)
    error = float(np.hypot(error_f.error, error_r.error)) / shared
    return Estimate(
        delta,
        error,
        method=f"BAR, forward {error_f.method}, reverse {error_r.method}",
        n_effective=1.0 / error**2 if error > 0 else np.inf,
        degrees=min(error_f.degrees, error_r.degrees),
        warnings=(f"low overlap {overlap:.2g}",) if overlap < LOW_OVERLAP else (),
    )


def bar_overlap(w_F: ArrayLike, w_R: ArrayLike) -> float:
    """Overlap of two states as `bar` measures it: 1/2 where they are the same, 0 where they share no configuration.

    It is the off-diagonal element of the overlap matrix of MBAR for the two states alone, for equal numbers of samples.

    Args:
        w_F: u_B(x) − u_A(x) at samples of A, shape (n_F,), float64; +inf is allowed.
        w_R: u_A(x) − u_B(x) at samples of B, shape (n_R,).
    """
    forward, reverse = _checked_work("w_F", w_F), _checked_work("w_R", w_R)
    return fermi_functions(forward, reverse)[3] / min(forward.size, reverse.size)


def fermi_functions(forward: np.ndarray, reverse: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Delta_f of Bennett's equation, the Fermi functions of both directions, and the number of shared samples.

    Args:
        forward: Work at samples of A, shape (n_F,), without NaN and −inf.
        reverse: Work at samples of B, shape (n_R,).
    """
    shift = float(np.log(forward.size / reverse.size))

    def imbalance(delta: float) -> float:
        return float(logsumexp(log_expit(delta - shift - forward)) - logsumexp(log_expit(shift - delta - reverse)))

    finite = np.concatenate([forward[np.isfinite(forward)], -reverse[np.isfinite(reverse)]])
    low, high = float(finite.min()) - 1.0, float(finite.max()) + 1.0
    while imbalance(low) > 0:
        low -= 2 * (high - low)
    while imbalance(high) < 0:
        high += 2 * (high - low)
    delta = float(brentq(imbalance, low, high, xtol=1e-13, rtol=1e-14, maxiter=500))
    f, r = expit(delta - shift - forward), expit(shift - delta - reverse)
    return delta, f, r, float(np.sum(f * (1 - f)) + np.sum(r * (1 - r)))


def _checked_work(name: str, values: ArrayLike) -> np.ndarray:
    work = to_numpy(values)
    if work.ndim != 1 or work.size < 2:
        raise ValueError(f"bar: expected {name} of shape (n,) with n >= 2, got {work.shape}.")
    bad = int(np.sum(np.isnan(work) | (work == -np.inf)))
    if bad or not np.any(np.isfinite(work)):
        raise NonFiniteEnergyError(
            f"bar: {bad} of {work.size} values of {name} are NaN or -inf; at least one must be finite."
        )
    return work


@dataclass(frozen=True, eq=False)
class MBARResult:
    """Free-energy differences between all states.

    Args:
        Delta_f: ``Delta_f[i, j]`` is f_j − f_i in kT, shape (K, K).
        dDelta_f: Its standard error, shape (K, K); zero on the diagonal only.
        overlap: ``overlap[i, j]`` is the probability of finding in state j a sample of state i, shape (K, K).
        n_effective: Effective number of samples at every state, shape (K,).
        method: How the errors were found; empty for those of independent samples.
        degrees: Degrees of freedom of the errors.
    """

    Delta_f: np.ndarray
    dDelta_f: np.ndarray
    overlap: np.ndarray
    n_effective: np.ndarray
    method: str = ""
    degrees: float = np.inf

    def estimate(self, i: int, j: int) -> Estimate:
        """f_j − f_i as an Estimate in kT."""
        k = len(self.Delta_f)
        if not (0 <= i < k and 0 <= j < k and i != j):
            raise ValueError(f"MBARResult.estimate: expected two different states in 0 … {k - 1}, got {i} and {j}.")
        return Estimate(
            float(self.Delta_f[i, j]),
            float(self.dDelta_f[i, j]),
            method=f"MBAR over {k} states{', ' if self.method else ''}{self.method}",
            n_effective=float(min(self.n_effective[i], self.n_effective[j])),
            degrees=self.degrees,
        )


def mbar(u_kn: ArrayLike, N_k: Sequence[int] | ArrayLike, *, groups: Groups | None = None) -> MBARResult:
    """Multistate Bennett acceptance ratio by pymbar, with its silent failures turned into errors.

    With `groups` the errors come from the spread between them: the estimating equations are linearised in the
    contribution of every sample, so that correlation in time and between states that exchange replicas is accounted
    for.

    Args:
        u_kn: ``u_kn[k, n]`` is the reduced energy of sample n at state k, shape (K, N); samples in the order of the
            states that generated them; independent, or with `groups`.
        N_k: Samples from every state, shape (K,), may be 0; sums to N.
        groups: How the N samples depend on each other; None = independent.

    Raises:
        NonFiniteEnergyError: If an energy is not finite.
        LowOverlapError: If the states fall into parts that share less than one effective sample.

    References:
        Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008), eqs. 11 and D9; between groups the sandwich of the
        estimating equations, as for reverse logistic regression: Geyer, Univ. Minnesota Tech. Rep. 568 (1994).
    """
    u, n = to_numpy(u_kn), to_numpy(N_k).astype(int)
    if u.ndim != 2 or n.shape != u.shape[:1] or n.sum() != u.shape[1] or np.any(n < 0):
        raise ValueError(
            f"mbar: expected u_kn of shape (K, N) and K counts that sum to N, got {u.shape} and {n.tolist()}."
        )
    bad = int(np.sum(~np.isfinite(u)))
    if bad:
        raise NonFiniteEnergyError(f"mbar: {bad} of {u.size} reduced energies are NaN or inf.")
    # an offset of a sample common to all states changes nothing, and keeps the exponents small
    solver = quiet_pymbar().MBAR(u - u.min(axis=0), n, solver_protocol="robust")
    found = solver.compute_overlap()
    gap = float(found["scalar"])
    smallest = int(n[n > 0].min())
    if not gap * smallest / 2 >= 1:
        raise LowOverlapError(
            f"mbar: the states fall into parts that share about {max(gap, 0.0) * smallest / 2:.2g} effective "
            "samples: add intermediate states."
        )
    effective = np.asarray(solver.compute_effective_sample_number())
    if groups is None:
        differences = solver.compute_free_energy_differences()
        result = MBARResult(differences["Delta_f"], differences["dDelta_f"], found["matrix"], effective)
    else:
        f = np.asarray(solver.f_k)
        errors, degrees, method = _between_groups(np.asarray(solver.W_nk), n, groups)
        result = MBARResult(f[None, :] - f[:, None], errors, found["matrix"], effective, method, degrees)
    if not (np.all(np.isfinite(result.Delta_f)) and np.all(np.isfinite(result.dDelta_f))):
        raise LowOverlapError("mbar: the differences or their errors are not finite: add intermediate states.")
    return result


def _between_groups(weights: np.ndarray, n: np.ndarray, groups: Groups) -> tuple[np.ndarray, float, str]:
    """Errors of all differences from the linearised contribution of every sample to every f_k.

    Args:
        weights: W_nk of MBAR, shape (N, K); every column sums to one.
        n: Samples from every state, shape (K,).
        groups: How the samples depend on each other.
    """
    k = len(n)
    mine = np.repeat(np.arange(k), n)
    p = weights * n
    # f − f₀ = H⁺ Σ_n s_n with the score s_n = e_state(n) − p(n), the derivative of log p(state of n | x_n)
    score = -p
    score[np.arange(len(p)), mine] += 1.0
    hessian = np.diag(p.sum(axis=0)) - p.T @ p
    terms = score @ np.linalg.pinv(hessian, hermitian=True)
    # a state without samples follows from the others: f_k = −log Σ_n exp(−u_kn) / Σ_j N_j exp(f_j − u_jn)
    for empty in np.flatnonzero(n == 0):
        terms[:, empty] = terms @ (p.T @ weights[:, empty]) - weights[:, empty]
    # the number of samples of every state is fixed: only what varies within a state is noise
    for state in np.flatnonzero(n):
        terms[mine == state] -= terms[mine == state].mean(axis=0)
    errors, degrees, method = np.zeros((k, k)), np.inf, ""
    for i in range(k):
        for j in range(i):
            found = groups.error(terms[:, i] - terms[:, j])
            errors[i, j] = errors[j, i] = found.error
            degrees, method = min(degrees, found.degrees), found.method
    return errors, degrees, method
