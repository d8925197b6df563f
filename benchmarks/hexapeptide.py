"""Capped hexapeptide from the energy alone: ESS against energy calls, and the last model beside parallel tempering.

    boltzflow simulate ace_aaaaa_nme --chains 16 --stride 10 --burn-in 500 -n 8000 --seed 300 -o reference.h5
    python benchmarks/hexapeptide.py CHECKPOINT ... [-n 100000] [--curve 20000] [--reference reference.h5]

Checkpoints of one training in its order; the last is the one that is compared. The reference comes from another seed
than any training, which used none. Nothing is filtered; samples outside the sector have weight zero and count.
"""

import argparse
import json
import time

import numpy as np
import torch
from _record import record

from boltzflow import Ensemble
from boltzflow.analysis import summary, torsion
from boltzflow.io import load_checkpoint
from boltzflow.run import Ledger
from boltzflow.systems import System, load_system
from boltzflow.workflow import path_log_weights

NAME = "ace_aaaaa_nme"
N_RESIDUES = 5
BINS = 24
"""Per angle of a Ramachandran map, for 8000 frames of the reference."""
PSEUDO = 1e-4
"""Share of the uniform distribution that is mixed into both maps, so that an empty bin costs a finite KL divergence."""


def main() -> None:
    """Sample every checkpoint, compare the last one, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("-n", type=int, default=100_000)
    parser.add_argument("--curve", type=int, default=20_000, help="samples of every checkpoint before the last")
    parser.add_argument("--reference", help="ensemble file of parallel tempering")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    system = load_system(NAME, dtype=torch.float32)
    curve = [point(system, path, options.curve, options.seed)[0] for path in options.checkpoints[:-1]]
    last, ensemble = point(system, options.checkpoints[-1], options.n, options.seed)
    result = {"curve": [*curve, last]}
    if options.reference is None:
        result |= summary(ensemble)
    else:
        reference = Ensemble.load(options.reference)
        generator = system.generator_from(load_checkpoint(options.checkpoints[-1], system))
        traced = path_log_weights(generator, reference, system.target)
        result |= summary(ensemble, reference, path_log_weights=traced)
        result |= {"reference": of_simulation(reference), "ramachandran": maps(ensemble, reference)}
        result["missed"] = missed(reference, traced, result["log_z_two_sided"])
    path = record("hexapeptide", result, options.output)
    print(json.dumps(result, indent=2))
    print(f"written to {path}")


def point(system: System, path: str, n: int, seed: int) -> tuple[dict, Ensemble]:
    """What a checkpoint cost and what its samples are worth at the temperature of the system."""
    checkpoint = load_checkpoint(path, system)
    started = time.perf_counter()
    ensemble = system.generator_from(checkpoint).sample(n, system.target, seed=seed)
    ledger = Ledger.from_dict(checkpoint.cost["ledger"])
    found = {
        "step": checkpoint.cost["step"],
        "n_energy_training": ledger.n_energy(),
        "n_force_training": ledger.n_force(),
        "seconds_training": checkpoint.cost["seconds"],
        "n": n,
        "ess_fraction": ensemble.ess_fraction(),
        "pareto_k": float(ensemble.pareto_k()),
        "seconds_sampling": time.perf_counter() - started,
    }
    print(json.dumps(found), flush=True)
    return found, ensemble


def of_simulation(reference: Ensemble) -> dict:
    """Size and diagnostics of the reference."""
    found = summary(reference)
    energy = ("mean_reduced_energy", "mean_reduced_energy_error")
    chains = ("n_chains", "r_hat", "n_effective", "round_trips")
    return {key: found.get(key) for key in ("n", "seed", "n_force", *energy, *chains)}


def missed(reference: Ensemble, traced: np.ndarray, log_z: float) -> dict:
    """By how much too thin the model is where a residue has φ > 0 and elsewhere: medians of log w − log Z."""
    right = np.any([torsion(reference, f"phi:{k}") > 0 for k in range(1, N_RESIDUES + 1)], axis=0)
    excess = np.asarray(traced) - log_z
    return {
        "share_phi_positive": float(right.mean()),
        "median_phi_positive": float(np.median(excess[right])),
        "median_others": float(np.median(excess[~right])),
    }


def maps(ensemble: Ensemble, reference: Ensemble) -> list[dict]:
    """KL divergences of the maps of (φ, ψ) of every residue, reference against the model, in nats.

    The floor is that between two halves of the reference's chains: what equal distributions give at this size.
    """
    weights = np.exp(ensemble.log_weights - ensemble.log_weights.max())
    half = np.isin(reference.chain, np.unique(reference.chain)[::2])
    found = []
    for k in range(1, N_RESIDUES + 1):
        model, true = (np.stack([torsion(e, f"{a}:{k}") for a in ("phi", "psi")]) for e in (ensemble, reference))
        whole = density(true, np.ones(len(half)))
        found.append(
            {
                "residue": k,
                "generated": divergence(whole, density(model, (weights > 0).astype(float))),
                "reweighted": divergence(whole, density(model, weights)),
                "floor": divergence(density(true, half.astype(float)), density(true, (~half).astype(float))),
                "alpha_left": {
                    "generated": share(model, (weights > 0).astype(float)),
                    "reweighted": share(model, weights),
                    "reference": share(true, np.ones(len(half))),
                },
            }
        )
    return found


def density(angles: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Probability of every bin of a map."""
    edges = np.linspace(-np.pi, np.pi, BINS + 1)
    counts, *_ = np.histogram2d(*np.nan_to_num(angles), bins=(edges, edges), weights=weights)
    return (1 - PSEUDO) * counts / counts.sum() + PSEUDO / BINS**2


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p‖q) of two maps."""
    return float((p * np.log(p / q)).sum())


def share(angles: np.ndarray, weights: np.ndarray) -> float:
    """Probability of 0° < φ < 130°, where αL lies."""
    inside = (angles[0] > 0) & (angles[0] < np.radians(130))
    return float(weights[inside].sum() / weights.sum())


if __name__ == "__main__":
    main()
