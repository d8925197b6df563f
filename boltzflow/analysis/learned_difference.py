"""Free-energy differences from weighted samples of a generator: weighed for both ends, or annealed between them."""

import copy
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from boltzflow.analysis.difference import RELIABLE_K, SystemDifference
from boltzflow.analysis.reweight import reweight
from boltzflow.ensemble import Ensemble
from boltzflow.errors import LowOverlapError
from boltzflow.estimate import Estimate
from boltzflow.io.provenance import method_names
from boltzflow.run import Ledger, Run, make_rng
from boltzflow.simulation import MixedRows, ReplicaExchange
from boltzflow.statistics import kish_ess, normalised_weights, pareto_k
from boltzflow.statistics.means import weight_warnings
from boltzflow.statistics.weights import log_mean_exp
from boltzflow.targets.target import Target
from boltzflow.transitions.metropolis import MetropolisKernel

if TYPE_CHECKING:
    from boltzflow.systems import System

__all__ = ["Annealing", "by_generator", "learned_difference", "tuned_annealing"]

logger = logging.getLogger(__name__)

PILOT = 2000
"""Weighted samples that decide whether, and by how many levels, the learned path is of use."""
LEVELS = (0, 8, 16, 32)
LEAST_FRACTION = 0.05
"""Effective fraction below which more levels pay for themselves."""
BATCH = 1024


@dataclass(frozen=True, eq=False)
class Annealing:
    """Levels between two Targets, with the kernels that are applied at each.

    Args:
        lambdas: λ of every level, rising to 1.
        kernels: For every level the kernels in their order, with step sizes that no longer change.
    """

    lambdas: tuple[float, ...]
    kernels: tuple[tuple[MetropolisKernel, ...], ...]


def tuned_annealing(
    pilot: Ensemble, a: Target, b: Target, kernels: Sequence[MetropolisKernel], *, n_levels: int, seed: int
) -> tuple[Annealing, Ledger]:
    """Evenly spaced levels with step sizes adapted on a few samples.

    Args:
        pilot: Samples with a weight for A, other than those to be annealed.
        a: Target at λ = 0.
        b: Target at λ = 1.
        kernels: Applied once at every level.
        n_levels: Number of levels, the last of which is B.
        seed: Of the adaptation.

    Returns:
        The levels, and what the adaptation cost.
    """
    lam = torch.arange(1, n_levels + 1, dtype=torch.float64) / n_levels
    start = reweight(pilot, a).resample(16, seed=seed).to_state(dtype=torch.float64)
    simulation = ReplicaExchange(
        (a, b),
        start,
        coefficients=torch.stack([1 - lam, lam], 1),
        n_chains=len(start),
        kernels=kernels,
        n_relax=0,
        seed=seed,
    )
    simulation.burn_in(50)
    levels = []
    for k in range(n_levels):
        at_level = [copy.deepcopy(kernel) for kernel in kernels]
        for i, sizes in simulation.step_sizes.items():
            at_level[i].step_size = sizes[k]
        levels.append(tuple(at_level))
    return Annealing(tuple(lam.tolist()), tuple(levels)), simulation.ledger


def learned_difference(
    ensemble: Ensemble, a: Target, b: Target, *, annealing: Annealing | None = None, seed: int = 0
) -> SystemDifference:
    """Delta_f from weighted samples that cover A: −log of the ratio of mean weights for both ends, on the same rows.

    With an annealing the rows walk from A to B, one application of the kernels at every level, and the weight for B is
    the exact one of that walk: log w_B = log w_A − Σ_k (λ_k − λ_{k−1}) (u_B − u_A)(x_{k−1}).

    Args:
        ensemble: Weighted samples of any target with its path weights, e.g. those of a generator.
        a: One end.
        b: The other end.
        annealing: Levels from A to B; None = the samples are weighed as they are.
        seed: Of the annealing.

    Raises:
        LowOverlapError: If the weights for an end have k-hat > 0.7, or fewer than 10 effective samples.

    References:
        Neal, Stat. Comput. 11, 125 (2001), eq. 6.
    """
    at_a = reweight(ensemble, a)
    ledger = Ledger.from_dict(at_a.provenance.ledger)
    if annealing is None:
        at_b = reweight(ensemble, b)
        log_b = at_b.log_weights
        ledger.merge(_costs(ensemble, at_b))
    else:
        log_b, spent = _annealed(at_a, a, b, annealing, seed)
        ledger.merge(spent)
    states = []
    for end, log_w in ((a, at_a.log_weights), (b, log_b)):
        k, ess = pareto_k(log_w), kish_ess(log_w)
        states.append({"state": end.name, "n": len(log_w), "ess": ess, "pareto_k": k})
        if k > RELIABLE_K:
            raise LowOverlapError(
                f"{a.name} -> {b.name}: the weights of the generator's samples for {end.name} have k-hat {k:.2f} > "
                f"{RELIABLE_K} and {ess:.0f} effective samples of {len(log_w)}, so that a few samples decide: use "
                "method 'mbar' (states in between), draw more samples, or train a generator for that end."
            )
    terms = normalised_weights(log_b) - at_a.weights
    found = at_a.grouping.error(terms)
    log_z = [float(log_mean_exp(torch.from_numpy(log_w))) for log_w in (at_a.log_weights, log_b)]
    how = "" if annealing is None else f", annealed over {len(annealing.lambdas)} levels"
    estimate = Estimate(
        log_z[0] - log_z[1],
        found.error,
        method=f"ratio of mean weights of the same samples{how}, {found.method}",
        n_effective=1 / found.error**2 if found.error > 0 else np.inf,
        degrees=found.degrees,
        warnings=(*weight_warnings(at_a.log_weights), *weight_warnings(log_b)),
    )
    walk = () if annealing is None else ("GeometricPath", "step size adaptation", *annealing.kernels[0])
    methods = tuple(method_names(ensemble.provenance, "kish_ess", "pareto_k", "reweight", *walk, a, b))
    return SystemDifference(estimate, "learned", (a.name, b.name), states, ledger=ledger, methods=methods)


