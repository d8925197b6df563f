"""Reweighting: the same configurations as an ensemble of another temperature, force field or λ."""

import time
from dataclasses import replace

import numpy as np

from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.errors import LowOverlapError
from boltzflow.io.provenance import method_names
from boltzflow.run import Context, EnergyModel, Run, make_rng
from boltzflow.state import Space
from boltzflow.statistics.weights import kish_ess

__all__ = ["reweight"]

# below this many effective samples not even the error bars mean anything
MINIMAL_ESS = 10.0
BATCH = 1024


def reweight(ensemble: Ensemble, target: EnergyModel, *, context: Context | None = None) -> Ensemble:
    """The same samples weighted for another target: log w + u_old − u_new.

    The normalisation is kept, so `log_z()` of the result is that of the new target. Samples of MD or MCMC
    (normalisation "none", equal weights) become "relative to" their target, and `log_z()` is the free-energy
    difference −(f_new − f_old).

    Args:
        ensemble: Weighted samples; rows of weight zero stay so and are not evaluated.
        target: Of the same fields and measure.
        context: For targets that read one.

    Raises:
        LowOverlapError: If fewer than 10 effective samples are left.
        ValueError: If the target reads fields that the ensemble lacks, or if they have other dimensions, as those of a
            molecule with constraints and without.
    """
    missing = set(getattr(target, "fields", {})) - set(ensemble.samples)
    if missing:
        raise ValueError(
            f"reweight: {target.name} reads the fields {sorted(missing)}, the ensemble holds "
            f"{sorted(ensemble.samples)}."
        )
    for name, space in getattr(target, "fields", {}).items():
        own = ensemble.spaces[name]
        # samples from elsewhere declare no dimension of their own
        if own.dimension not in (space.dimension, Space("line", own.shape).dimension):
            raise ValueError(
                f"reweight: the density of {name!r} has {own.dimension} dimensions in {ensemble.target} and "
                f"{space.dimension} in {target.name}, so that one has no weight for the other. Constraints, boxes and "
                "virtual sites must be of the same kind at both ends."
            )
    started = time.perf_counter()
    run = Run(rng=make_rng(0), context=context)
    carries = np.flatnonzero(ensemble.log_weights > -np.inf)
    state = ensemble.select(carries).to_state() if carries.size else None
    u = np.full(len(ensemble), np.inf)
    for first in range(0, carries.size, BATCH):
        energies, _ = run.evaluate(target, state.index(slice(first, first + BATCH)))
        u[carries[first : first + BATCH]] = energies.cpu().numpy()
    log_w = np.full(len(ensemble), -np.inf)
    log_w[carries] = ensemble.log_weights[carries] + ensemble.reduced_energies[carries] - u[carries]
    lost = int(np.sum(~np.isfinite(u[carries])))
    ess = kish_ess(log_w) if lost < carries.size else 0.0
    if ess < MINIMAL_ESS:
        raise LowOverlapError(
            f"reweight: {ess:.1f} effective samples of {len(ensemble)} are left for {target.name} ({lost} have no "
            "finite energy there): "
            f"{ensemble.target} is too far from it. Use a target in between, more samples, or a generator for the "
            "new target."
        )
    from_simulation = ensemble.normalisation == "none" and np.ptp(ensemble.log_weights[carries]) == 0
    base = ensemble.target if from_simulation else ensemble.base
    return ensemble._like(
        log_weights=log_w,
        reduced_energies=u,
        target=target.name,
        context=context,
        base=base,
        normalisation=f"relative to {base}" if from_simulation else ensemble.normalisation,
        provenance=_provenance(ensemble, run, target=target, seconds=time.perf_counter() - started, n_nonfinite=lost),
    )


def _provenance(ensemble: Ensemble, run: Run, *, target: EnergyModel, seconds: float, n_nonfinite: int) -> Provenance:
    old = ensemble.provenance
    costs = Provenance.merged([old, Provenance(ledger=run.ledger.as_dict(), device=old.device, dtype=old.dtype)])
    return replace(
        old,
        ledger=costs.ledger,
        seconds=old.seconds + seconds,
        n_nonfinite=old.n_nonfinite + n_nonfinite,
        methods=method_names(old, "reweight", target),
        extra={**old.extra, "reweighted_from": ensemble.target, "ess_before": ensemble.ess()},
    )
