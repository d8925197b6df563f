"""The HTML report of 20 000 samples of alanine dipeptide: seconds on one core, and size.

    python benchmarks/report.py [-n 20000] [--repeats 3]

Measured are `boltzflow.analysis.report` alone, and the whole command `boltzflow report` in a new process, which also
imports, reads the file and traces the shipped reference back through the generator.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _record import best_seconds, record

from boltzflow.analysis import report
from boltzflow.systems import load_system

LIMITS = {"seconds": 20.0, "megabytes": 5.0}


def _children() -> float:
    """Processor seconds of all processes that were started and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    system = load_system("alanine_dipeptide")
    generator, reference = system.load_generator(), system.reference()
    with tempfile.TemporaryDirectory() as folder:
        file, page = Path(folder, "ensemble.h5"), Path(folder, "report.html")
        sample = [sys.executable, "-m", "boltzflow", "sample", system.name, "-n", str(options.n), "-o", str(file)]
        subprocess.run([*sample, "--seed", "0"], check=True, capture_output=True)
        ensemble = generator.sample(options.n, system.target, seed=0)
        alone = best_seconds(lambda: report(ensemble, page, reference=reference), repeats=options.repeats)
        whole, processor = [], []
        for _ in range(options.repeats):
            started, used = time.perf_counter(), _children()
            command = [sys.executable, "-m", "boltzflow", "report", str(file), "-o", str(page)]
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            whole.append(time.perf_counter() - started)
            processor.append(_children() - used)
        size = page.stat().st_size / 1e6
    results = {
        "n": options.n,
        "n_reference": len(reference),
        "seconds_of_the_function": alone,
        "seconds_of_the_command": min(whole),
        "processor_seconds_of_the_command": min(processor),
        "megabytes": size,
        "limits": LIMITS,
    }
    path = record("report", results)
    for name, value in results.items():
        print(name, value)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
