"""Table of exact divergences: what a field does by itself, beside a vmap-Jacobian of the same network."""

from results_common import MISSING, Row, load, number, table

__all__ = ["divergence"]

NAMES = {
    "pair": "`PairField`: closed form",
    "embedded": "`EmbeddedField`: closed form of the Jacobian",
    "neighbour": "`NeighbourField`: closed form of the Jacobian",
    "hollow": "`HollowField`: 3 backward passes",
    "painn": "`PaiNNField`: 3N backward passes",
    "egnn": "`EGNNField`: 3N backward passes",
}


def divergence() -> str:
    """Samples per second of every field and number of particles, and how far the two ways are apart."""
    found = load("exact_divergence")
    head = ("particles", "field", "velocities per second", "its own divergence", "vmap of jacrev", "gain")
    rows: list[Row] = []
    for n, fields in ({} if found is None else found["results"]["sizes"]).items():
        for name, text in NAMES.items():
            one = fields[name]
            speeds = (number(one[way]["per_second"]) for way in ("forward", "own", "vmap"))
            rows.append((n, text, *speeds, f"{one['gain']:.1f}×", f"{one['largest_difference']:.0e}"))
    return table((*head, "relative difference"), rows or [(MISSING, *[""] * 6)])
