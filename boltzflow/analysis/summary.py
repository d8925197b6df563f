"""The numbers of an ensemble in one dictionary, as `analyze --json` prints them."""

import math
from collections.abc import Callable
from typing import Any

from boltzflow.analysis.reference import compare
from boltzflow.ensemble import Ensemble
from boltzflow.estimate import Estimate
from boltzflow.statistics.weights import ArrayLike

__all__ = ["summary"]


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
        system, n, ess, ess_fraction, pareto_k, log_z, log_z_error, normalisation, mean_reduced_energy,
        mean_reduced_energy_error, elbo, elbo_error, n_energy, n_force, n_nonfinite, n_failed, seconds, device, seed,
        target, base, context, interrupted, warnings; with a reference also forward_ess_fraction, eubo, eubo_error,
        eubo_minus_elbo, n_failed_reference.

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
    if reference is not None:
        found = attempt("reference", lambda: compare(ensemble, reference, path_log_weights=path_log_weights))
        result["forward_ess_fraction"] = None if found is None else found.forward_ess_fraction
        result.update(_pair("eubo", None if found is None else found.eubo))
        warnings.extend(f"eubo: {w}" for w in (() if found is None else found.eubo.warnings))
        result["n_failed_reference"] = None if found is None else found.n_failed
        result["eubo_minus_elbo"] = None if found is None else found.gap.value
    result["warnings"] = list(dict.fromkeys(warnings))
    return result


def _pair(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    return {
        name: None if estimate is None else estimate.value,
        f"{name}_error": None if estimate is None else estimate.error,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinities: k-hat of equal weights (−inf) or of too few (+inf) is no number."""
    return value if value is not None and math.isfinite(value) else None
