"""Table of couplings: how close the pairs of flow matching come, and what they cost."""

from results_common import MISSING, Row, load, table

__all__ = ["coupling"]


def coupling() -> str:
    """Path length and milliseconds of every way to pair a batch."""
    found = load("coupling")
    head = ("`pairs`", "path length", "shortest time", "time of all cores")
    rows: list[Row] = []
    for name, one in ({} if found is None else found["results"]["couplings"]).items():
        times = (f"{one[key]:.1f} ms" for key in ("milliseconds", "cpu_milliseconds"))
        rows.append((name, f"{one['path_length']:.2f}", *times))
    return table(head, rows or [(MISSING, "", "", "")])
