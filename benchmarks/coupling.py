"""Couplings of a batch of LJ13 configurations with samples of the base: how close they come, and what they cost.

Pairs of `FlowMatching`: rows as they come, assigned by distance, matched in place, assigned and then matched, and by
`couple`, which assigns by the distances that are left after matching all pairs. Times are the shortest of the repeats,
in which the couplings take turns, and so is the time of all cores together, which other work on the machine disturbs
less.

    python benchmarks/coupling.py lj13.h5 [--batch 256] [--repeats 15] [--threads 2] [--output FILE]

The frames come from `boltzflow simulate systems/lj13/recipes/flow_matching.yaml -o lj13.h5`.
"""

import argparse
import time

import torch
from _record import record
from scipy.optimize import linear_sum_assignment

from boltzflow import Ensemble
from boltzflow.coordinates import couple, match
from boltzflow.run import make_rng

SCALE = 0.7  # of the base in the recipes of lj13


def assigned(x1: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    cost = torch.cdist(x0.flatten(1), x1.flatten(1)).square().numpy()
    return x1[torch.from_numpy(linear_sum_assignment(cost)[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frames = torch.from_numpy(Ensemble.load(options.frames).samples["positions"]).float()
    n = frames.shape[1]
    matching = {"permuted": [range(n)], "rotations": "all"}
    ways = {
        "independent": lambda x1, x0: x1,
        "optimal": assigned,
        "matched": lambda x1, x0: match(x1, x0, **matching),
        "optimal matched": lambda x1, x0: match(assigned(x1, x0), x0, **matching),
        "equivariant": lambda x1, x0: couple(x1, x0, **matching),
        "equivariant, 2 rounds for all pairs": lambda x1, x0: couple(x1, x0, rounds=2, **matching),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    lengths: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats + 1):
        rng = make_rng(repeat)
        x1 = frames[torch.randint(len(frames), (options.batch,), generator=rng)]
        x0 = SCALE * torch.randn(x1.shape, generator=rng)
        x0 = x0 - x0.mean(1, keepdim=True)
        for name, way in ways.items():
            started = time.perf_counter(), time.process_time()
            moved = way(x1, x0)
            times[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
            lengths[name].append(float((moved - x0).flatten(1).norm(dim=1).mean()))
    results = {
        name: {
            "milliseconds": 1e3 * min(wall for wall, _ in times[name][1:]),
            "cpu_milliseconds": 1e3 * min(cpu for _, cpu in times[name][1:]),
            "path_length": sum(lengths[name]) / len(lengths[name]),
        }
        for name in ways
    }
    for name, found in results.items():
        cost = f"{found['milliseconds']:8.2f} ms, {found['cpu_milliseconds']:8.2f} ms of cores"
        print(f"{name:36s} {cost}   path length {found['path_length']:.3f}")
    print(record("coupling", {"system": "lj13", "batch": options.batch, "couplings": results}, options.output))


if __name__ == "__main__":
    main()
