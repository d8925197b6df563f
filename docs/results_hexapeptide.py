"""The capped hexapeptide trained from the energy alone."""

from results_common import MISSING, load, table

__all__ = ["COMMAND", "hexapeptide", "hexapeptide_curve", "hexapeptide_maps"]

COMMAND = "python benchmarks/hexapeptide.py CHECKPOINT ... --reference reference.h5"
PUBLISHED = "[arXiv:2510.18460](https://arxiv.org/abs/2510.18460): reported, not confirmed"


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.1f} %"


def hexapeptide() -> str:
    """Quality of the last checkpoint beside published numbers."""
    found = load("hexapeptide")
    if found is None:
        return MISSING
    r = found["results"]
    last, reference, missed = r["curve"][-1], r["reference"], r["missed"]
    ours = f"`{COMMAND}`"
    energies, forces = (last[f"n_{kind}_training"] / 1e6 for kind in ("energy", "force"))
    forward = r["forward_ess_fraction"]
    rows = [
        (
            "effective sample size, reverse (Kish, nothing filtered)",
            f"**{_percent(r['ess_fraction'])}**, n = {r['n']}",
            ours,
        ),
        ("Pareto k-hat", f"{r['pareto_k']:.2f}", ours),
        (
            f"effective sample size, forward ({reference['n']} frames of parallel tempering)",
            "none" if forward is None else "< 10⁻⁶" if forward < 1e-6 else _percent(forward),
            ours,
        ),
        ("log Z (one labelling sector)", f"{r['log_z']:.2f} ± {r['log_z_error']:.2f}", ours),
        (
            "mean energy, reweighted; by parallel tempering",
            f"{r['mean_reduced_energy']:.1f} ± {r['mean_reduced_energy_error']:.1f}; "
            f"{reference['mean_reduced_energy']:.1f} ± {reference['mean_reduced_energy_error']:.1f} kT",
            ours,
        ),
        (
            f"log w − log Z of the reference, median: with a φ > 0 ({_percent(missed['share_phi_positive'])}); others",
            f"{missed['median_phi_positive']:.1f}; {missed['median_others']:.1f}",
            ours,
        ),
        (
            "evaluations from the untrained model",
            f"{energies:.1f}·10⁶ energies, {forces:.1f}·10⁶ of them with force",
            "`boltzflow.io.load_checkpoint(path).cost`",
        ),
        ("literature: CMT", "29.6 %", PUBLISHED),
        ("literature: TA-BG", "18.2 %", PUBLISHED),
        ("literature: FAB", "14.6 %", PUBLISHED),
    ]
    return table(("capped hexapeptide, from the energy alone", "value", "command or source"), rows)


def hexapeptide_curve() -> str:
    """Efficiency against what the training has cost."""
    found = load("hexapeptide")
    if found is None:
        return MISSING
    rows = [
        (
            f"{c['step']}",
            f"{c['n_energy_training'] / 1e6:.2f}·10⁶",
            f"{_percent(c['ess_fraction'])}, n = {c['n']}",
            f"{c['pareto_k']:.2f}",
        )
        for c in found["results"]["curve"]
    ]
    return table(("step of its stage", "energies spent", "ESS at 300 K", "k-hat"), rows)


def hexapeptide_maps() -> str:
    """Ramachandran maps against parallel tempering."""
    found = load("hexapeptide")
    if found is None:
        return MISSING
    rows = [
        (
            f"{m['residue']}",
            *(f"{m[key]:.3f}" for key in ("generated", "reweighted", "floor")),
            *(_percent(m["alpha_left"][key]) for key in ("generated", "reweighted", "reference")),
        )
        for m in found["results"]["ramachandran"]
    ]
    head = ("residue", "KL, generated", "KL, reweighted", "KL, halves of the reference")
    return table((*head, "αL, generated", "αL, reweighted", "αL, reference"), rows)
