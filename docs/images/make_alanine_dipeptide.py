"""Draws docs/images/alanine_dipeptide.png: Ramachandran maps, the profile along phi, and energies of the shipped model.

python docs/images/make_alanine_dipeptide.py [-n 200000] [--checkpoint FILE]
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import torch

from boltzflow.analysis import delta_f, profile
from boltzflow.analysis.plots import energy_histogram, free_energy_profile, ramachandran
from boltzflow.analysis.states import parse_state
from boltzflow.systems import load_system

mpl.use("Agg")

import matplotlib.pyplot as plt

ALPHA_L = "0:130"


def main() -> None:
    """Sample, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--checkpoint", help="another checkpoint than the shipped one")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("alanine_dipeptide.png"))
    options = parser.parse_args()

    system = load_system("alanine_dipeptide", dtype=torch.float32)
    ensemble = system.load_generator(checkpoint=options.checkpoint).sample(options.n, system.target, seed=options.seed)
    reference = system.reference()
    published = json.loads((system.data_folder / "reference.json").read_text())["delta_f_alpha_l"]
    state = parse_state(ALPHA_L, degrees=True)

    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"})
    figure = plt.figure(figsize=(12, 7.2), layout="constrained")
    maps, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))

    axes = maps.subplots(1, 3, sharey=True)
    shown = [
        (ensemble, False, f"generated: {len(ensemble):,} independent samples"),
        (ensemble, True, f"reweighted: effective samples {100 * ensemble.ess_fraction():.0f} %"),
        (reference, True, f"reference: {len(reference):,} frames, parallel tempering"),
    ]
    for ax, (one, weighted, title) in zip(axes, shown, strict=True):
        ramachandran(one, ax=ax, weighted=weighted, bins=48).set_title(title)
        ax.collections[0].colorbar.remove()
        # single frames lie above
        ax.collections[0].set_clim(0, 9)
        ax.label_outer()
    maps.colorbar(axes[-1].collections[0], ax=axes, label="free energy / kT", shrink=0.9)

    left, right = below.subplots(1, 2, width_ratios=(1.6, 1))
    for one, label in ((ensemble, "reweighted"), (reference, "reference")):
        free_energy_profile(profile(one, "phi", bins=45), ax=left, label=label)
    left.axvspan(*(float(end) for end in ALPHA_L.split(":")), color="0.5", alpha=0.12, lw=0)
    left.text(65, 11.2, "αL", ha="center", color="0.35")
    left.set(xlim=(-180, 180), ylim=(0, 12), xticks=range(-180, 181, 60))
    found = delta_f(ensemble, "phi", states=[state])
    left.set_title(
        f"profile along phi;  F(αL) − F(rest) = {found.value:.2f} ± {found.error:.2f} kT, "
        f"reference {published['value']:.2f} ± {published['error']:.2f} kT"
    )
    left.legend(title="band: ± 1.96 standard errors", loc="lower right", bbox_to_anchor=(0.93, 0.05))
    energy_histogram(ensemble, reference, ax=right).set_title("reduced energy")

    figure.savefig(options.output, dpi=120)


if __name__ == "__main__":
    main()
