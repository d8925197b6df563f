"""Weights of a continuous flow by dimension: full Jacobians, flow perturbation, Hutchinson, on the same random network.

The target is the density of the flow itself, so that exact weights are all 1 and what is left of n samples is what the
noise of a weight leaves. The network has one hidden layer and random weights, ∂v/∂x entries of 0.2/√d (rms): nothing
is trained. All but "exact, closed form" see it as a black box, through autograd. Seconds are of CPU time, one thread,
the shortest of the repeats; a step of the exact weights is timed once and counted n_steps times, as all cost the same.

    python benchmarks/flow_perturbation.py [--dimensions 10 50 200 525] [--output FILE]
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from _record import record

from boltzflow.networks import ShallowField, VectorField
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.transitions import ApproximateHutchinsonFlow, EulerFlow, PerturbedFlow

N_STEPS, HIDDEN, STRENGTH = 20, 256, 0.2


class BlackBox(VectorField):
    """The network without its closed forms; backwards in time, the explicit steps of the way back."""

    def __init__(self, field: VectorField, *, backwards: bool = False) -> None:
        super().__init__()
        self.field, self.backwards = field, backwards

    def forward(self, positions: torch.Tensor, t: float = 0.0) -> torch.Tensor:
        """The velocities."""
        return -self.field(positions, 1.0 - t) if self.backwards else self.field(positions, t)


def network(d: int) -> ShallowField:
    """Random weights, scaled to the wanted entries of the Jacobian."""
    field, rng = ShallowField(d, HIDDEN).double(), make_rng(1)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=rng)
    x = torch.randn(8, d, dtype=torch.float64, generator=rng)
    rms = field.jacobian(x, 0.5).square().mean().sqrt() * math.sqrt(d)
    field.last.weight.mul_(STRENGTH / rms)
    return field


def cpu_seconds(function: Callable[[], object], repeats: int) -> float:
    """Shortest CPU time of a call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def exact_log_det(field: ShallowField, end: torch.Tensor, flow: PerturbedFlow, space: Space) -> torch.Tensor:
    """log|det| of the very steps, from their end points."""
    total = torch.zeros(len(end), dtype=torch.float64)
    eye = torch.eye(end.shape[1], dtype=torch.float64)
    for k in reversed(range(N_STEPS)):
        total = total - torch.linalg.slogdet(eye - field.jacobian(end, (k + 1) / N_STEPS) / N_STEPS).logabsdet
        end = flow.back(end, k, space)
    return total


def spread(log_w: torch.Tensor) -> dict:
    """What n samples are worth, and the mean weight, which should be 1."""
    w = log_w.exp()
    return {
        "ess_fraction": float(w.sum().square() / (w.square().sum() * len(w))),
        "variance_log_w": float(log_w.var()),
        "mean_w": float(w.mean()),
        "mean_w_error": float(w.std() / math.sqrt(len(w))),
    }


@torch.no_grad()
def measured(d: int, *, batch: int, points: int, directions: int, repeats: int) -> dict:
    """All methods in d dimensions."""
    field, space = network(d), Space("line", (d,))
    x = torch.randn(points, d, dtype=torch.float64, generator=make_rng(2))
    start = State({"x": x[:1].repeat(batch, 1)}, {"x": space})
    box = BlackBox(field)
    noisy = {
        "FP++": PerturbedFlow(box, n_steps=N_STEPS, name="x"),
        "FP++, 4 directions": PerturbedFlow(box, n_steps=N_STEPS, n_directions=4, name="x"),
        "Hutchinson": ApproximateHutchinsonFlow(box, n_steps=N_STEPS, name="x"),
    }
    found = {}
    every = State({"x": x.repeat_interleave(directions, 0)}, {"x": space})
    end = noisy["FP++"](State({"x": x}, {"x": space}), Run(make_rng(3)))[0]["x"]
    exact = exact_log_det(field, end, noisy["FP++"], space).repeat_interleave(directions)
    for name, flow in noisy.items():
        flow(start, Run(make_rng(3)))
        seconds = cpu_seconds(lambda flow=flow: flow(start, Run(make_rng(3))), repeats) / batch
        found[name] = {"seconds": seconds, **spread(flow(every, Run(make_rng(4)))[1] - exact)}
    for name, back in (
        ("exact, autograd", BlackBox(field, backwards=True)),
        ("exact, closed form", field),
    ):
        flow = EulerFlow(back, n_steps=1, name="x")
        step = cpu_seconds(lambda flow=flow: flow(start, Run(make_rng(3))), repeats) / batch
        found[name] = {"seconds": N_STEPS * step, "ess_fraction": 1.0}
    for one in found.values():
        one["effective_per_second"] = one["ess_fraction"] / one["seconds"]
    return found


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[10, 20, 50, 100, 200, 525])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--directions", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {k: v for k, v in vars(arguments).items() if k not in ("dimensions", "output")}
    start, by_dimension = time.process_time(), {}
    for d in arguments.dimensions:
        by_dimension[str(d)] = measured(d, **settings)
        print(d, {k: f"{v['seconds']:.2e} s, ESS {v['ess_fraction']:.2f}" for k, v in by_dimension[str(d)].items()})
    results = {"n_steps": N_STEPS, "hidden": HIDDEN, "jacobian_rms_sqrt_d": STRENGTH, **settings}
    results |= {"cpu_seconds": time.process_time() - start, "dimensions": by_dimension}
    print(record("flow_perturbation", results, arguments.output))


if __name__ == "__main__":
    main()
