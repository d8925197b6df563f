"""Free-energy difference between two systems on the same atoms: force fields, temperatures, any two Targets."""

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from boltzflow.analysis.difference import RELIABLE_K, SystemDifference
from boltzflow.analysis.intermediate_states import IntermediateStates, Recorded, neighbour_overlaps
from boltzflow.analysis.learned_difference import by_generator
from boltzflow.analysis.path_states import PathStates
from boltzflow.analysis.system_pair import alchemical_path, energy_ratio, paired_starts, paired_targets, path_lambda
from boltzflow.errors import LowOverlapError, nearest
from boltzflow.estimate import Estimate
from boltzflow.io.provenance import method_names
from boltzflow.run import new_seed
from boltzflow.simulation import molecule_kernels
from boltzflow.state import State
from boltzflow.statistics import Groups, exp_free_energy, kish_ess, mbar, pareto_k, split_rhat, statistical_inefficiency
from boltzflow.targets.target import Target
from boltzflow.transitions.metropolis import MetropolisKernel

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["system_difference"]

logger = logging.getLogger(__name__)

Method = Literal["auto", "learned", "exp", "bar", "mbar"]
METHODS = ("auto", "learned", "exp", "bar", "mbar")
ESTIMATORS = {"exp": "exp_free_energy", "bar": "bar", "mbar": "mbar"}
LOW_OVERLAP = 0.03
SAME_R_HAT = 1.1
"""R-hat of ladders above which they are said to disagree."""
CHEAP = (0.5, 0.5)
"""k-hat at most, and effective fraction at least, for which samples of one end are enough."""


def system_difference(
    a: "System | Target",
    b: "System | Target",
    *,
    method: Method = "auto",
    n: int = 20_000,
    minutes: float | None = None,
    start: State | None = None,
    kernels: Sequence[MetropolisKernel] | None = None,
    checkpoints: Sequence[str | os.PathLike | None] = (None, None),
    lambdas: Sequence[float] | None = None,
    path: Callable[[float], Target] | None = None,
    n_chains: int = 32,
    max_temperature: float = 1.8,
    max_states: int = 32,
    n_burn_in: int = 200,
    sweeps_per_record: int = 5,
    seed: int | None = None,
) -> SystemDifference:
    """Free energy of B minus that of A.

    Between two λ of one system with alchemical atoms the states in between are those of λ, along
    `boltzflow.forcefield.lambda_schedule`; otherwise they are u_λ = (1−λ) u_A + λ u_B.

    "learned" weighs the samples of a trained generator for both ends, if need be after annealing them from one end to
    the other. The other methods sample the ends, and states between them, by Hamiltonian replica exchange: "exp" at A
    alone, "bar" at A and B, "mbar" at as many states as it takes for neighbours to overlap. "auto" takes the learned
    path if there is a generator and its weights can be trusted for both ends (not between two λ), else the first of
    exp, bar and mbar that a pilot shows to be reliable. Errors are those between independent ladders; on the learned
    path between independent samples.

    Args:
        a: A System, or a Target with `start` and `kernels`.
        b: The other end, of the same atoms or fields.
        method: "auto", "learned", "exp", "bar" or "mbar".
        n: Samples of every state.
        minutes: Stop sampling after this time, with fewer samples; None = no limit.
        start: For Targets: one row, or one per ladder.
        kernels: For Targets: kernels that sample them; default for Systems: HMC and torsion moves.
        checkpoints: For Systems: of generators of A and of B; None = what ships or lies with the system.
        lambdas: For "mbar": the states instead of those that are found, from 0 to 1.
        path: For Targets: those in between instead of the linear mix, from A at 0 to B at 1.
        n_chains: Independent ladders.
        max_temperature: Of hot states of A at the end of every ladder, as a multiple of its temperature; 1 = none.
        max_states: Most states between which "mbar" may spread.
        n_burn_in: Sweeps left out at the start, and after adding states.
        sweeps_per_record: Sweeps between samples.
        seed: Random by default; recorded.

    Raises:
        LowOverlapError: If the method that was asked for, or any, cannot give a reliable answer; says what can.
        FormatError: If the systems are not of the same atoms.

    References:
        Zwanzig, J. Chem. Phys. 22, 1420 (1954); Bennett, J. Comput. Phys. 22, 245 (1976); Shirts and Chodera, J. Chem.
        Phys. 129, 124105 (2008); learned paths: Noé et al., Science 365, eaaw1147 (2019), annealed: Neal,
        Stat. Comput. 11, 125 (2001).

    Example:
        >>> import torch
        >>> from boltzflow.targets.harmonic import harmonic_pair
        >>> from boltzflow.transitions.hmc import HMC
        >>> a, b = (target.double() for target in harmonic_pair(2))
        >>> start = a.state(torch.zeros(1, 2, dtype=torch.float64))
        >>> found = system_difference(a, b, start=start, kernels=[HMC(0.5, n_leapfrog=3)], n=2000, seed=1)
        >>> abs(found.estimate.z_score(a.log_z - b.log_z)) < 4
        True
    """
    began = time.perf_counter()
    _check(method, n=n, minutes=minutes, lambdas=lambdas, max_states=max_states)
    seed = new_seed() if seed is None else seed
    seconds = math.inf if minutes is None else 60 * minutes
    notes: list[str] = []
    if isinstance(a, Target) and isinstance(b, Target):
        if start is None or kernels is None:
            raise ValueError("system_difference: two Targets need start= and kernels=; Systems bring their own.")
        if method == "learned":
            raise ValueError("system_difference: Targets have no generator; give their samples to learned_difference.")
        if path is not None:
            a, b = path(0.0), path(1.0)
        if a is b:
            raise ValueError(f"system_difference: both ends are {a.name}, so the difference is zero.")
        ends = [a, b]
    else:
        *ends, notes = paired_targets(a, b)
        kernels = molecule_kernels(a.bonds, a.elements, positions=a.positions) if kernels is None else kernels
        path = alchemical_path(a, b, ends)
        if method == "learned" or (method == "auto" and path is None):
            found = by_generator(
                (a, b),
                ends,
                kernels,
                checkpoints=checkpoints,
                required=method == "learned",
                n=n,
                seconds=seconds,
                seed=seed,
            )
            if found is not None:
                return _finished(found, notes, ends, began)
        start = paired_starts(a, b, ends[0], n_chains) if start is None else start
    options = {"kernels": kernels, "n_chains": n_chains, "max_temperature": max_temperature, "seed": seed}
    if path is None:
        ladder = IntermediateStates(*ends, start, ratio=energy_ratio(*ends), **options)
    else:
        ladder = PathStates(path, start, **options)
    found = _by_states(
        ladder,
        method=method,
        n=n,
        seconds=seconds - (time.perf_counter() - began),
        lambdas=lambdas,
        max_states=max_states,
        n_burn_in=n_burn_in,
        sweeps_per_record=sweeps_per_record,
    )
    if isinstance(ladder, PathStates) and not isinstance(a, Target):
        notes.append(f"states along the λ of {len(a.alchemical_atoms)} alchemical atoms: charges first, then cores")
        rows = [{**row, "alchemical_lambda": path_lambda(a, b, row["lambda"])} for row in found.states]
        found = replace(found, states=rows)
    return _finished(found, notes, ends, began)


