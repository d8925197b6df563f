"""Table of flow perturbation: what a weighted and an effective sample cost, by dimension."""

from results_common import MISSING, Row, load, number, pm, table

__all__ = ["flow_perturbation"]

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
