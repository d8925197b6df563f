"""Spline coupling flows side by side: density, sampling and training step of boltzflow, zuko, normflows and nflows.

All have 60 dimensions on the line, 8 couplings with 2×128 SiLU conditioners and 8 bins, the same masks and the same
standard normal base, in float32 on one thread. Every repeat runs every method once, so that other work on the machine
disturbs all of them alike; reported are medians of samples per second.

    python benchmarks/flows.py [--repeats 9] [--batch 1024] [--threads 1] [--output FILE]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import nflows.distributions
import nflows.flows
import nflows.transforms
import normflows
import torch
import zuko
from _record import record
from torch import Tensor

from boltzflow.networks import MLP
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.transitions import compiled
from boltzflow.transitions.coupling import SplineCoupling, alternating_masks

DIMS, COUPLINGS, HIDDEN, BINS, BOUND = 60, 8, (128, 128), 8, 5.0
MASKS = alternating_masks(["line"] * DIMS, COUPLINGS, make_rng(0))


class Ours(torch.nn.Module):
    """A chain of couplings, base to data."""

    def __init__(self) -> None:
        super().__init__()
        self.couplings = torch.nn.ModuleList(
            SplineCoupling(["line"] * DIMS, mask, bins=BINS, hidden=HIDDEN, bound=BOUND) for mask in MASKS
        )
        self.run = Run(make_rng(1))

    def log_prob(self, x: Tensor) -> Tensor:
        state, total = State({"q": x}, {"q": Space("line", (DIMS,))}), 0.0
        for coupling in reversed(self.couplings):
            state, log_ratio = coupling.reverse(state, self.run)
            total = total + log_ratio
        return total - 0.5 * (state["q"] ** 2).sum(1) - 0.5 * DIMS * math.log(2 * math.pi)

    def sample(self, n: int) -> Tensor:
        state = State({"q": torch.randn(n, DIMS, generator=self.run.rng)}, {"q": Space("line", (DIMS,))})
        for coupling in self.couplings:
            state, _ = coupling(state, self.run)
        return state["q"]

    def conditioners(self, x: Tensor) -> None:
        rows = x.t().contiguous()
        for coupling in self.couplings:
            coupling.conditioner(rows, self.run)


class Zuko(torch.nn.Module):
    """zuko's general coupling transforms with its rational-quadratic spline."""

    def __init__(self) -> None:
        super().__init__()
        base = zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal, torch.zeros(DIMS), torch.ones(DIMS), buffer=True
        )
        transforms = [
            zuko.flows.GeneralCouplingTransform(
                DIMS,
                mask=~mask,
                univariate=lambda *phi: zuko.transforms.MonotonicRQSTransform(*phi, bound=BOUND),
                shapes=[(BINS,), (BINS,), (BINS - 1,)],
                hidden_features=HIDDEN,
                activation=torch.nn.SiLU,
            )
            for mask in reversed(MASKS)
        ]
        self.flow = zuko.flows.Flow(transforms, base)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow().log_prob(x)

    def sample(self, n: int) -> Tensor:
        return self.flow().sample((n,))


class Conditioner(MLP):
    """The same network behind the call signature of nflows and normflows."""

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


def conditioner(n_in: int, n_out: int) -> Conditioner:
    return Conditioner(n_in, n_out, hidden=HIDDEN)


class Nflows(torch.nn.Module):
    """nflows' piecewise rational-quadratic couplings."""

    def __init__(self) -> None:
        super().__init__()
        coupling = nflows.transforms.PiecewiseRationalQuadraticCouplingTransform
        self.flow = nflows.flows.Flow(
            nflows.transforms.CompositeTransform(
                [
                    coupling(mask.long(), conditioner, num_bins=BINS, tails="linear", tail_bound=BOUND)
                    for mask in reversed(MASKS)
                ]
            ),
            nflows.distributions.StandardNormal([DIMS]),
        )

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def sample(self, n: int) -> Tensor:
        return self.flow.sample(n)


