"""Tables of training from the energy alone beyond alanine dipeptide, for make_results.py."""

from collections.abc import Callable

__all__ = ["tables"]

_COMMAND = "python benchmarks/hexapeptide.py CHECKPOINT ... --reference reference.h5"
_PUBLISHED = "[arXiv:2510.18460](https://arxiv.org/abs/2510.18460): reported, not confirmed"

Table = Callable[[tuple[str, ...], list[tuple[str, ...]]], str]


def tables(
    load: Callable[[str], dict | None], table: Table, provenance: Callable[[str, str], str], missing: str
) -> dict[str, Callable[[], str]]:
    """The tables by their names, from what make_results.py gives."""

    def of(make: Callable[[dict, Table], str]) -> Callable[[], str]:
        return lambda: missing if (found := load("hexapeptide")) is None else make(found, table)

    return {
        "hexapeptide": of(_quality),
        "hexapeptide curve": of(_curve),
        "hexapeptide maps": of(_maps),
        "from hexapeptide": lambda: provenance("hexapeptide", _COMMAND),
    }


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.1f} %"


def _quality(found: dict, table: Table) -> str:
    """Quality of the last checkpoint beside published numbers."""
    r = found["results"]
    last, reference, missed = r["curve"][-1], r["reference"], r["missed"]
    ours = f"`{_COMMAND}`"
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
        ("literature: CMT", "29.6 %", _PUBLISHED),
        ("literature: TA-BG", "18.2 %", _PUBLISHED),
        ("literature: FAB", "14.6 %", _PUBLISHED),
    ]
    return table(("capped hexapeptide, from the energy alone", "value", "command or source"), rows)


def _curve(found: dict, table: Table) -> str:
    """Efficiency against what the training has cost."""
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


def _maps(found: dict, table: Table) -> str:
    """Ramachandran maps against parallel tempering."""
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
