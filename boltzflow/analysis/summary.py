"""The numbers of an ensemble in one dictionary, as `analyze --json` prints them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from boltzflow.analysis.reference import compare
from boltzflow.analysis.two_sided import two_sided
from boltzflow.ensemble import Ensemble
from boltzflow.estimate import Estimate
from boltzflow.statistics.chains import bulk_ess, effective_samples, split_rhat, tail_ess
from boltzflow.statistics.weights import ArrayLike

__all__ = ["chain_series", "summary"]


def summary(
    ensemble: Ensemble, reference: Ensemble | None = None, *, path_log_weights: ArrayLike | None = None
) -> dict[str, Any]:
    """Size, weights, estimates, costs and provenance of an ensemble, in values that JSON can hold.

    A number that the ensemble cannot give is None, and `warnings` says why.

    Args:
        ensemble: To be summarised.
        reference: Independent samples of the same target.
        path_log_weights: log w of the reference traced back through the generator, shape (n_reference,).

    Returns:
        system, n, ess, ess_fraction, equal_weights (of all rows with a weight), pareto_k, log_z, log_z_error,
        normalisation, mean_reduced_energy, mean_reduced_energy_error, elbo, elbo_error, n_energy, n_force, n_nonfinite,
        n_failed, seconds, device, seed, target, base, context, interrupted, warnings; of chains also n_chains, r_hat,
        bulk_ess, tail_ess and n_effective (of the reduced energy) and, if there was a ladder of temperatures,
        round_trips; with a reference also forward_ess_fraction, eubo, eubo_error, eubo_minus_elbo, n_failed_reference,
        and where both sides are of single, equally likely paths log_z_two_sided, log_z_two_sided_error and overlap.

    Raises:
        ValueError: If a reference comes without its paths.
    """
    if (reference is None) != (path_log_weights is None):
        raise ValueError(
            "summary: a reference is compared by its paths through the generator; give both, reference and "
            "path_log_weights "
            "(from Generator.trace_back)."
        )
    warnings: list[str] = []

    def attempt(name: str, compute: Callable[[], Any]) -> Any:
        try:
            found = compute()
        except ValueError as error:
            warnings.append(f"{name}: {error}")
            return None
        if isinstance(found, Estimate):
            warnings.extend(f"{name}: {w}" for w in found.warnings)
        return found

    provenance = ensemble.provenance
    ess = attempt("ess", ensemble.ess)
    log_z = attempt("log_z", ensemble.log_z)
    energy = attempt("mean_reduced_energy", ensemble.mean_reduced_energy)
    elbo = attempt("elbo", ensemble.elbo)
    result = {
        "system": provenance.extra.get("system", ensemble.target),
        "n": len(ensemble),
        "ess": ess,
        "ess_fraction": None if ess is None else ess / len(ensemble),
        "equal_weights": bool(np.unique(ensemble.log_weights[ensemble.log_weights > -np.inf]).size <= 1),
        "pareto_k": _finite(attempt("pareto_k", ensemble.pareto_k)),
        **_pair("log_z", log_z),
        "normalisation": ensemble.normalisation,
        **_pair("mean_reduced_energy", energy),
        **_pair("elbo", elbo),
        "n_energy": provenance.n_energy,
        "n_force": provenance.n_force,
        "n_nonfinite": provenance.n_nonfinite,
        "n_failed": provenance.n_failed,
        "seconds": provenance.seconds,
        "device": provenance.device,
        "seed": provenance.seed,
        "target": ensemble.target,
        "base": ensemble.base,
        "context": ensemble.context,
        "interrupted": provenance.interrupted,
    }
    if ensemble.chain is not None:
        result.update(_of_chains(ensemble, attempt))
    elif "mbar" in (provenance.extra.get("simulation") or {}):
        result.update(_of_ladders(provenance.extra["simulation"]))
    if reference is not None:
        found = attempt("reference", lambda: compare(ensemble, reference, path_log_weights=path_log_weights))
        result["forward_ess_fraction"] = None if found is None else found.forward_ess_fraction
        result.update(_pair("eubo", None if found is None else found.eubo))
        warnings.extend(f"eubo: {w}" for w in (() if found is None else found.eubo.warnings))
        result["n_failed_reference"] = None if found is None else found.n_failed
        result["eubo_minus_elbo"] = None if found is None else found.gap.value
        if "populations" not in provenance.extra and np.ptp(reference.log_weights) == 0:
            both = attempt("two_sided", lambda: two_sided(ensemble, reference, path_log_weights=path_log_weights))
            result.update(_pair("log_z_two_sided", None if both is None else both.log_z))
            result["overlap"] = None if both is None else both.overlap
            warnings.extend(f"log_z_two_sided: {w}" for w in (() if both is None else both.log_z.warnings))
    result["warnings"] = list(dict.fromkeys(warnings))
    return result


def chain_series(ensemble: Ensemble, values: np.ndarray) -> list[np.ndarray]:
    """An observable along every chain in the order of time; rows where it is not finite are left out.

    Args:
        ensemble: Of chains.
        values: Shape (n,).

    Returns:
        One array per chain.

    Raises:
        ValueError: If the ensemble knows of no chains.
    """
    if ensemble.chain is None:
        raise ValueError("chain_series: the rows of this ensemble are not frames of chains.")
    time = np.arange(len(ensemble)) if ensemble.frame is None else ensemble.frame
    rows = np.lexsort((time, ensemble.chain))
    rows = rows[np.isfinite(values[rows])]
    _, starts = np.unique(ensemble.chain[rows], return_index=True)
    return np.split(values[rows], starts[1:])


def _of_chains(ensemble: Ensemble, attempt: Callable[[str, Callable[[], Any]], Any]) -> dict[str, Any]:
    """How well the chains have mixed, by their energy."""
    chains = chain_series(ensemble, ensemble.reduced_energies)
    length = min(len(chain) for chain in chains)
    equal = [chain[:length] for chain in chains]
    found = {
        "n_chains": len(chains),
        "r_hat": _finite(attempt("r_hat", lambda: split_rhat(equal))),
        "bulk_ess": attempt("bulk_ess", lambda: bulk_ess(equal)),
        "tail_ess": attempt("tail_ess", lambda: tail_ess(equal)),
        "n_effective": attempt("n_effective", lambda: effective_samples(chains)),
    }
    simulation = ensemble.provenance.extra.get("simulation") or {}
    return found | ({"round_trips": simulation["round_trips"]} if "round_trips" in simulation else {})


def _of_ladders(simulation: Mapping[str, Any]) -> dict[str, Any]:
    """How well parallel tempering has mixed, by the energy at the first temperature, as the simulation recorded it."""
    series = simulation["series"]["reduced_energy"]
    return {
        "n_chains": simulation["mbar"]["n_ladders"],
        "r_hat": _finite(series["split_r_hat"]),
        "bulk_ess": _finite(series.get("bulk_ess")),  # of files from before these were recorded None
        "tail_ess": _finite(series.get("tail_ess")),
        "n_effective": series["n_effective"],
        "round_trips": simulation["round_trips"],
    }


def _pair(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    return {
        name: None if estimate is None else estimate.value,
        f"{name}_error": None if estimate is None else estimate.error,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinities: k-hat of equal weights (−inf) or of too few (+inf) is no number."""
    return value if value is not None and math.isfinite(value) else None
