"""Flow matching of DW4 by different pairs, and fine-tuning of the last field, at equal numbers of steps.

Every field is trained from the same weights on the same frames; efficiencies are Kish's of 10 000 samples, unfiltered.
Fine-tuning starts from the field of equivariant pairs: likelihood, likelihood with forces, and path gradients of the
model's own samples. Times are CPU time of one thread.

    python benchmarks/flow_matching.py dw4.h5 [--steps 2000] [--tuning 150] [--output FILE]

The frames come from `boltzflow simulate systems/dw4/recipes/flow_matching.yaml -o dw4.h5`.
"""

import argparse
import copy
import time

import torch
from _record import record

from boltzflow import Ensemble
from boltzflow.generators import Generator, build_generator
from boltzflow.io.config import TrainingConfig, parse_config
from boltzflow.objectives import FlowMatching, ForceLikelihood, MaximumLikelihood, Objective, PathKL
from boltzflow.systems import load_system
from boltzflow.training import Trainer
from boltzflow.transitions import RungeKuttaFlow
from boltzflow.workflow import training_data

CONTINUOUS = {"field": "embedded", "base_scale": 1.85, "n_steps": 10, "hidden": 32, "n_features": 16, "n_basis": 32}
PAIRS = {
    "independent": {},
    "matched": {"pairs": "matched"},
    "matched, entropy 0.2": {"pairs": "matched", "entropy": 0.2},
    "optimal matched": {"pairs": "optimal matched"},
    "equivariant": {"pairs": "equivariant"},
}


def trained(objective: Objective, data, *, steps: int, batch_size: int, learning_rate: float) -> float:
    """CPU seconds of the training."""
    config = TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        reverse_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=steps // 20,
        ema_decay=0.9,
        seed=1,
        dtype="float64",
    )
    started = time.process_time()
    Trainer(objective, config, data=data).run(progress=False)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--tuning", type=int, default=150)
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    system = load_system("dw4", dtype=torch.float64)
    config = parse_config({"system": "dw4", "generator": {"family": "continuous_flow", "continuous": CONTINUOUS}})
    data = training_data(Ensemble.load(options.frames), system, dtype=torch.float64)

    def efficiency(generator: Generator) -> float:
        return generator.sample(10_000, system.target, seed=1).ess_fraction()

    results: dict[str, dict[str, float]] = {}
    for name, settings in PAIRS.items():
        generator = build_generator(system, config.generator, dtype=torch.float64)
        seconds = trained(
            FlowMatching(generator, **settings), data, steps=options.steps, batch_size=256, learning_rate=2e-3
        )
        fine = RungeKuttaFlow(generator.transitions[0].field, n_steps=10, method="rk4")
        results[name] = {
            "seconds": seconds,
            "ess_fraction": efficiency(generator),
            "ess_fraction_rk4": efficiency(Generator(generator.base, [fine])),
        }
        print(name, results[name], flush=True)
    start = copy.deepcopy(generator.state_dict())
    ways = {
        "likelihood": lambda: MaximumLikelihood(generator),
        "force_likelihood": lambda: ForceLikelihood(generator, system.target),
        "path_forward_kl": lambda: PathKL(generator, system.target),
    }
    tuned: dict[str, dict[str, float]] = {}
    for name, objective in ways.items():
        generator.load_state_dict(start)
        seconds = trained(objective(), data, steps=options.tuning, batch_size=128, learning_rate=1e-3)
        tuned[name] = {"seconds": seconds, "ess_fraction": efficiency(generator)}
        print(name, tuned[name], flush=True)
    found = {"system": "dw4", "steps": options.steps, "tuning": options.tuning, "pairs": results, "tuned": tuned}
    print(record("flow_matching", found, options.output))


if __name__ == "__main__":
    main()
