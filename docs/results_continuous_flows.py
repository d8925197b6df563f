"""Tables of the continuous flows that ship: effective samples and distances, beside reported numbers."""

from results_common import MISSING, Row, load, number, pm, table

__all__ = [
    "COMMAND",
    "COOLED_COMMAND",
    "continuous_flows",
    "continuous_flows_distances",
    "continuous_flows_published",
    "cooled_flow",
]

COMMAND = "python benchmarks/continuous_flows.py"
COOLED_COMMAND = (
    "python benchmarks/cooled_flow.py --flow flow.h5 --cooled cooled_1.h5 cooled_2.h5 --normal normal.h5 --smc smc.h5"
)
NAMES = {
    "dw4": "DW4",
    "lj13": "LJ13",
    "lj55": "LJ55",
    "alanine_dipeptide_ff99sbildn": "alanine dipeptide, Cartesian",
    "trialanine": "trialanine, Cartesian",
    "ace_aaa_nme": "Ace-AAA-Nme, Cartesian",
}
KLEIN = "[arXiv:2306.15030](https://arxiv.org/abs/2306.15030): reported, not confirmed"
# system, method, ESS %, where it is from
PUBLISHED = (
    ("dw4", "equivariant OT flow matching; OT; likelihood", "88.7; 92.4; 86.9", KLEIN),
    ("lj13", "equivariant OT flow matching; OT; likelihood", "57.6; 54.4; 39.8", KLEIN),
    ("lj55", "equivariant OT flow matching; OT", "4.4; 3.7", KLEIN),
    ("alanine_dipeptide_ff99sbildn", "ECNF++; ECNF", "27.5; 11.9", "reported, not confirmed"),
    ("alanine_dipeptide_ff99sbildn", "FALCON-A; FALCON", "9.7; 6.7", "reported, not confirmed"),
    (
        "alanine_dipeptide_ff99sbildn",
        "SBG, the largest 0.2 % of weights left out",
        "3.0",
        "[arXiv:2502.18462](https://arxiv.org/abs/2502.18462): reported, not confirmed",
    ),
    ("trialanine", "as published, nothing filtered", "0.3", "reported, not confirmed"),
    ("ace_aaa_nme", "as published, nothing filtered", "1.6", "reported, not confirmed"),
)


def continuous_flows() -> str:
    """Efficiency and cost of every shipped checkpoint."""
    found = load("continuous_flows")
    head = (
        "system",
        "ESS, n = 10⁴, nothing filtered",
        "k-hat",
        "frames missed",
        "⟨u⟩",
        "⟨u⟩ by parallel tempering",
        "NLL",
        "path length",
        "steps, parameters",
        "forces of training",
    )
    rows: list[Row] = []
    for key, one in ({} if found is None else found["results"]["systems"]).items():
        ess = one["ess_fractions"]
        mean, spread = sum(ess) / len(ess), one["ess_fraction_bootstrap"]
        rows.append(
            (
                NAMES[key],
                f"**{100 * mean:.1f} ± {100 * spread:.1f} %**",
                f"{one['pareto_k']:.2f}",
                f"{one['n_missed']} of {number(one['n_reference'])}",
                pm(one["mean_reduced_energy"], one["mean_reduced_energy_error"], 3),
                pm(one["mean_reduced_energy_reference"], one["mean_reduced_energy_reference_error"], 3),
                f"{one['nll']:.2f}",
                f"{one['path_length']:.2f}",
                f"{one['n_flow_steps']}, {number(one['n_parameters'])}",
                f"{one['n_force_training'] / 1e6:.1f}·10⁶",
            )
        )
    return table(head, rows or [(MISSING, *[""] * (len(head) - 1))])


def continuous_flows_distances() -> str:
    """Wasserstein distances from frames of parallel tempering."""
    found = load("continuous_flows")
    head = ("system", "E-W2, kT: reweighted", "proposals", "frames", "T-W2, rad: reweighted", "proposals", "frames")
    rows: list[Row] = []
    for key, one in ({} if found is None else found["results"]["systems"]).items():
        cells = [f"{one[name]:.3f}" for name in ("energy_w2", "energy_w2_proposal", "energy_w2_floor")]
        names = ("torsion_w2", "torsion_w2_proposal", "torsion_w2_floor")
        cells += [f"{one[name]:.3f}" if name in one else "" for name in names]
        rows.append((NAMES[key], *cells))
    return table(head, rows or [(MISSING, *[""] * (len(head) - 1))])


def continuous_flows_published() -> str:
    """Reported effective sample sizes of the same systems."""
    rows = [(NAMES[key], method, ess, source) for key, method, ess, source in PUBLISHED]
    return table(("system", "method", "ESS, %", "source"), rows)


def cooled_flow() -> str:
    """LJ55 with a flow and without."""
    found = load("cooled_flow")
    head = (
        "sampler",
        "n",
        "ESS, nothing filtered",
        "k-hat",
        "log Z",
        "⟨u⟩",
        "forces a sample",
        "seconds a sample",
        "independent samples a minute",
    )
    names = {
        "flow": "flow for `lj55_shallow`, whose log Z and ⟨u⟩ these are",
        "cooled": "the same, cooled to `lj55`",
        "normal": "as many moves from a normal distribution",
        "smc": "sequential Monte Carlo, 20 populations",
    }
    rows: list[Row] = []
    for key, name in names.items() if found is not None else ():
        one = found["results"][key]
        ess = f"**{100 * one['ess_fraction']:.1f} ± {100 * one['ess_fraction_bootstrap']:.1f} %**"
        rows.append(
            (
                name,
                number(one["n"]),
                ess if key != "smc" else "resampled",
                f"{one['pareto_k']:.2f}",
                pm(one["log_z"], one["log_z_error"], 2),
                pm(one["mean_reduced_energy"], one["mean_reduced_energy_error"], 1),
                number(one["forces_per_sample"]),
                f"{one['seconds_per_sample']:.2f}",
                number(one["independent_per_minute"]),
            )
        )
    return table(head, rows or [(MISSING, *[""] * (len(head) - 1))])