class NormflowsCoupling(normflows.flows.Flow):
    """normflows' spline coupling with the given mask and conditioner; its public wrapper fixes both."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        coupling = normflows.flows.neural_spline.coupling.PiecewiseRationalQuadraticCoupling
        self.transform = coupling(mask.long(), conditioner, num_bins=BINS, tails="linear", tail_bound=BOUND)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(z)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(x)


class Normflows(torch.nn.Module):
    """normflows' chain of such couplings."""

    def __init__(self) -> None:
        super().__init__()
        base = normflows.distributions.DiagGaussian(DIMS, trainable=False)
        self.flow = normflows.NormalizingFlow(base, [NormflowsCoupling(mask) for mask in MASKS])

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def sample(self, n: int) -> Tensor:
        return self.flow.sample(n)[0]


def jobs(flow: torch.nn.Module, x: Tensor) -> dict[str, Callable[[], None]]:
    """What is timed: density, sampling, and one likelihood step without the optimiser."""

    def density() -> None:
        with torch.no_grad():
            flow.log_prob(x)

    def sampling() -> None:
        with torch.no_grad():
            flow.sample(len(x))

    def training() -> None:
        flow.zero_grad(set_to_none=True)
        (-flow.log_prob(x).mean()).backward()

    return {"density": density, "sampling": sampling, "training": training}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default=None, help="JSON file; default benchmarks/results/flows.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(options.batch, DIMS)
    ours = Ours()
    for p in ours.parameters():  # away from the identity, like the default initialisation of the others
        torch.nn.init.normal_(p, std=0.5 / p.shape[-1] ** 0.5)
    flows = {"boltzflow": ours, "zuko": Zuko(), "normflows": Normflows(), "nflows": Nflows()}
    table = {name: jobs(flow, x) for name, flow in flows.items()}
    table["boltzflow, eager"] = {job: eagerly(run) for job, run in table["boltzflow"].items()}
    table["boltzflow, conditioners alone"] = {"density": torch.no_grad()(lambda: ours.conditioners(x))}

    compile_seconds = {}
    for name, methods in table.items():
        for job, run in methods.items():
            start = time.perf_counter()
            run()
            if name == "boltzflow":
                compile_seconds[job] = round(time.perf_counter() - start, 2)
    seconds: dict[tuple[str, str], list[float]] = {(name, job): [] for name in table for job in table[name]}
    for _ in range(options.repeats):
        for name, job in seconds:
            start = time.perf_counter()
            table[name][job]()
            seconds[name, job].append(time.perf_counter() - start)

    rates: dict[str, dict[str, float]] = {name: {} for name in table}
    for (name, job), times in seconds.items():
        rates[name][job] = round(options.batch / statistics.median(times), 1)
    others = ("zuko", "normflows", "nflows")
    speedup = {
        job: round(rates["boltzflow"][job] / max(rates[name][job] for name in others), 2) for job in rates["boltzflow"]
    }
    results = {
        "sizes": {
            "dims": DIMS,
            "couplings": COUPLINGS,
            "hidden": HIDDEN,
            "bins": BINS,
            "batch": options.batch,
            "repeats": options.repeats,
        },
        "samples_per_second": rates,
        "speedup_over_fastest_other": speedup,
        "first_call_seconds": compile_seconds,
    }
    path = record("flows", results, options.output)
    for name, row in rates.items():
        print(f"{name:32s}" + "".join(f"{job} {rate:9.0f}   " for job, rate in row.items()))
    print(f"speed-up over the fastest other: {speedup}\nwritten to {path}")


def eagerly(run: Callable[[], None]) -> Callable[[], None]:
    """The same without compiled kernels."""

    def call() -> None:
        compiled.compiler.off, before = True, compiled.compiler.off
        run()
        compiled.compiler.off = before

    return call


if __name__ == "__main__":
    main()
