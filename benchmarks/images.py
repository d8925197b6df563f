"""Pictures as densities, as in the stochastic-normalizing-flow paper: KL divergence against the number of couplings.

python benchmarks/images.py [--plan face:1,2,5 [spiral:5 chart:5]] [--runs runs/images] [-n 500000] [--output FILE]

Flows of affine (RNVP) or spline (NSF) couplings, alone and with 10 Metropolis steps of 0.1 after every transform of
two couplings, are trained by the recipes of the systems: 2000 steps of likelihood on 250 of 500 000 exact samples. The
score is KL(exact || samples) of 50 x 50 bins over |x|, |y| <= 3, both with 1e-10 added, where the exact probabilities
come from quadrature and samples outside count as lost. It is computed for the samples as they are, beside the score of
as many exact samples, and with their exact weights, beside what the spread of the weights alone makes it: half the sum
over the bins of the variance of the weighted fraction, divided by the exact one. Pure Metropolis walks on the target
from the base, step 0.1.

Every run is a run folder under --runs that holds its score as well: the script can be stopped and started again.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
from _record import record

from boltzflow.ensemble import Ensemble
from boltzflow.io import load_checkpoint
from boltzflow.io.config import RunConfig, parse_config
from boltzflow.run import make_rng
from boltzflow.systems import AnalyticSystem, load_system
from boltzflow.targets.bases import Gaussian
from boltzflow.testing import run_at
from boltzflow.transitions import RandomWalkMetropolis
from boltzflow.workflow import train

EXTENT, BINS, REGULARISER, BATCH = 3.0, 50, 1e-10, 10_000
RECIPES = ("rnvp", "rnvp_snf", "nsf", "nsf_snf")
METROPOLIS = (100, 200, 500, 1000)
# of other pictures, read off a plot of the authors' outputs (+-0.01): couplings 2, 4, 6, 8, 12, 16
PUBLISHED = {
    "couplings": [2, 4, 6, 8, 12, 16],
    "rnvp": [0.41, 0.27, 0.20, 0.17, 0.18, 0.17],
    "rnvp_snf": [0.23, 0.15, 0.12, 0.09, 0.095, 0.11],
    "nsf": [0.11, 0.09, 0.083, 0.077, 0.11, 0.093],
    "nsf_snf": [0.053, 0.05, 0.05, 0.055, 0.056, 0.075],
    "metropolis": {"100": 0.43, "200": 0.24, "500": 0.10, "1000": 0.055},
}


def exact_bins(target, *, fine: int = 60) -> np.ndarray:
    """Exact probabilities of the bins: the midpoint rule, which is exact on a grid that holds the nodes."""
    n = BINS * fine
    middle = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * EXTENT - EXTENT
    rows = [torch.exp(-target.reduced_energy(target.state(torch.cartesian_prod(x, middle)))) for x in middle.split(60)]
    return torch.cat(rows).reshape(BINS, fine, BINS, fine).sum((1, 3)).numpy() * (2 * EXTENT / n) ** 2


def binned(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of the weights in every bin."""
    edges = np.linspace(-EXTENT, EXTENT, BINS + 1)
    return np.histogram2d(x[:, 0], x[:, 1], bins=(edges, edges), weights=weights)[0]


def divergence(exact: np.ndarray, x: np.ndarray, weights: np.ndarray | None = None) -> float:
    """KL(exact || samples) of the bins; weights add up to one."""
    found = binned(x, np.full(len(x), 1 / len(x)) if weights is None else weights)
    return float((exact * np.log((exact + REGULARISER) / (found + REGULARISER))).sum())


def expected(exact: np.ndarray, x: np.ndarray, weights: np.ndarray) -> float:
    """What the divergence of a histogram of right weights is by their spread, to second order."""
    return float((binned(x, weights**2) / exact).sum() / 2)


def run_folder(runs: Path, system: str, recipe: str, n_transforms: int) -> Path:
    """Where a run is."""
    return runs / f"{system}-{recipe}-{n_transforms}"


def configured(system: AnalyticSystem, recipe: str, n_transforms: int, data: Path) -> RunConfig:
    """The recipe with another number of transforms, its blocks evenly from the base to the target, and its data."""
    values = system.recipe(recipe).model_dump()
    levels = np.linspace(0.0, 1.0, n_transforms).tolist() if n_transforms > 1 else [1.0]
    values["generator"]["n_couplings"] = 2 * n_transforms
    values["generator"]["stochastic"].update(n_transforms=n_transforms, levels=levels)
    values["training"]["seed"] = n_transforms
    values["objective"]["data"] = str(data)
    return parse_config(values)


