"""Quality of the shipped continuous flows: ESS of every weight, forward ESS, NLL, path lengths, Wasserstein distances.

    python benchmarks/continuous_flows.py [-n 10000] [--repeats 4] [--threads 1] [--seed 2026]
    python benchmarks/continuous_flows.py --only dw4 --checkpoint runs/dw4-path_gradients/checkpoint.pt

With --only, rows of other systems stay in the file as they were measured, each with its date.

Every repeat is an ensemble of its own; nothing is filtered. References are the parallel-tempering frames in data/, of
seeds that no training used. E-W2 and T-W2 are of resampled ensembles of n/4 rows, or as many as half of the frames,
against as many reference frames, and their floor is that of another such set of frames.
"""

import argparse
import json
from datetime import date
from pathlib import Path

import mdtraj
import numpy as np
import torch
from _record import record
from scipy.optimize import linear_sum_assignment

from boltzflow.analysis import summary
from boltzflow.analysis.observables import torsion
from boltzflow.ensemble import Ensemble
from boltzflow.generators import Generator
from boltzflow.io import load_checkpoint
from boltzflow.run import Ledger, Run, make_rng
from boltzflow.systems import SystemFolder, load_system
from boltzflow.transitions import EulerFlow, RungeKuttaFlow
from boltzflow.workflow import path_log_weights

SYSTEMS = {"dw4": None, "lj13": None, "alanine_dipeptide_ff99sbildn": "continuous", "trialanine": "continuous"}
RESAMPLES = 1000
MISSED = 30.0  # log w above log Z, beyond which a frame counts as missed


def main() -> None:
    """Measure every system, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--only", choices=SYSTEMS, help="this system alone, its shipped checkpoint or another")
    parser.add_argument("--checkpoint", help="for --only")
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [options.only] if options.only else list(SYSTEMS)
    path = Path(options.output) if options.output else Path(__file__).parent / "results" / "continuous_flows.json"
    earlier = json.loads(path.read_text())["results"]["systems"] if options.only and path.is_file() else {}
    measured = {name: {**measure(name, options), "date": f"{date.today():%Y-%m-%d}"} for name in names}
    results = {name: (earlier | measured)[name] for name in SYSTEMS if name in earlier | measured}
    path = record("continuous_flows", {"systems": results}, path)
    print(json.dumps(measured, indent=2))
    print(f"written to {path}")


def measure(name: str, options: argparse.Namespace) -> dict:
    """All numbers of one system."""
    system = load_system(name, dtype=torch.float64)
    path = options.checkpoint or system.find_checkpoint(SYSTEMS[name])
    checkpoint = load_checkpoint(path, system)
    generator = system.generator_from(checkpoint, dtype=torch.float64)
    reference = system.reference()
    ensembles = [
        generator.sample(options.n, system.target, seed=options.seed + k, batch_size=500)
        for k in range(options.repeats)
    ]
    log_weights = path_log_weights(generator, reference, system.target).numpy()
    found = summary(Ensemble.merge(ensembles), reference, path_log_weights=log_weights)
    ess = [ensemble.ess_fraction() for ensemble in ensembles]
    rng = np.random.default_rng(options.seed)
    ledger = Ledger.from_dict(checkpoint.cost["ledger"])
    nll = log_weights + reference.reduced_energies
    return {
        **found,
        "repeats": options.repeats,
        "ess_fractions": ess,
        "ess_fraction_bootstrap": float(np.mean([bootstrap(ensemble.weights, rng) for ensemble in ensembles])),
        "n_reference": len(reference),
        "n_missed": int((~np.isfinite(log_weights) | (log_weights - ensembles[0].log_z().value > MISSED)).sum()),
        "nll": float(nll[np.isfinite(nll)].mean()),
        "mean_reduced_energy_reference": reference.mean_reduced_energy().value,
        "mean_reduced_energy_reference_error": reference.mean_reduced_energy().error,
        "path_length": path_length(generator, options.seed),
        "n_energy_training": ledger.n_energy(),
        "n_force_training": ledger.n_force(),
        "seconds_training": checkpoint.cost["seconds"],
        "steps_training": checkpoint.cost["step"],
        "n_flow_steps": generator.transitions[-1].n_steps,
        "n_parameters": sum(p.numel() for p in generator.parameters()),
        **distances(system, ensembles, reference, min(options.n // 4, len(reference) // 2)),
    }


def bootstrap(weights: np.ndarray, rng: np.random.Generator) -> float:
    """Standard error of the Kish ESS per row, by resampling rows."""
    n = len(weights)
    rows = rng.multinomial(n, np.full(n, 1.0 / n), size=RESAMPLES)
    return float(((rows @ weights) ** 2 / (rows @ weights**2) / n).std())


def path_length(generator: Generator, seed: int) -> float:
    """Mean length of the paths along the field, summed over the steps, in nm or reduced units."""
    *start, flow = generator.transitions
    assert isinstance(flow, EulerFlow | RungeKuttaFlow)
    run, state = Run(make_rng(seed)), generator.base.sample(2000, make_rng(seed))
    with torch.no_grad():
        for transition in start:
            state, _ = transition(state, run)
        x, total = state[flow.name], 0.0
        for k in range(flow.n_steps):
            x, before = flow.move(x, k), x
            total = total + (x - before).flatten(1).norm(dim=1)
    return float(total.mean())


def distances(system: SystemFolder, ensembles: list[Ensemble], reference: Ensemble, n: int) -> dict[str, float]:
    """Of energies, and of the (phi, psi) where there are such, with the floor between two sets of frames."""
    order = np.random.default_rng(0).permutation(len(reference))
    one, two = (reference.select(np.sort(part)) for part in (order[:n], order[n : 2 * n]))
    model = ensembles[0].resample(n, seed=1)
    proposals = ensembles[0].select(np.sort(np.random.default_rng(1).choice(len(ensembles[0]), n, replace=False)))
    sides = {"": model, "_proposal": proposals, "_floor": two}
    found = {f"energy_w2{label}": energy_w2(side, one) for label, side in sides.items()}
    if system.temperature is not None:
        found |= {f"torsion_w2{label}": torsion_w2(side, one) for label, side in sides.items()}
    return found


def energy_w2(a: Ensemble, b: Ensemble) -> float:
    """W2 of reduced energies, over finite ones."""
    u, v = (np.sort(side.reduced_energies[np.isfinite(side.reduced_energies)]) for side in (a, b))
    q = (np.arange(1000) + 0.5) / 1000
    return float(np.sqrt(np.mean((np.quantile(u, q) - np.quantile(v, q)) ** 2)))


def torsion_w2(a: Ensemble, b: Ensemble) -> float:
    """W2 on the torus of all phi and psi, in radians, by exact assignment."""
    kinds = {"phi": mdtraj.geometry.indices_phi, "psi": mdtraj.geometry.indices_psi}
    names = [f"{kind}:{k + 1}" for kind, find in kinds.items() for k in range(len(find(a.topology).reshape(-1, 4)))]
    first, second = (np.stack([torsion(side, name) for name in names], 1) for side in (a, b))
    apart = np.remainder(first[:, None] - second[None] + np.pi, 2 * np.pi) - np.pi
    squared = (apart**2).sum(-1)
    rows, columns = linear_sum_assignment(squared)
    return float(np.sqrt(squared[rows, columns].mean()))


if __name__ == "__main__":
    main()
