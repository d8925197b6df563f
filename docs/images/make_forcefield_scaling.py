"""Draws docs/images/forcefield_scaling.png from benchmarks/results/forcefield_scaling.json.

python docs/images/make_forcefield_scaling.py [--results FILE] [--output FILE]
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "forcefield_scaling.json"
KINDS = ("compiled float64", "compiled float32", "eager float64")


def main() -> None:
    """Read, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("forcefield_scaling.png"))
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))["results"]
    systems = sorted((r for r in results.values() if isinstance(r, dict)), key=lambda r: r["atoms"])

    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for kind in KINDS:
        best = [(r["atoms"], max(_numbers(r["torch"][kind]).values(), default=None)) for r in systems]
        left.plot(*zip(*((n, 1e6 / rate) for n, rate in best if rate), strict=True), "o-", label=kind)
    # no line: force fields differ in which of their forces OpenMM evaluates slowly
    for platform, marker in (("Reference", "s"), ("CPU", "^")):
        times = [1e6 / r["one OpenMM Context, one thread"][platform] for r in systems]
        left.plot([r["atoms"] for r in systems], times, marker, label=f"OpenMM {platform}", color="0.5")
    left.set(xlabel="atoms", ylabel="µs for one energy and force", title="best batch", xscale="log", yscale="log")
    left.legend(frameon=False, fontsize=8)
    for name, r in sorted(
        ((n, r) for n, r in results.items() if isinstance(r, dict)), key=lambda item: item[1]["atoms"]
    ):
        rates = _numbers(r["torch"]["compiled float64"])
        label = f"{name.replace('_', ' ')} ({r['atoms']})"
        right.plot(list(rates), [1e6 / rate for rate in rates.values()], "o-", label=label, markersize=4)
    right.set(
        xlabel="batch", ylabel="µs for one energy and force", title="compiled, float64", xscale="log", yscale="log"
    )
    right.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(options.output, dpi=150)


def _numbers(row: dict[str, float | str]) -> dict[int, float]:
    """The points that were not skipped."""
    return {int(batch): rate for batch, rate in row.items() if not isinstance(rate, str)}


if __name__ == "__main__":
    main()
