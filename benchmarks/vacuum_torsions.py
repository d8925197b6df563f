"""Torsions of alanine dipeptide in vacuum at 1000 K, by the score of the stochastic-normalizing-flow paper.

    R=systems/alanine_dipeptide_vacuum/recipes
    boltzflow simulate $R/likelihood.yaml --seed 1
    boltzflow simulate $R/likelihood.yaml --seed 2 -o reference.h5
    for r in likelihood real_nvp stochastic_flow stochastic_splines; do
        boltzflow train $R/$r.yaml --set training.seed=1 -o runs/vacuum/$r
    done
    python benchmarks/vacuum_torsions.py --reference reference.h5 --training alanine_dipeptide_vacuum.h5

The published score of a torsion is Σ_bins p log((p + 1e-5)/(q + 1e-5)) over 50 bins of (-π, π], where p (reference)
and q (10 000 generated frames, without weights) are densities per radian, smoothed over the circle by the kernel
[1/4, 1/2, 1, 1/2, 1/4]. It lacks the width of the bins and the norm of the kernel: divided by 2.5 · 50/2π = 19.9 it is
the KL divergence of the smoothed densities in nats. The publication compares with its own training frames; here the
reference is a simulation that no model has seen. The floor is the same score of as many frames of one half of the
reference ladders against the other half. Every score is the mean over `draws` independent sets of frames.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from _record import record

from boltzflow.analysis import torsion
from boltzflow.ensemble import Ensemble
from boltzflow.io import load_checkpoint
from boltzflow.run import Ledger
from boltzflow.systems import load_system

# of the first atoms about their axes in the published Z-matrix: the backbone, and the rotors of the three methyl groups
TORSIONS = {
    "phi": (4, 6, 8, 14),
    "gamma1": (11, 10, 8, 6),
    "psi": (16, 14, 8, 6),
    "gamma2": (0, 1, 4, 6),
    "gamma3": (19, 18, 16, 14),
}
MODELS = ("real_nvp", "stochastic_flow", "likelihood", "stochastic_splines")
# printed in the authors' notebooks, one training each
PUBLISHED = {"RNVP": [1.71, 3.95, 0.81, 0.72, 0.87], "RNVP + MC (SNF)": [0.41, 0.20, 0.16, 0.08, 0.10]}
N_BINS, KERNEL, FLOOR = 50, (0.25, 0.5, 1.0, 0.5, 0.25), 1e-5


def density(angles: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Smoothed histogram of one torsion, per radian."""
    counts, _ = np.histogram(angles, N_BINS, range=(-math.pi, math.pi), density=True, weights=weights)
    return sum(k * np.roll(counts, shift - 2) for shift, k in enumerate(KERNEL))


def score(p: np.ndarray, q: np.ndarray) -> float:
    """The published score of the density q against the reference p."""
    return float(np.sum(p * np.log((p + FLOOR) / (q + FLOOR))))


def angles(ensemble: Ensemble) -> np.ndarray:
    """All torsions, (5, n) rad."""
    return np.stack([torsion(ensemble, atoms) for atoms in TORSIONS.values()])


def scores(reference: list[np.ndarray], draws: list[tuple[np.ndarray, np.ndarray | None]]) -> dict:
    """Mean over the draws of every torsion's score, and the standard error of that mean."""
    found = np.array([[score(p, density(a, w)) for p, a in zip(reference, x, strict=True)] for x, w in draws])
    return {"mean": found.mean(0).tolist(), "error": (found.std(0, ddof=1) / math.sqrt(len(found))).tolist()}


def subsets(x: np.ndarray, n: int, n_draws: int, seed: int) -> list[tuple[np.ndarray, None]]:
    """Disjoint random sets of n frames."""
    order = np.random.default_rng(seed).permutation(x.shape[1])
    return [(x[:, order[k * n : (k + 1) * n]], None) for k in range(n_draws)]


def main() -> None:
    """Score the reference against itself, the training data and every model; record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/vacuum"), help="folder of the run folders")
    parser.add_argument("--reference", required=True, help="ensemble of another seed than the training data")
    parser.add_argument("--training", required=True, help="training data, scored like a model")
    parser.add_argument("-n", type=int, default=10_000, help="frames per score; published: 10 000")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    system = load_system("alanine_dipeptide_vacuum", dtype=torch.float32)
    n, n_draws = options.n, options.draws

    reference, training = Ensemble.load(options.reference), Ensemble.load(options.training)
    if reference.provenance.seed == training.provenance.seed:
        raise ValueError(f"reference and training data have the same seed, {training.provenance.seed}")
    x = angles(reference)
    p = [density(a) for a in x]
    first = reference.chain < np.median(reference.chain)
    halves = subsets(x[:, first], n, n_draws, options.seed)
    results: dict = {
        "frames per score": n,
        "draws": n_draws,
        "reference": {"frames": len(reference), "seed": reference.provenance.seed, "energies": _energies(reference)},
        "training data": {"frames": len(training), "seed": training.provenance.seed, "energies": _energies(training)},
        "torsions": {name: list(atoms) for name, atoms in TORSIONS.items()},
        "published": PUBLISHED,
        "floor": scores([density(a) for a in x[:, ~first]], halves),
        "training frames": scores(p, subsets(angles(training), n, n_draws, options.seed)),
        "models": {},
    }
    for name in ("floor", "training frames"):
        print(f"{name:24s}", *(f"{value:.3f}" for value in results[name]["mean"]), flush=True)
    for name in MODELS:
        path = options.runs / name / "checkpoint.pt"
        if not path.is_file():
            print(f"{name}: no {path}")
            continue
        checkpoint = load_checkpoint(path, system)
        generator, began = system.generator_from(checkpoint), time.perf_counter()
        ensembles = [generator.sample(n, system.target, seed=options.seed + k) for k in range(n_draws)]
        seconds = time.perf_counter() - began
        whole = Ensemble.merge(ensembles) if n_draws > 1 else ensembles[0]
        found = [(angles(e), e.weights) for e in ensembles]
        log_z, ledger = whole.log_z(), Ledger.from_dict(checkpoint.cost["ledger"])
        results["models"][name] = {
            "generated": scores(p, [(a, None) for a, _ in found]),
            "reweighted": scores(p, found),
            "path ess fraction": whole.ess_fraction(),
            "pareto k": whole.pareto_k(),
            "log z": {"value": log_z.value, "error": log_z.error, "warnings": list(log_z.warnings)},
            "weight zero": float(np.mean(np.isneginf(whole.log_weights))),
            "sampling seconds": seconds,
            "training seconds": checkpoint.cost["seconds"],
            "training steps": checkpoint.cost["step"],
            "training energies, without the data": ledger.n_energy() - results["training data"]["energies"],
        }
        one = results["models"][name]
        for kind in ("generated", "reweighted"):
            one[kind]["below published"] = bool(np.all(np.array(one[kind]["mean"]) < PUBLISHED["RNVP + MC (SNF)"]))
        print(f"{name:24s}", *(f"{v:.3f}" for v in one["generated"]["mean"]), "reweighted", end=" ")
        print(*(f"{v:.3f}" for v in one["reweighted"]["mean"]), f"ESS {one['path ess fraction']:.1%}", end=" ")
        print(f"k {one['pareto k']:.2f} log Z {log_z}", flush=True)
        record("vacuum_torsions", results, options.output)
    print(record("vacuum_torsions", results, options.output))


def _energies(ensemble: Ensemble) -> int:
    return Ledger.from_dict(ensemble.provenance.ledger).n_energy()


if __name__ == "__main__":
    main()
