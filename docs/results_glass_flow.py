"""Tables of the supercooled liquid by annealed flow, population annealing and parallel tempering."""

from results_common import MISSING, load, number, pm, table

__all__ = ["glass_flow", "glass_flow_weights"]

GLASS_SAMPLERS = ("annealed flow", "population annealing", "parallel tempering")
REFERENCE = ((-2.4306, 0.0006), (-2.4878, 0.0010), (-2.6032, 0.0009), (-2.6397, 0.0012), (-2.6891, 0.0012))
GLASS_PARTS = {"plain": "single particles", "swaps": "with swaps"}


def glass_flow() -> str:
    """Energies of a supercooled liquid by three samplers at equal numbers of target calls."""
    found, shown, rows = load("glass_flow"), ("0.45", "0.4", "0.3", "0.27", "0.23"), []
    for part, r in found["results"].items() if found is not None else ():
        for method in GLASS_SAMPLERS:
            at = r[method]["temperatures"]
            energies = (pm(at[t]["E/N"], at[t]["E/N error"], 4) for t in shown)
            calls = f"{r[method]['target calls'] / 1e6:.1f}·10⁶"
            rows.append((f"{method}, {GLASS_PARTS[part]}", *energies, calls, number(r[method]["CPU seconds"])))
    rows = rows or [(MISSING, *[""] * 7)]
    rows.append(("reference: swap Monte Carlo, two runs of 1.5·10⁶ sweeps", *(pm(*r, 4) for r in REFERENCE), "", ""))
    return table(("E/N, moves", *(f"T = {t}" for t in shown), "target calls", "CPU seconds"), rows)


def glass_flow_weights() -> str:
    """What the maps save of the weights."""
    found, shown, rows = load("glass_flow"), ("0.7", "0.45", "0.3", "0.23"), []
    for part, r in found["results"].items() if found is not None else ():
        for method in GLASS_SAMPLERS[:2]:
            one = r[method]
            at = one["temperatures"]
            parts = (f"{100 * at[t]['effective fraction since the last temperature']:.0f} %" for t in shown)
            families = f"{one['independent families, n/rho_t']:.0f} of {number(one['populations'] * one['size'])}"
            spread = f"{one['log mean weight, standard deviation over populations']:.2f} kT"
            failed = str(one["failed rows"])
            rows.append((f"{method}, {GLASS_PARTS[part]}", *parts, families, spread, failed))
    head = (
        "effective fraction of a step, moves",
        *(f"to T = {t}" for t in shown),
        "independent families at the end",
        "spread of log Z between populations",
        "failed rows",
    )
    return table(head, rows or [(MISSING, *[""] * 7)])
