"""The double well of the stochastic-normalizing-flow paper, as published: error of the free-energy profile along x1.

python benchmarks/snf_double_well.py [--retrainings 4] [--repeats 20] [--output results.json]

Two stages of 300 Adam steps (likelihood, then likelihood and reverse KL), batch 128, as in the recipes of the system.
Every model is sampled `repeats` times, 100 000 samples each, into 30 bins of |x1| < 2.25. In every bin the profile is
-log p, with p the fraction of samples or of weight; bias and standard deviation are over the repeats in which the bin
is not empty (how often one is empty is in the result), and the error is the mean over the bins of sqrt(bias^2 + std^2),
all bins alike. The floor is the same for exact samples.
"""

import argparse
import time

import numpy as np
import torch
from _record import record

from boltzflow.ensemble import Ensemble
from boltzflow.generators import build_generator
from boltzflow.io.config import parse_config
from boltzflow.objectives import build_objective
from boltzflow.run import make_rng
from boltzflow.systems import load_system
from boltzflow.training import Trainer
from boltzflow.workflow import training_data

N_SAMPLES, N_BINS, LIMIT = 100_000, 30, 2.25
MODELS = {
    "RNVP": {"kernel": "none"},
    "RNVP + MC, step 0.25": {"step_size": 0.25, "learn_steps": False},
    "RNVP + MC, learned steps": {},
}
# mean and standard deviation over 10 retrainings, printed in the authors' notebooks
PUBLISHED = {
    "RNVP": {"error": [1.441, 0.527], "error reweighted": [1.153, 0.414]},
    "RNVP + MC, step 0.25": {"error": [1.506, 0.186], "error reweighted": [0.634, 0.105]},
    "RNVP + MC, learned steps": {"error": [0.966, 0.177], "error reweighted": [0.419, 0.045]},
}


def exact_profile(system) -> np.ndarray:
    """-log of the exact probability of every bin, by quadrature."""
    edges = np.linspace(-LIMIT, LIMIT, N_BINS + 1)
    below = [system.target.well.below(edge) for edge in edges]
    return -np.log(np.diff(below))


def errors(histograms: np.ndarray, exact: np.ndarray) -> tuple[float, int]:
    """Mean over the bins of sqrt(bias^2 + std^2), and the number of empty bins over all repeats."""
    with np.errstate(divide="ignore"):
        profiles = -np.log(histograms)
    filled = np.isfinite(profiles)
    profiles = np.where(filled, profiles, np.nan)
    total = np.sqrt((np.nanmean(profiles, 0) - exact) ** 2 + np.nanvar(profiles, 0))
    return float(np.nanmean(total)), int((~filled).sum())


def evaluate(draw, exact: np.ndarray, repeats: int) -> dict:
    """Errors of the profile without and with weights over repeated draws of `draw(seed)`."""
    edges = np.linspace(-LIMIT, LIMIT, N_BINS + 1)
    counts, weighted, ess = [], [], []
    for seed in range(repeats):
        ensemble = draw(seed)
        x = ensemble.samples["x"][:, 0]
        counts.append(np.histogram(x, edges)[0] / len(x))
        weighted.append(np.histogram(x, edges, weights=ensemble.weights)[0])
        ess.append(ensemble.ess_fraction())
    plain, reweighted = errors(np.array(counts), exact), errors(np.array(weighted), exact)
    return {
        "error": plain[0],
        "error reweighted": reweighted[0],
        "empty bins": plain[1],
        "ess fraction": float(np.mean(ess)),
    }


def train(system, stochastic: dict, seed: int):
    """The Generator after both stages, seconds and evaluations."""
    generator, ledger, began = None, None, time.process_time()
    data = training_data(system.reference(), system, dtype=torch.float64)
    for stage, recipe in enumerate(("likelihood", "stochastic_flow")):
        values = system.recipe(recipe).model_dump()
        values["generator"]["stochastic"].update(stochastic)
        values["generator"]["mask_seed"] = seed
        values["training"]["seed"] = 10 * seed + stage
        config = parse_config(values)
        if generator is None:
            generator = build_generator(system, config.generator, dtype=torch.float64)
        objective = build_objective(generator, system.target, config.objective)
        trainer = Trainer(objective, config.training, data=data)
        if ledger is not None:
            trainer.ledger.merge(ledger)
        trainer.run(progress=False)
        ledger = trainer.ledger
    return generator.eval(), time.process_time() - began, ledger.n_energy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--retrainings", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    system = load_system("snf_double_well")
    target, exact = system.target, exact_profile(system)

    def exact_samples(seed: int) -> Ensemble:
        state = target.sample(N_SAMPLES, make_rng(seed))
        return Ensemble(
            samples={"x": state["x"]},
            log_weights=torch.zeros(N_SAMPLES, dtype=torch.float64),
            reduced_energies=target.reduced_energy(state),
            target=target.name,
        )

    floor = evaluate(exact_samples, exact, arguments.repeats)
    print(f"exact samples: {floor['error']:.3f}", flush=True)
    results: dict = {
        "samples": N_SAMPLES,
        "repeats": arguments.repeats,
        "bins": f"{N_BINS} of |x1| < {LIMIT}, errors averaged over bins, empty ones left out of their repeat",
        "floor, exact samples": floor,
        "models": {},
    }
    for name, stochastic in MODELS.items():
        runs = []
        for seed in range(arguments.retrainings):
            generator, seconds, n_energy = train(system, stochastic, seed)
            steps = [t.current_step_size().item() for t in generator.transitions if hasattr(t, "current_step_size")]

            def draw(k: int, generator=generator, first=1000 * (seed + 1)) -> Ensemble:
                return generator.sample(N_SAMPLES, target, seed=first + k, batch_size=10_000)

            with torch.no_grad():
                found = evaluate(draw, exact, arguments.repeats)
            runs.append({**found, "training seconds": seconds, "training energies": n_energy, "step sizes": steps})
            print(f"{name:28s} {found['error']:.3f} reweighted {found['error reweighted']:.3f}", runs[-1], flush=True)
        summary = {key: _mean_and_deviation(runs, key) for key in ("error", "error reweighted", "ess fraction")}
        results["models"][name] = {**summary, "published": PUBLISHED[name], "runs": runs}
        record("snf_double_well", results, arguments.output)
    print(record("snf_double_well", results, arguments.output))


def _mean_and_deviation(runs: list[dict], key: str) -> list[float | None]:
    values = [run[key] for run in runs]
    return [float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None]


if __name__ == "__main__":
    main()