def _annealed(at_a: Ensemble, a: Target, b: Target, annealing: Annealing, seed: int) -> tuple[np.ndarray, Ledger]:
    """Log-weights for B of rows that walked from A to it; rows without a weight stay where they are."""
    log_w = at_a.log_weights.copy()
    carries = np.flatnonzero(log_w > -np.inf)
    state = at_a.select(carries).to_state(dtype=torch.float64)
    ledger = Ledger()
    for shard, first in enumerate(range(0, len(carries), BATCH)):
        rows = carries[first : first + BATCH]
        run = Run(make_rng(seed, shard), ledger=ledger)
        x, total, before = state.index(slice(first, first + BATCH)), torch.zeros(len(rows), dtype=torch.float64), 0.0
        for lam, kernels in zip(annealing.lambdas, annealing.kernels, strict=True):
            u_a, x = run.evaluate(a, x)
            u_b, x = run.evaluate(b, x)
            total = total - (lam - before) * (u_b - u_a)
            before = lam
            if lam == 1:
                break  # a step at B would not change the weight any more
            c = torch.tensor([1 - lam, lam], dtype=torch.float64)[:, None].expand(2, len(rows))
            for kernel in kernels:
                x = kernel.step(x, run.at(MixedRows((a, b), c)))
        log_w[rows] += total.numpy()
    # a row that came to infinite energies at B: weight zero
    return np.where(np.isnan(log_w), -np.inf, log_w), ledger


def _costs(before: Ensemble, after: Ensemble) -> Ledger:
    """What was evaluated between two ensembles of one history."""
    old, new = (Ledger.from_dict(e.provenance.ledger) for e in (before, after))
    return Ledger(new.energies - old.energies, new.forces - old.forces, new.nonfinite - old.nonfinite)


def by_generator(
    systems: "tuple[System, System]",
    ends: Sequence[Target],
    kernels: Sequence[MetropolisKernel],
    *,
    checkpoints: Sequence[str | os.PathLike | None],
    required: bool,
    n: int,
    seconds: float,
    seed: int,
) -> SystemDifference | None:
    """The learned path through the checkpoint of A, else of B, with as few levels as a pilot shows to be enough.

    Args:
        systems: A and B.
        ends: Their Targets, in one sector.
        kernels: For annealing.
        checkpoints: Of generators of A and of B; None = what ships or lies with the system.
        required: Whether to raise rather than to return None where there is no generator, or its weights are of no use.
        n: Samples.
        seconds: At most, about.
        seed: Of everything.

    Raises:
        LowOverlapError: See `required`.
    """
    files = [file or system.checkpoint_path for file, system in zip(checkpoints, systems, strict=True)]
    own = next((k for k, file in enumerate(files) if file is not None), None)
    names = f"{ends[0].name} -> {ends[1].name}"
    if own is None:
        if not required:
            return None
        raise LowOverlapError(
            f"{names}: neither system has a trained generator; train one, or use method 'auto' or 'mbar'."
        )
    began = time.perf_counter()
    near, far = ends[own], ends[1 - own]
    generator = systems[own].load_generator(checkpoint=files[own])
    pilot, tuning = (generator.sample(min(n, PILOT), near, seed=seed + k) for k in (0, 1))
    spent = Ledger.from_dict(pilot.provenance.ledger)
    spent.merge(Ledger.from_dict(tuning.provenance.ledger))
    for n_levels in LEVELS:
        annealing = None
        tried = time.perf_counter()
        try:
            if n_levels:
                annealing, cost = tuned_annealing(tuning, near, far, kernels, n_levels=n_levels, seed=seed)
                spent.merge(cost)
            tried = time.perf_counter()
            found = learned_difference(pilot, near, far, annealing=annealing, seed=seed + 2)
        except LowOverlapError as error:
            problem = error
            continue
        spent.merge(found.ledger)
        fraction = found.states[1]["ess"] / len(pilot)
        logger.info("learned path: %d levels, %.1f %% effective samples at the far end", n_levels, 100 * fraction)
        if fraction >= LEAST_FRACTION or n_levels == LEVELS[-1]:
            break
    else:
        if required:
            raise problem
        logger.info("the learned path is of no use, states in between are sampled: %s", problem)
        return None
    per_sample = (time.perf_counter() - tried) / len(pilot)
    possible = int(min(n, max(PILOT, (seconds - (time.perf_counter() - began)) / (1.5 * per_sample))))
    logger.info("learned path: %d samples of the generator of %s", possible, near.name)
    found = learned_difference(
        generator.sample(possible, near, seed=seed + 3), near, far, annealing=annealing, seed=seed + 4
    )
    found.ledger.merge(spent)
    # the sign of B -> A is turned where only B has a generator
    estimate = found.estimate if own == 0 else found.estimate.scaled(-1.0, "kT")
    diagnostics = {
        "generator": near.name,
        "lambdas": [] if annealing is None else list(annealing.lambdas),
        "n_asked": n,
    }
    return replace(
        found,
        estimate=estimate.with_warnings(*([] if possible == n else [f"time was up after {possible} of {n} samples"])),
        names=(ends[0].name, ends[1].name),
        diagnostics=diagnostics,
        seed=seed,
    )
