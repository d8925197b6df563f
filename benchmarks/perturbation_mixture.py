"""The two wells of the flow-perturbation papers in 10 and 1000 dimensions, by FP++ and sequential Monte Carlo."""

import argparse
import time
from pathlib import Path

import torch

from boltzflow.generators import Generator
from boltzflow.networks import ShallowField
from boltzflow.objectives import FlowMatching, Step
from boltzflow.run import make_rng
from boltzflow.targets import CorrelatedMixture, Gaussian, perturbation_wells
from boltzflow.training import ExponentialMovingAverage
from boltzflow.transitions import PerturbedFlow

SCALE, N_STEPS = 0.45, 20
HIDDEN = {10: 50, 1000: 2000}
LEARNING_RATE, WARMUP = {10: 5e-3, 1000: 2e-3}, 100


def trained(d: int, target: CorrelatedMixture, folder: Path, *, steps: int, batch: int) -> dict:
    """The field after flow matching on fresh exact samples, in float32, and what it cost; kept in the folder."""
    path = folder / f"field-{d}.pt"
    if path.is_file():
        return torch.load(path, weights_only=True)
    torch.manual_seed(1)
    flow = PerturbedFlow(ShallowField(d, HIDDEN[d]), n_steps=N_STEPS, name="x")
    objective = FlowMatching(Generator(Gaussian(d, scale=SCALE), [flow]))
    optimizer = torch.optim.Adam(flow.parameters(), lr=LEARNING_RATE[d], betas=(0.9, 0.99))
    ramps = (
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, WARMUP),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - WARMUP, 0.01 * LEARNING_RATE[d]),
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, list(ramps), [WARMUP])
    average, started, losses = ExponentialMovingAverage(flow, decay=0.998), time.process_time(), []
    for k in range(steps):
        loss, _ = objective(Step(make_rng(2, k), data=target.sample(batch, make_rng(1, k)), index=k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update()
        losses.append(loss.detach())
        if (k + 1) % 250 == 0:
            print(f"d = {d}, step {k + 1}: loss {torch.stack(losses[-250:]).mean():.5f}", flush=True)
    found = {
        "field": {name.removeprefix("field."): value for name, value in average.shadow.items()},
        "cpu_seconds": time.process_time() - started,
        "steps": steps,
        "batch": batch,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    return found


def main() -> None:
    """Train, sample and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--runs", type=Path, default=Path("runs/perturbation_mixture"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for d in arguments.dimensions:
        target = perturbation_wells(d)
        trained(d, target, arguments.runs, steps={10: 4000, 1000: 6000}[d], batch=256)


if __name__ == "__main__":
    main()
