"""An autoregressive flow of a molecule after training: weights of its samples, and what these samples are.

ESS is Kish's, of all rows. RUN is the folder of `boltzflow train`; what was measured is the small run of the recipe's
header, which shows how far a few thousand steps on a CPU lead. The size of the recipe itself is for a GPU.

    python benchmarks/autoregressive_flow.py RUN [-n 10000] [--output FILE]
"""

import argparse
from pathlib import Path

import torch
from _record import record

from boltzflow.io import load_checkpoint
from boltzflow.systems import load_system


def main() -> None:
    """Sample, weigh and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(arguments.run / "checkpoint.pt")
    system = load_system(checkpoint.config.system)
    generator = system.generator_from(load_checkpoint(arguments.run / "checkpoint.pt", system))
    ensemble = generator.sample(arguments.n, system.target, seed=2, batch_size=500)
    positions = ensemble.to_state(dtype=torch.float64)["positions"]
    with torch.no_grad():
        inside = system.target.in_sector(positions)
    energies = torch.from_numpy(ensemble.reduced_energies)[inside]
    results = {
        "system": system.name,
        "sizes": checkpoint.config.generator.autoregressive.model_dump(),
        "n_parameters": sum(p.numel() for p in generator.parameters()),
        "training": {
            "steps": checkpoint.cost["step"],
            "batch_size": checkpoint.config.training.batch_size,
            "seconds": checkpoint.cost["seconds"],
        },
        "n": len(ensemble),
        "ess": ensemble.ess(),
        "pareto_k": ensemble.pareto_k(),
        "n_nonfinite": ensemble.provenance.n_nonfinite,
        "n_failed": ensemble.provenance.n_failed,
        "share_in_sector": float(inside.double().mean()),
        "median_reduced_energy_in_sector": float(energies.median()),
        "lowest_reduced_energy": float(energies.min()),
        "sampling_seconds": ensemble.provenance.seconds,
    }
    print(record("autoregressive_flow", results, arguments.output))


if __name__ == "__main__":
    main()
