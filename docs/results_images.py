"""Tables of the pictures: KL divergence against the number of couplings, as generated and with weights."""

from results_common import MISSING, Row, load, pm, table

__all__ = ["images", "images_metropolis", "images_reweighted"]

NAMES = {"rnvp": "RNVP", "rnvp_snf": "RNVP + MC", "nsf": "NSF", "nsf_snf": "NSF + MC"}


def _rows(found: dict) -> list[tuple[str, int, dict]]:
    """Picture, couplings and what was measured, by depth."""
    pictures = found["results"]["pictures"].items()
    rows = [(name, 2 * int(n), row) for name, one in pictures for n, row in one["transforms"].items()]
    return sorted(rows, key=lambda row: (list(found["results"]["pictures"]).index(row[0]), row[1]))


def images() -> str:
    """Divergence of the samples as they are, beside that of exact samples and the published ones of other pictures."""
    found = load("images")
    if found is None:
        return MISSING
    r = found["results"]
    published, rows = r["published, other pictures"], []
    for name, couplings, row in _rows(found):
        cells = [f"{row[key]['kl']:.3f}" if key in row else MISSING for key in NAMES]
        rows.append((name, str(couplings), *cells, f"{r['pictures'][name]['floor']:.4f}"))
    for k, couplings in enumerate(published["couplings"]):
        rows.append(("published, other pictures", str(couplings), *(f"{published[key][k]:g}" for key in NAMES), ""))
    return table(("picture", "couplings", *NAMES.values(), "exact samples"), rows)


def images_reweighted() -> str:
    """Divergence with weights, what their spread alone makes it, effective samples, and log Z, which is 0."""
    found = load("images")
    if found is None:
        return MISSING
    rows: list[Row] = []
    for name, couplings, row in _rows(found):
        for key, model in NAMES.items():
            if key not in row:
                continue
            one = row[key]
            rows.append(
                (
                    f"{name}, {couplings} couplings: {model}",
                    f"{one['kl']:.3f}",
                    f"**{one['kl reweighted']:.4f}**",
                    f"{one['kl expected of right weights']:.4f}",
                    f"{100 * one['ess fraction']:.0f} %",
                    pm(*one["log Z (exact 0)"], 4),
                    f"{one['energies per sample']:.0f}",
                )
            )
    spread = "expected from the spread of right weights"
    return table(("model", "KL", "KL, reweighted", spread, "ESS", "log Z (exact 0)", "energies per sample"), rows)


def images_metropolis() -> str:
    """Divergence after Metropolis steps from the base."""
    found = load("images")
    if found is None:
        return MISSING
    published, rows = found["results"]["published, other pictures"]["metropolis"], []
    for name, one in found["results"]["pictures"].items():
        if not one["transforms"]:
            continue
        kl = [f"{one['metropolis'][steps]:.3f}" if "metropolis" in one else MISSING for steps in published]
        rows.append((f"{name}: Metropolis alone, KL", *kl))
    rows.append(("published, other pictures", *(f"{value:g}" for value in published.values())))
    return table(("steps of 0.1 from the base", *published), rows)
