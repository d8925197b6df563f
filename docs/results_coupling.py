"""Tables of flow matching: how close its pairs come and what they cost, and how good the fields are that they train."""

from results_common import MISSING, Row, load, table

__all__ = ["coupling", "flow_matching"]


def coupling() -> str:
    """Path length and milliseconds of every way to pair a batch."""
    found = load("coupling")
    head = ("`pairs`", "path length", "shortest time", "time of all cores")
    rows: list[Row] = []
    for name, one in ({} if found is None else found["results"]["couplings"]).items():
        times = (f"{one[key]:.1f} ms" for key in ("milliseconds", "cpu_milliseconds"))
        rows.append((name, f"{one['path_length']:.2f}", *times))
    return table(head, rows or [(MISSING, "", "", "")])


def flow_matching() -> str:
    """Efficiencies of fields that were matched to data by different pairs, and of what followed."""
    found = load("flow_matching")
    head = ("field of DW4", "10 Euler steps", "10 rk4 steps", "training")
    rows: list[Row] = []
    if found is not None:
        results = found["results"]
        for name, one in results["pairs"].items():
            efficiencies = (f"{one[key]:.1%}" for key in ("ess_fraction", "ess_fraction_rk4"))
            rows.append((f"matched, {results['steps']} steps: {name}", *efficiencies, f"{one['seconds']:.0f} s"))
        for name, one in results["tuned"].items():
            label = f"equivariant, then {results['tuning']} steps of `{name}`"
            rows.append((label, f"{one['ess_fraction']:.1%}", "", f"{one['seconds']:.0f} s"))
    return table(head, rows or [(MISSING, "", "", "")])