def _by_states(
    ladder: IntermediateStates,
    *,
    method: Method,
    n: int,
    seconds: float,
    lambdas: Sequence[float] | None,
    max_states: int,
    n_burn_in: int,
    sweeps_per_record: int,
) -> SystemDifference:
    """Pilot, states, samples, estimate."""
    began = time.perf_counter()
    options = {"sweeps_per_record": sweeps_per_record}
    first = {"exp": [0.0], "mbar": [0.0, 0.5, 1.0] if lambdas is None else lambdas}.get(method, [0.0, 1.0])
    ladder.set_states(first)
    ladder.burn_in(n_burn_in)
    rounds: list[dict[str, Any]] = []
    if method == "auto" and _one_end_is_enough(ladder.record(50, **options)):
        method = "exp"
        ladder.set_states([0.0])
        ladder.burn_in(n_burn_in)
    elif method in ("auto", "mbar") and lambdas is None:
        rounds = ladder.until_overlap(n_burn_in=n_burn_in, max_states=max_states, **options)
        method = "mbar" if method == "mbar" or len(ladder.lambdas) > 2 else "bar"
    left = seconds - (time.perf_counter() - began)
    logger.info("%s: sampling %d states of %d ladders", method, len(ladder.lambdas), ladder.n_chains)
    recorded, complete = ladder.sample(n, seconds=left, **options)
    # refuses where states do not overlap, which has to come first: their work may be infinite
    estimate, overlap = _one_sided(recorded, ladder) if method == "exp" else _two_sided(recorded, ladder)
    states = _describe(recorded)
    warnings = [] if complete else [f"time was up after {recorded.u_a[:, 0].size} of {n} samples of every state"]
    worst = max(states, key=lambda row: row["r_hat"])
    if worst["r_hat"] > SAME_R_HAT:
        warnings.append(f"R-hat {worst['r_hat']:.2f} between ladders at λ = {worst['lambda']:.3g}: sample longer")
    found = ladder.simulation.diagnostics()
    diagnostics = {
        "n_chains": ladder.n_chains,
        "n_burn_in": n_burn_in * (1 + len(rounds)),
        "sweeps_per_record": sweeps_per_record,
        "hot_states": ladder.hot,
        "swap_rates": found["swap_rates"],
        "round_trips": found["round_trips"],
        "rounds": rounds,
        "n_asked": n,
    }
    return SystemDifference(
        estimate.with_warnings(*warnings),
        method,
        (ladder.a.name, ladder.b.name),
        states,
        overlap,
        diagnostics,
        ladder.ledger,
        seed=ladder.seed,
        methods=tuple(method_names(ESTIMATORS[method], "statistical_inefficiency", ladder.simulation, ladder.b)),
    )


