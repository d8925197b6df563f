"""LJ55 by a flow for shallower wells, cooled by moves, beside the same moves from a normal distribution.

    boltzflow sample lj55_shallow -n 2000 --seed 2026 -o flow.h5
    boltzflow sample lj55 -n 5000 --seed 2026 -o cooled_1.h5
    boltzflow sample lj55 -n 5000 --seed 2027 -o cooled_2.h5
    boltzflow sample lj55 --recipe annealed_importance -n 1000 --seed 2026 -o normal.h5
    boltzflow sample lj55 --recipe smc -n 2000 --seed 2026 -o smc.h5
    python benchmarks/cooled_flow.py --flow flow.h5 --cooled cooled_1.h5 cooled_2.h5 --normal normal.h5 --smc smc.h5

Several files of one kind, of other seeds, are merged. Nothing is filtered. Seconds are those in the files, without
trainings and pilots, and forces those of both energies. What all kinds share is how many independent samples would
have given the error of the mean energy, Var(u)/error², and how many of these a minute makes.
"""

import argparse
import json

import numpy as np
from _record import record
from continuous_flows import bootstrap

from boltzflow.analysis import summary
from boltzflow.ensemble import Ensemble

KINDS = ("flow", "cooled", "normal", "smc")


def main() -> None:
    """Read the ensembles, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", nargs="+", required=True, help="ensemble files")
    options = parser.parse_args()
    results = {
        kind: measured(Ensemble.merge([Ensemble.load(file) for file in getattr(options, kind)])) for kind in KINDS
    }
    print(json.dumps(results, indent=2))
    print(f"written to {record('cooled_flow', results)}")


def measured(ensemble: Ensemble) -> dict:
    """All numbers of one ensemble."""
    found, made, n = summary(ensemble), ensemble.provenance, len(ensemble)
    mean = ensemble.mean_reduced_energy()
    kept = np.isfinite(ensemble.reduced_energies)
    variance = np.average((ensemble.reduced_energies[kept] - mean.value) ** 2, weights=ensemble.weights[kept])
    return {
        **found,
        "seeds": made.seed,
        "dtype": made.dtype,
        "system": made.extra.get("system"),
        "ess_fraction_bootstrap": bootstrap(ensemble.weights, np.random.default_rng(1)),
        "forces_per_sample": made.n_force / n,
        "seconds_per_sample": made.seconds / n,
        "independent": float(variance / mean.error**2),
        "independent_per_minute": float(variance / mean.error**2 / (made.seconds / 60.0)),
    }


if __name__ == "__main__":
    main()