def exact_data(system: AnalyticSystem, runs: Path, *, n: int = 500_000) -> Path:
    """A file of exact samples to train on."""
    path = runs / f"{system.name}.h5"
    if not path.is_file():
        runs.mkdir(parents=True, exist_ok=True)
        state = system.target.sample(n, make_rng(7))
        energies = system.target.reduced_energy(state)
        Ensemble(
            samples={"x": state["x"]}, log_weights=torch.zeros(n), reduced_energies=energies, target=system.name
        ).save(path)
    return path


def measured(system: AnalyticSystem, recipe: str, n_transforms: int, runs: Path, n: int) -> dict:
    """Scores of a run: trained, sampled, and kept in its folder."""
    folder = run_folder(runs, system.name, recipe, n_transforms)
    kept = folder / f"scores-{n}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    config = configured(system, recipe, n_transforms, exact_data(system, runs))
    generator = train(config, folder, resume=True, progress=False)
    with torch.no_grad():
        ensemble = generator.sample(n, system.target, seed=1, batch_size=BATCH)
    exact, x = exact_bins(system.target), ensemble.samples["x"]
    log_z, ledger = ensemble.log_z(), load_checkpoint(folder / "checkpoint.pt").cost["ledger"]
    blocks = [t for t in generator.transitions if isinstance(t, RandomWalkMetropolis)]
    scores = {
        "kl": divergence(exact, x),
        "kl reweighted": divergence(exact, x, ensemble.weights),
        "kl expected of right weights": expected(exact, x, ensemble.weights),
        "ess fraction": ensemble.ess_fraction(),
        "pareto k": ensemble.pareto_k(),
        "log Z (exact 0)": [log_z.value, log_z.error],
        "acceptance": [t.acceptance_rate() for t in blocks],
        "outside": float((np.abs(x) > EXTENT).any(1).mean()),
        "energies per sample": ensemble.provenance.n_energy / n,
        "training energies": sum(ledger["energy"].values()),
    }
    kept.write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def metropolis(system: AnalyticSystem, n: int, runs: Path) -> dict:
    """Divergence after some numbers of Metropolis steps from the base."""
    kept = runs / f"{system.name}-metropolis-{n}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    target, base = system.target, Gaussian(2).double()
    exact, found = exact_bins(target), {steps: [] for steps in METROPOLIS}
    with torch.no_grad():
        for shard in range(-(-n // BATCH)):
            rng = make_rng(2, shard)
            state, done = base.sample(min(BATCH, n - shard * BATCH), rng), 0
            for steps in METROPOLIS:
                state, _ = RandomWalkMetropolis(0.1, n_steps=steps - done)(state, run_at(target, rng))
                done = steps
                found[steps].append(state["x"])
    scores = {str(steps): divergence(exact, torch.cat(x).numpy()) for steps, x in found.items()}
    kept.write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def main() -> None:
    """Train and score what was planned, in that order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", nargs="+", default=["face:1,2,5"], metavar="PICTURE:N,N,...")
    parser.add_argument("--runs", type=Path, default=Path("runs/images"))
    parser.add_argument("-n", type=int, default=500_000)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    plan = [(picture, int(k)) for picture, text in (p.split(":") for p in arguments.plan) for k in text.split(",")]
    results: dict = {"samples": arguments.n, "bins": BINS, "published, other pictures": PUBLISHED, "pictures": {}}
    for picture in dict.fromkeys(picture for picture, _ in plan):
        target = load_system(f"image_{picture}").target
        drawn = target.sample(arguments.n, make_rng(1))["x"].numpy()
        results["pictures"][picture] = {"floor": divergence(exact_bins(target), drawn), "transforms": {}}
    for picture, n_transforms in plan:
        system, row = load_system(f"image_{picture}"), {}
        results["pictures"][picture]["transforms"][str(n_transforms)] = row
        for recipe in RECIPES:
            row[recipe] = measured(system, recipe, n_transforms, arguments.runs, arguments.n)
            print(picture, 2 * n_transforms, recipe, row[recipe], flush=True)
            record("images", results, arguments.output)
    first = plan[0][0]
    results["pictures"][first]["metropolis"] = metropolis(load_system(f"image_{first}"), arguments.n, arguments.runs)
    print(record("images", results, arguments.output))


if __name__ == "__main__":
    main()
