"""Quality of the shipped alanine-dipeptide checkpoint: reverse and forward ESS, EUBO − ELBO, and the free energy of αL.

    python benchmarks/alanine_dipeptide.py [-n 200000] [--threads 2] [--seed 2026]
    python benchmarks/alanine_dipeptide.py --recipe energy_only -n 1000000

Everything comes from one checkpoint; the reference is the parallel-tempering ensemble in data/, whose seed was never
used in training.
"""

import argparse
import json

import torch
from _record import record

from boltzflow.analysis import delta_f, summary
from boltzflow.io import load_checkpoint
from boltzflow.run import Ledger
from boltzflow.systems import System, load_system
from boltzflow.workflow import path_log_weights

ALPHA_L = (0.0, 130.0)


def main() -> None:
    """Sample, trace the reference back, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--recipe", help="of the shipped checkpoint; by default that of the system's default recipe")
    parser.add_argument("--checkpoint", help="another checkpoint than the shipped ones")
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    system = load_system("alanine_dipeptide", dtype=torch.float32)
    path = options.checkpoint or system.find_checkpoint(options.recipe)
    checkpoint = load_checkpoint(path, system)
    generator = system.generator_from(checkpoint)
    reference = system.reference()
    ensemble = generator.sample(options.n, system.target, seed=options.seed)
    log_weights = path_log_weights(generator, reference, system.target)
    found = summary(ensemble, reference, path_log_weights=log_weights)

    low, high = (angle * torch.pi / 180 for angle in ALPHA_L)
    model = delta_f(ensemble, "phi", states=[(low, high)])
    published = json.loads((system.data_folder / "reference.json").read_text())
    expected = published["delta_f_alpha_l"]
    combined = (model.error**2 + expected["error"] ** 2) ** 0.5
    ledger = Ledger.from_dict(checkpoint.cost["ledger"])
    result = {
        **found,
        "n_energy_training": ledger.n_energy(),
        "n_force_training": ledger.n_force(),
        "seconds_training": checkpoint.cost["seconds"],
        "steps_training": checkpoint.cost["step"],
        "delta_f_alpha_l": {"value": model.value, "error": model.error, "unit": "kT", "method": model.method},
        "delta_f_alpha_l_reference": expected,
        "delta_f_alpha_l_z": (model.value - expected["value"]) / combined,
        "floors": {
            "ess_fraction >= 0.60": found["ess_fraction"] >= 0.60,
            "pareto_k < 0.7": found["pareto_k"] < 0.7,
            "forward_ess_fraction >= 0.50": found["forward_ess_fraction"] >= 0.50,
            "eubo - elbo <= 1.0": found["eubo_minus_elbo"] <= 1.0,
            "error of delta_f <= 0.12 kT": model.error <= 0.12,
            "delta_f within two combined errors": abs(model.value - expected["value"]) <= 2 * combined,
        },
    }
    if options.recipe is not None:
        result |= _against_default(system, result)
    name = "alanine_dipeptide" if options.recipe is None else f"alanine_dipeptide_{options.recipe}"
    path = record(name, result, options.output)
    print(json.dumps(result, indent=2))
    print(f"written to {path}")


def _against_default(system: System, result: dict) -> dict:
    """The log Z beside that of the default recipe's checkpoint, from samples of other seeds."""
    ensemble = system.load_generator().sample(200_000, system.target, seed=result["seed"] + 1)
    other = ensemble.log_z()
    combined = (result["log_z_error"] ** 2 + other.error**2) ** 0.5
    return {
        "log_z_of_default": {"value": other.value, "error": other.error, "n": len(ensemble)},
        "log_z_z": (result["log_z"] - other.value) / combined,
    }


if __name__ == "__main__":
    main()
