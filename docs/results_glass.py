"""Tables of the ternary liquid: swap Monte Carlo beside reference values, and how cold two samplers get."""

from results_common import MISSING, Row, load, pm, table

__all__ = ["glass", "glass_reach"]


def glass() -> str:
    """Energy and heat capacity per particle by swap Monte Carlo, with their reference values and z-scores."""
    found = load("glass")
    if found is None:
        return MISSING
    rows: list[Row] = []
    for temperature, r in found["results"]["swap Monte Carlo"].items():
        cells = []
        for name, digits in (("E/N", 4), ("c_V", 3)):
            cells.append(f"**{pm(r[name], r[f'{name} error'], digits)}**")
            cells.append(pm(r[f"{name} reference"], r[f"{name} reference error"], digits))
            cells.append(f"{r[f'{name} z-score']:.1f}")
        rows.append(
            (temperature, *cells, f"{r['swap acceptance']:.4f}", f"{r['effective samples']:,.0f}".replace(",", " "))
        )
    head = ("T", "E/N", "reference", "z", "c_V per particle", "reference", "z", "swaps accepted", "effective samples")
    return table(head, rows)


def glass_reach() -> str:
    """Energies of parallel tempering and population annealing with one number of calls, and where they stop."""
    found = load("glass")
    if found is None:
        return MISSING
    results, rows = found["results"], []
    shown = [t for t in results["swap Monte Carlo"] if t != "1.0"]
    for name in ("plain", "with swaps"):
        ladder, runs = results["parallel tempering"][name], results["population annealing"][name]
        lowest = results["settings"]["lowest temperature"]
        energies = [pm(ladder["E/N"][t], ladder["errors"][t], 4) for t in shown]
        rows.append((f"parallel tempering, {name}", *energies, _stop(lowest["parallel tempering"][name])))
        energies = [pm(runs[t]["E/N"], runs[t]["error"], 4) for t in shown]
        rows.append((f"population annealing, {name}", *energies, _stop(lowest["population annealing"][name])))
    truth = [pm(results["swap Monte Carlo"][t]["E/N"], results["swap Monte Carlo"][t]["E/N error"], 4) for t in shown]
    rows.append(("swap Monte Carlo, far more calls", *truth, ""))
    return table(("", *(f"E/N at T = {t}" for t in shown), "lowest T reached"), rows)


def _stop(temperature: float | None) -> str:
    return "none below 1" if temperature in (None, 1.0) else f"**{temperature:g}**"
