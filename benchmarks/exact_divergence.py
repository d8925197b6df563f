"""Exact divergences of vector fields: what a field does by itself, against the trace of a vmap-Jacobian and of a loop.

All methods see the same network with the same random weights and the same positions, in float64. "own" is
`VectorField.divergence` as the field defines it: D backward passes for `HollowField`, closed forms for `PairField` and
`EmbeddedField`, one backward pass per coordinate for all others. "vmap" is the trace of the Jacobian by
`torch.func.jacrev` under `torch.func.vmap`; where torch-geometric sums in place, which vmap refuses, the batch stays
and only the backward passes go through vmap. Seconds are of CPU time, one thread, one call after a smaller one to warm
up.

    python benchmarks/exact_divergence.py [--sizes 13 22 55] [--output FILE]
"""

import argparse
import time
from collections.abc import Callable

import torch
from _record import record

from boltzflow.networks import EGNNField, EmbeddedField, HollowField, NeighbourField, PaiNNField, PairField, VectorField
from boltzflow.run import make_rng

HIDDEN, REACH, T = 64, 5.0, 0.5
BATCHES = {13: (64, 8), 22: (32, 4), 55: (8, 1)}
"""Rows for what is cheap and for what takes a Jacobian, by number of particles."""
CHUNK = 39
"""Rows of a Jacobian that go through vmap at once."""


def fields(n: int) -> dict[str, VectorField]:
    """Every field with random weights that make all of its parts count."""
    types = [0] * n
    made = {
        "pair": PairField(types, 3, reach=REACH, n_basis=32, n_times=6),
        "embedded": EmbeddedField(types, 3, reach=REACH, hidden=HIDDEN),
        "neighbour": NeighbourField(types, 3, reach=REACH, hidden=HIDDEN),
        "hollow": HollowField(types, 3, n_layers=2, hidden=HIDDEN, reach=REACH),
        "painn": PaiNNField(types, 3, n_layers=3, hidden=HIDDEN, reach=REACH),
        "egnn": EGNNField(types, 3, n_layers=5, hidden=HIDDEN),
    }
    rng = make_rng(1)
    for field in made.values():
        for parameter in field.double().parameters():
            # layers that start at zero would leave nothing to compare
            if parameter.ndim < 2 or parameter.std() < 1e-3:
                torch.nn.init.normal_(parameter, std=0.1, generator=rng)
    return made


def by_vmap(field: VectorField, x: torch.Tensor) -> torch.Tensor:
    """The trace of the Jacobian that `jacrev` makes of single rows under `vmap`."""
    jacobian = torch.func.jacrev(lambda one: field(one[None], T)[0].flatten(), chunk_size=CHUNK)
    found = torch.func.vmap(jacobian)(x).flatten(2)
    return found.diagonal(dim1=1, dim2=2).sum(1)


def by_vmap_of_passes(field: VectorField, x: torch.Tensor) -> torch.Tensor:
    """The same with the batch as it is, and only the backward passes under `vmap`."""
    _, back = torch.func.vjp(lambda y: field(y, T).flatten(1), x)
    eye = torch.eye(x[0].numel(), dtype=x.dtype)
    rows = torch.func.vmap(lambda row: back(row.expand(len(x), -1))[0], chunk_size=CHUNK)(eye)
    return rows.flatten(2).diagonal(dim1=0, dim2=2).sum(1)


def by_loop(field: VectorField, x: torch.Tensor) -> torch.Tensor:
    """The trace by one backward pass per coordinate."""
    return VectorField.jacobian(field, x, T).diagonal(dim1=1, dim2=2).sum(1)


def cpu_seconds(function: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """CPU time of a call, and what it returned."""
    start = time.process_time()
    found = function()
    return time.process_time() - start, found


@torch.no_grad()
def measured(n: int) -> dict:
    """All fields and methods of n particles."""
    x = REACH / 3.0 * torch.randn(BATCHES[n][0], n, 3, dtype=torch.float64, generator=make_rng(2))
    found = {}
    for name, field in fields(n).items():
        few = x[: BATCHES[n][1]]
        is_cheap = type(field).divergence is not VectorField.divergence or name in ("embedded", "neighbour")
        jacobians = by_vmap_of_passes if name in ("egnn", "painn") else by_vmap
        methods = {
            "forward": (x, lambda rows, field=field: field(rows, T)),
            "own": (x if is_cheap else few, lambda rows, field=field: field.divergence(rows, T)),
            "vmap": (few, lambda rows, field=field, way=jacobians: way(field, rows)),
        }
        if is_cheap:
            methods["loop"] = (few, lambda rows, field=field: by_loop(field, rows))
        one = {"parameters": sum(p.numel() for p in field.parameters())}
        results = {}
        for method, (rows, work) in methods.items():
            if len(rows) > 1:
                work(rows[:1])
            seconds, results[method] = cpu_seconds(lambda work=work, rows=rows: work(rows))
            one[method] = {"per_second": len(rows) / seconds, "rows": len(rows)}
        scale = 1.0 + results["vmap"].abs().max()
        one["largest_difference"] = float((results["own"][: len(few)] - results["vmap"]).abs().max() / scale)
        one["gain"] = one["own"]["per_second"] / one["vmap"]["per_second"]
        found[name] = one
        print(n, name, {k: f"{v['per_second']:.3g}/s" for k, v in one.items() if isinstance(v, dict)}, one["gain"])
    return found


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=sorted(BATCHES), choices=sorted(BATCHES))
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    sizes = {str(n): measured(n) for n in arguments.sizes}
    settings = {"hidden": HIDDEN, "reach": REACH, "chunk": CHUNK}
    results = {**settings, "cpu_seconds": time.process_time() - start, "sizes": sizes}
    print(record("exact_divergence", results, arguments.output))


if __name__ == "__main__":
    main()
