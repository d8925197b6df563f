"""Parallel tempering of peptides with and without torsion-block flows, and what the families of blocks are worth."""

from results_common import MISSING, Row, load, table

__all__ = ["blocks_cost", "blocks_efficiency", "blocks_families"]

NAMES = {
    "trp_cage": "Trp-cage, 304 atoms",
    "chignolin": "chignolin, 138 atoms",
    "ace_aaa_nme": "capped alanine tetrapeptide, 42 atoms",
}


def blocks_efficiency() -> str:
    """Effective samples per processor hour by peptide and kind of observable."""
    found = load("torsion_blocks")
    if found is None:
        return MISSING
    rows: list[Row] = []
    for system, r in found["results"].items():
        for name, row in r["groups"].items():
            changed = row["changed, without and with blocks"]
            which = (
                name if row["observables"] == 1 else f"{name}, {changed[0]} and {changed[1]} of {row['observables']}"
            )
            if "ratio" not in row:
                rows.append((NAMES[system], which, "none changed in both", "", "", "", ""))
                continue
            plain, flow = row["effective samples per hour"]
            resolved = row["ratio"] > 1 + row["ratio, error"]
            rows.append(
                (
                    NAMES[system],
                    which,
                    f"{plain:.0f}",
                    f"{flow:.0f}",
                    f"**{row['ratio']:.2f} ± {row['ratio, error']:.2f}**",
                    f"{row['ratio per force call']:.2f}",
                    f"{3600 * row['pays after hours']:.0f} s" if resolved else "not resolved",
                )
            )
    head = (
        "peptide",
        "observable",
        "effective samples per hour, plain",
        "with blocks",
        "ratio",
        "ratio per force call",
        "training pays after",
    )
    return table(head, rows)


def blocks_cost() -> str:
    """What was spent, and whether both simulations agree."""
    found = load("torsion_blocks")
    if found is None:
        return MISSING
    rows: list[Row] = []
    for system, r in found["results"].items():
        plain, flow, training = r["without blocks"], r["with blocks"], r["training"]
        rows.append(
            (
                NAMES[system],
                f"{r['ladders']} × {r['temperatures']}, {r['sweeps']}",
                f"{plain['forces'] / 1e3:.0f} and {flow['forces'] / 1e3:.0f}",
                f"{plain['seconds']:.0f} and {flow['seconds']:.0f}",
                f"{training['forces'] / 1e3:.0f}, {training['seconds simulated']:.0f} s; "
                f"{training['seconds trained']:.0f} s",
                f"{100 * plain['acceptance'][1]:.0f} % and {100 * flow['acceptance'][1]:.0f} %",
                f"{r['agreement']['largest |z|']:.1f}, {r['agreement']['mean z^2']:.2f}",
            )
        )
    head = (
        "peptide",
        "ladders × temperatures, sweeps",
        "forces in 10³, plain and with blocks",
        "processor seconds",
        "training: forces in 10³ and their time; fit",
        "accepted at 300 K: rotations, blocks",
        "difference of the means: largest \\|z\\|, mean z²",
    )
    return table(head, rows)


def blocks_families() -> str:
    """One trial at 300 K of every family, learned and uniform."""
    found = load("torsion_blocks")
    if found is None:
        return MISSING
    rows: list[Row] = []
    results = found["results"].values()
    for name in dict.fromkeys(name for r in results for name in r["families"]):
        cells = []
        for r in results:
            row = r["families"].get(name)
            cells.append(
                ""
                if row is None
                else f"{100 * row['acceptance']:.1f} %, {100 * row['turned by more than 60 degrees']:.1f} %, "
                f"{row['mean of 1 - cos']:.3f}"
            )
        rows.append((name, *cells))
    head = ("accepted, turned by more than 60°, mean of 1 − cos", *[NAMES[system] for system in found["results"]])
    return table(head, rows)
