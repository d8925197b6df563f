"""Table of the depth of vector fields: what flow matching leaves, and what velocities with their Jacobian cost."""

from results_common import MISSING, Row, load, number, table

__all__ = ["depth"]


def depth() -> str:
    """Loss and times of every field."""
    found = load("field_depth")
    head = ("field", "parameters", "loss", "ms per step of training", "ms per row, with the exact Jacobian")
    rows: list[Row] = []
    for name, one in ({} if found is None else found["results"]["fields"]).items():
        times = (f"{one['step_milliseconds']:.0f}", f"{one['jacobian_milliseconds']:.2f}")
        rows.append((name, number(one["parameters"]), f"{one['loss']:.5f}", *times))
    return table(head, rows or [(MISSING, *[""] * 4)])
