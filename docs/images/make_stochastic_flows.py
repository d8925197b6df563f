"""Draws docs/images/stochastic_flows.png: pictures as densities, from a flow alone, with Metropolis steps, reweighted.

python docs/images/make_stochastic_flows.py [--runs runs/images] [--pictures face] [-n 500000]

The models are those that `python benchmarks/images.py` leaves in the run folders, of 10 affine couplings.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from boltzflow.systems import load_system

mpl.use("Agg")

import matplotlib.pyplot as plt

EXTENT, BINS = 3.0, 150
COLUMNS = (
    ("rnvp", False, "10 affine couplings (RNVP)"),
    ("rnvp_snf", False, "with 5 × 10 Metropolis steps"),
    ("rnvp_snf", True, "the same samples with weights"),
)


def exact_density(target) -> np.ndarray:
    """The density in the middle of every pixel."""
    middle = (torch.arange(BINS).double() + 0.5) / BINS * 2 * EXTENT - EXTENT
    u = target.reduced_energy(target.state(torch.cartesian_prod(middle, middle)))
    return torch.exp(-u).reshape(BINS, BINS).numpy()


def main() -> None:
    """Sample, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/images"))
    parser.add_argument("--pictures", nargs="+", default=["face"])
    parser.add_argument("-n", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("stochastic_flows.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)

    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
    rows = len(options.pictures)
    _, axes = plt.subplots(rows, 4, figsize=(12, 3.1 * rows + 0.3), squeeze=False, layout="constrained")
    edges = np.linspace(-EXTENT, EXTENT, BINS + 1)
    for row, name in zip(axes, options.pictures, strict=True):
        system = load_system(f"image_{name}")
        exact = exact_density(system.target)
        view = {"origin": "lower", "extent": (-EXTENT, EXTENT) * 2, "cmap": "magma", "vmin": 0, "vmax": exact.max()}
        row[0].imshow(exact.T, **view)
        row[0].set_title("exact density" if name == options.pictures[0] else "")
        for ax, (recipe, weighted, title) in zip(row[1:], COLUMNS, strict=True):
            checkpoint = options.runs / f"{system.name}-{recipe}-5" / "checkpoint.pt"
            generator = system.load_generator(checkpoint=checkpoint, dtype=torch.float64)
            with torch.no_grad():
                ensemble = generator.sample(options.n, system.target, seed=options.seed, batch_size=10_000)
            weights = ensemble.weights if weighted else np.full(len(ensemble), 1 / len(ensemble))
            density = np.histogram2d(*ensemble.samples["x"].T, bins=edges, weights=weights)[0]
            ax.imshow(density.T / np.diff(edges)[0] ** 2, **view)
            ax.set_title(title if name == options.pictures[0] else "")
            ax.set_xlabel(f"effective samples {100 * ensemble.ess_fraction():.0f} %" if weighted else "")
        for ax in row:
            ax.set(xticks=[], yticks=[])
    plt.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
