"""End to end on alanine dipeptide: weighted samples per second and reverse-KL steps per second of the shipped flow.

    python benchmarks/end_to_end.py [--threads 1 2]

The figures to beat are those of the closest existing package on a 2-core Xeon: 4 000 weighted samples/s, and 138 ms per
reverse-KL step of 256 samples.
"""

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from _record import record

from boltzflow.generators import build_generator
from boltzflow.io.config import ObjectiveConfig, TrainingConfig
from boltzflow.objectives import build_objective
from boltzflow.systems import load_system
from boltzflow.training import Trainer

EXISTING = {"samples_per_second": 4_000.0, "reverse_kl_steps_per_second": 1.0 / 0.138}
BATCH = 256


def samples_per_second(generator, target, *, n: int, repeats: int) -> float:
    """Median over runs of `Generator.sample`, weights, energies and Ensemble included."""
    rates = []
    for seed in range(repeats + 1):
        started = time.perf_counter()
        generator.sample(n, target, seed=seed, batch_size=1000)
        rates.append(n / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def steps_per_second(generator, target, *, repeats: int) -> float:
    """Median over blocks of ten optimisation steps of the reverse KL with `BATCH` samples."""
    config = TrainingConfig(steps=10**6, reverse_batch_size=BATCH, learning_rate=1e-6, seed=0)
    trainer = Trainer(build_objective(generator, target, ObjectiveConfig(likelihood=0.0, reverse_kl=1.0)), config)
    rates = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        for _ in range(10):
            trainer.train_step()
        rates.append(10 / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def measure(threads: int, *, n: int, repeats: int) -> dict:
    """Both rates on a number of threads; kernels keep the threads that they were compiled for, so once per process."""
    torch.set_num_threads(threads)
    system = load_system("alanine_dipeptide", dtype=torch.float32)
    generator = system.load_generator()
    trained = build_generator(system, system.recipe().generator)
    trained.load_state_dict(generator.state_dict())
    measured = {
        "samples_per_second": samples_per_second(generator, system.target, n=n, repeats=repeats),
        "reverse_kl_steps_per_second": steps_per_second(trained, system.target, repeats=repeats),
    }
    return {**measured, "ratio_to_existing": {name: value / EXISTING[name] for name, value in measured.items()}}


def main() -> None:
    """Measure at each number of threads and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("-n", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    results = {"existing": EXISTING, "reverse_kl_batch": BATCH}
    for threads in options.threads:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            found = process.submit(measure, threads, n=options.n, repeats=options.repeats).result()
        results[f"{threads} thread{'s' if threads > 1 else ''}"] = found
    path = record("end_to_end", results)
    for name, values in results.items():
        print(name, values)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
