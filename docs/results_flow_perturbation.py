"""Table of flow perturbation: what a weighted and an effective sample cost, by dimension."""

from results_common import MISSING, Row, load, number, pm, table

__all__ = ["MIXTURE_COMMAND", "flow_perturbation", "perturbation_mixture"]

MIXTURE_COMMAND = "python benchmarks/perturbation_mixture.py"

NAMES = ("FP++", "FP++, 4 directions", "Hutchinson", "exact, closed form", "exact, autograd")


def flow_perturbation() -> str:
    """Milliseconds, effective fraction, bias and effective samples per second of every method and dimension."""
    found = load("flow_perturbation")
    head = ("d", "weight", "ms per weighted sample", "against autograd", "effective fraction", "mean weight (exact: 1)")
    rows: list[Row] = []
    for d, methods in ({} if found is None else found["results"]["dimensions"]).items():
        slowest = methods["exact, autograd"]["seconds"]
        for name in NAMES:
            one = methods[name]
            mean = pm(one["mean_w"], one["mean_w_error"], 3) if "mean_w" in one else "1"
            cells = (f"{1e3 * one['seconds']:.2f}", f"{slowest / one['seconds']:.1f}×", f"{one['ess_fraction']:.2f}")
            rows.append((d, name, *cells, mean, number(one["effective_per_second"])))
    return table((*head, "effective samples per second"), rows or [(MISSING, *[""] * 6)])


def perturbation_mixture() -> str:
    """The two wells by sequential Monte Carlo on positions and noise, beside exact and reported values."""
    found = load("perturbation_mixture")
    head = (
        "d",
        "particles, levels",
        "⟨u⟩",
        "exact ⟨u⟩",
        "left well",
        "exact",
        "log Z (exact: 0)",
        "reported FP: ⟨u⟩, left",
    )
    rows: list[Row] = []
    for d, one in ({} if found is None else found["results"]["dimensions"]).items():
        error = one["left_error"]
        published = found["results"]["published"][d]["FP"]
        rows.append(
            (
                d,
                f"{one['population']} × {one['n_populations']}, {one['n_levels']}",
                pm(one["mean_u"], one["mean_u_error"], 2),
                f"{one['exact_u']:.2f}",
                f"**{one['left']:.0f}, lost**" if error is None else pm(one["left"], error, 3),
                "0.25",
                pm(one["log_z"], one["log_z_error"], 2),
                ", ".join(str(published.get(key, "not given")) for key in ("u", "left")),
            )
        )
    return table(head, rows or [(MISSING, *[""] * 7)])