def _one_end_is_enough(pilot: Recorded) -> bool:
    log_w = -pilot.work[:, 0].ravel()
    if not np.isfinite(log_w).any():
        return False
    return pareto_k(log_w) <= CHEAP[0] and kish_ess(log_w) >= CHEAP[1] * log_w.size


def _one_sided(recorded: Recorded, ladder: IntermediateStates) -> tuple[Estimate, None]:
    work = recorded.work[:, 0]
    remedy = "use method 'mbar', or 'auto', which adds states in between"
    if not np.isfinite(work).any():
        raise LowOverlapError(
            f"{ladder.a.name} -> {ladder.b.name}: no sample of {ladder.a.name} has a finite energy under "
            f"{ladder.b.name}; {remedy}."
        )
    k, ess = pareto_k(-work.ravel()), kish_ess(-work.ravel())
    if k > RELIABLE_K:
        raise LowOverlapError(
            f"{ladder.a.name} -> {ladder.b.name}: weights from samples of {ladder.a.name} alone have k-hat {k:.2f} > "
            f"{RELIABLE_K} and {ess:.0f} effective samples of {work.size}, so that a few samples decide: {remedy}."
        )
    groups = Groups.of(np.tile(np.arange(work.shape[1]), len(work)), work.size)
    found = exp_free_energy(work.ravel(), groups=groups)
    return replace(found, method=f"one-sided, k-hat {k:.2f}, {found.method}"), None


def _two_sided(recorded: Recorded, ladder: IntermediateStates) -> tuple[Estimate, np.ndarray]:
    overlaps = neighbour_overlaps(recorded)
    k = int(overlaps.argmin())
    if overlaps[k] < LOW_OVERLAP:
        raise LowOverlapError(
            f"{ladder.a.name} -> {ladder.b.name}: neighbouring states λ = {recorded.lambdas[k]:.4g} and "
            f"{recorded.lambdas[k + 1]:.4g} have an overlap of {overlaps[k]:.2g} < {LOW_OVERLAP}: use method 'mbar' or "
            "'auto', which add states in between, or give more lambdas."
        )
    n_records, n_states, n_chains = recorded.u_a.shape
    groups = Groups.of(recorded.chains(), n_states * n_records * n_chains)
    result = mbar(recorded.u_kn(), [n_records * n_chains] * n_states, groups=groups)
    found = result.estimate(0, n_states - 1)
    method = found.method if n_states > 2 else found.method.replace("MBAR over 2 states", "BAR")
    return replace(found, method=method, n_effective=1 / found.error**2), result.overlap


def _describe(recorded: Recorded) -> list[dict[str, Any]]:
    """What the work u_B − u_A says of every state: its mean, R-hat between ladders, independent samples."""
    rows = []
    for k, lam in enumerate(recorded.lambdas.tolist()):
        work = recorded.observed(k)
        mean = float(work.mean())
        if not np.isfinite(work).all():
            # ranks, which R-hat compares, stay as they are
            highest = work[np.isfinite(work)].max(initial=0.0)
            work = np.minimum(work, highest + 1.0)
        g = statistical_inefficiency(list(work.T))
        rows.append(
            {
                "lambda": lam,
                "n": work.size,
                "n_independent": work.size / g,
                "mean_work": mean,
                "r_hat": split_rhat(work.T) if len(work) >= 4 else math.nan,
            }
        )
    return rows


def _finished(found: SystemDifference, notes: list[str], ends: Sequence[Target], began: float) -> SystemDifference:
    note = found.estimate.note
    temperatures = [getattr(end, "temperature", None) for end in ends]
    if temperatures[0] != temperatures[1]:
        note = f"-log of configurational Z, {temperatures[0]:g} K -> {temperatures[1]:g} K, each in its own kT"
    diagnostics = {**found.diagnostics, "temperatures": temperatures, "notes": notes}
    return replace(
        found,
        estimate=replace(found.estimate, note=note),
        diagnostics=diagnostics,
        seconds=time.perf_counter() - began,
    )


def _check(method: str, *, n: int, minutes: float | None, lambdas: Sequence[float] | None, max_states: int) -> None:
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; {nearest(method, METHODS)}")
    if n < 100:
        raise ValueError(f"n: expected at least 100 samples of every state, got {n}.")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes: expected a positive time, got {minutes}.")
    if max_states < 2:
        raise ValueError(f"max_states: expected at least 2, got {max_states}.")
    if lambdas is not None and (method != "mbar" or len(lambdas) < 2 or lambdas[0] != 0 or lambdas[-1] != 1):
        raise ValueError(f"lambdas: for method 'mbar', from 0 to 1; got method {method!r} and {list(lambdas)}.")
