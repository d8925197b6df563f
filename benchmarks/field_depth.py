"""What the depth and the width of a vector field buy: flow matching of LJ13, and the cost of exact Jacobians.

Every field is trained for as many steps on the same pairs, coupled once; its loss is that of the averaged parameters
on other pairs, with the same times for all. What is left at best is the spread of the pairs themselves, so that
differences count. Times are medians, of one thread.

    python benchmarks/field_depth.py lj13.h5 [--steps 200] [--batch 256] [--output FILE]

The frames come from `boltzflow simulate systems/lj13/recipes/flow_matching.yaml -o lj13.h5`.
"""

import argparse
import copy
import time

import torch
from _record import record

from boltzflow import Ensemble
from boltzflow.coordinates import couple
from boltzflow.generators.fields import build_field
from boltzflow.io.continuous_config import ContinuousConfig
from boltzflow.networks import VectorField
from boltzflow.run import make_rng
from boltzflow.training.schedule import warmup_cosine

SCALE, REACH = 0.7, 3.0  # of the base and the field in the recipes of lj13
FIELDS = {
    **{f"neighbour, {n} moves": {"field": "neighbour", "n_moves": n} for n in (1, 2, 3, 4)},
    "neighbour, 1 move, twice as wide": {"field": "neighbour", "hidden": 128, "n_features": 32},
    **{f"embedded, {n} moves": {"field": "embedded", "n_moves": n} for n in (1, 2)},
    **{f"egnn, {n} layers": {"field": "egnn", "n_layers": n, "hidden": 32} for n in (1, 2, 3)},
}
TRAIN, TEST, RATE, DECAY = 100, 10, 2e-3, 0.95
"""Batches of pairs to train and to test on, learning rate, and decay of the moving average."""


def main() -> None:
    """Couple, train every field, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames = torch.from_numpy(Ensemble.load(options.frames).samples["positions"]).float()
    pairs = coupled(frames, (TRAIN + TEST) * options.batch, options.batch)
    n_train = TRAIN * options.batch
    train, test = [x[:n_train] for x in pairs], [x[n_train:] for x in pairs]
    results = {}
    for name, sizes in FIELDS.items():
        settings = ContinuousConfig(**{"n_basis": 24, **sizes})
        field = build_field(settings, [0] * frames.shape[1], 3, reach=REACH, unit=SCALE, seed=0)
        n_parameters = sum(p.numel() for p in field.parameters())
        results[name] = {"parameters": n_parameters, **trained(field, train, test, options)}
        print(name, results[name], flush=True)
    found = {"system": "lj13", "steps": options.steps, "batch": options.batch, "fields": results}
    print(record("field_depth", found, options.output))


def coupled(frames: torch.Tensor, n: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of the base and frames, paired batch by batch."""
    rng, starts, ends = make_rng(1), [], []
    for _ in range(n // batch):
        x1 = frames[torch.randint(len(frames), (batch,), generator=rng)]
        x0 = SCALE * torch.randn(x1.shape, generator=rng)
        starts.append(x0 - x0.mean(1, keepdim=True))
        ends.append(couple(x1 - x1.mean(1, keepdim=True), starts[-1], permuted=[range(x1.shape[1])], rotations="all"))
    return torch.cat(starts), torch.cat(ends)


def loss(field: VectorField, x0: torch.Tensor, x1: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Of flow matching, per coordinate."""
    x = x0 + t[:, None, None] * (x1 - x0)
    return (field(x, t) - (x1 - x0)).square().mean()


def trained(field: VectorField, train: list, test: list, options: argparse.Namespace) -> dict[str, float]:
    """Losses and times of a field."""
    average, rng, seconds = copy.deepcopy(field), make_rng(2), []
    optimizer = torch.optim.AdamW(field.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    for k in range(options.steps):
        started = time.perf_counter()
        optimizer.param_groups[0]["lr"] = RATE * warmup_cosine(
            k, n_steps=options.steps, warmup_steps=50, final_fraction=0.0
        )
        rows = torch.randint(len(train[0]), (options.batch,), generator=rng)
        optimizer.zero_grad()
        loss(field, *(x[rows] for x in train), torch.rand(options.batch, generator=rng)).backward()
        optimizer.step()
        with torch.no_grad():
            for mean, p in zip(average.parameters(), field.parameters(), strict=True):
                mean.lerp_(p, 1.0 - min(DECAY, (k + 1) / (k + 10)))
        seconds.append(time.perf_counter() - started)
    times = torch.rand(len(test[0]), generator=make_rng(3))
    with torch.no_grad():
        parts = zip(*(x.split(options.batch) for x in (*test, times)), strict=True)
        losses = torch.stack([loss(average, *part) for part in parts])
    return {
        "loss": float(losses.mean()),
        "step_milliseconds": 1e3 * float(torch.tensor(seconds).median()),
        "jacobian_milliseconds": jacobian_time(average, test[1][:64]),
    }


def jacobian_time(field: VectorField, x: torch.Tensor) -> float:
    """Of velocity and Jacobian, per row."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        with torch.no_grad():
            field.velocity_and_jacobian(x, 0.5)
        seconds.append((time.perf_counter() - started) / len(x))
    return 1e3 * float(torch.tensor(seconds).median())


if __name__ == "__main__":
    main()
