"""Reverse-KL steps of the shipped flow on alanine dipeptide: plain, with fast path gradients, with those of two passes.

A step is loss and gradient, energies and forces of the molecule included, without the optimiser. All three take turns
in every repeat, so that other work on the machine disturbs them alike; reported are medians over the repeats. The
gradients of both kinds of path gradient are compared in float64 on the same noise.

    python benchmarks/path_gradients.py [--repeats 15] [--batch 256] [--threads 1] [--output FILE]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from _record import record
from torch.func import functional_call

from boltzflow.generators import Generator, build_generator
from boltzflow.objectives import ReverseKL, Step
from boltzflow.run import make_rng
from boltzflow.state import State
from boltzflow.systems import System, load_system
from boltzflow.targets import Target


class LogProb(torch.nn.Module):
    """`Generator.log_prob` as the forward of a module, to be called with fixed parameters."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, state: State) -> torch.Tensor:
        return self.generator.log_prob(state)


def two_pass_loss(generator: Generator, target: Target, rng: torch.Generator, *, batch: int) -> torch.Tensor:
    """mean(u + log q) with log q from an inverse pass at fixed parameters."""
    trajectory = generator.rollout(batch, target, rng)
    density = LogProb(generator)
    frozen = {name: p.detach() for name, p in density.named_parameters()}
    log_q = functional_call(density, frozen, (State(trajectory.end.fields, trajectory.end.spaces),))
    keep = trajectory.finite & torch.isfinite(log_q.detach())
    return torch.where(keep, trajectory.target_energy + log_q, 0.0).sum() / keep.sum()


def losses(generator: Generator, target: Target, *, batch: int) -> dict[str, Callable[[torch.Generator], torch.Tensor]]:
    """The three losses as functions of the random stream; energies are not compressed."""
    plain = ReverseKL(generator, target, energy_cut=1e30)
    fast = ReverseKL(generator, target, path_gradient=True, energy_cut=1e30)
    return {
        "plain": lambda rng: plain(Step(rng, n_samples=batch))[0],
        "fast path gradient": lambda rng: fast(Step(rng, n_samples=batch))[0],
        "two-pass path gradient": lambda rng: two_pass_loss(generator, target, rng, batch=batch),
    }


def trained(dtype: torch.dtype) -> tuple[System, Generator]:
    """The shipped parameters in a Generator whose parameters require gradients."""
    system = load_system("alanine_dipeptide", dtype=dtype)
    generator = build_generator(system, system.recipe().generator, dtype=dtype)
    generator.load_state_dict(system.load_generator().state_dict())
    return system, generator


def speed(*, batch: int, repeats: int, steps: int = 5) -> dict:
    """Median milliseconds of each step, and ratios to the plain one within each repeat."""
    system, generator = trained(torch.float32)
    ways = losses(generator, system.target, batch=batch)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, loss in ways.items():
            started = time.perf_counter()
            for k in range(steps):
                generator.zero_grad()
                loss(make_rng(repeat, k)).backward()
            times[name].append((time.perf_counter() - started) / steps)
    kept = {name: values[1:] for name, values in times.items()}
    return {
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in kept.items()},
        "ratio": {
            name: statistics.median(a / b for a, b in zip(values, kept["plain"], strict=True))
            for name, values in kept.items()
        },
    }


def agreement(*, batch: int) -> dict:
    """Largest difference of the two path gradients, relative to the largest entry, in float64."""
    system, generator = trained(torch.float64)
    gradients = {}
    for name, loss in losses(generator, system.target, batch=batch).items():
        found = torch.autograd.grad(loss(make_rng(0)), list(generator.parameters()))
        gradients[name] = torch.cat([g.flatten() for g in found])
    fast, slow = gradients["fast path gradient"], gradients["two-pass path gradient"]
    return {"largest difference, relative": float((fast - slow).abs().max() / slow.abs().max())}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {
        "batch": options.batch,
        **speed(batch=options.batch, repeats=options.repeats),
        "agreement in float64": agreement(batch=options.batch),
    }
    path = record("path_gradients", results, options.output)
    for name, values in results.items():
        print(name, values)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
