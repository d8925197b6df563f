"""What all tables of results share: reading a benchmark, Markdown, numbers."""

import json
from pathlib import Path

__all__ = ["MISSING", "Row", "load", "number", "pm", "provenance", "table"]

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
MISSING = "not measured yet"
Row = tuple[str, ...]


def load(name: str) -> dict | None:
    """A benchmark's file; None if it was not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(head: Row, rows: list[Row]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def provenance(name: str, command: str) -> str:
    """Command, machine and date of a benchmark in one line."""
    found = load(name)
    if found is None:
        return f"Command: `{command}` ({MISSING})."
    machine, versions = found["machine"], found["versions"]
    device = machine["gpu"] or "no GPU"
    packages = ", ".join(f"{key} {versions[key]}" for key in ("torch", "openmm") if key in versions)
    return (
        f"Command: `{command}`. {found['date'][:10]}, commit {found['commit']}, {machine['processor']} with "
        f"{machine['cores']} cores (load {machine['load_average'][0]:.1f}), {device}, torch threads: "
        f"{found['threads']}, Python {versions['python']}, {packages}."
    )


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    digits = max(0, len(str(int(abs(value)))) - 3)
    rounded = round(value, -digits)
    return f"{rounded:,.0f}".replace(",", " ") if abs(value) >= 100 else f"{value:.3g}"


def pm(value: float, error: float, digits: int) -> str:
    """Value ± error."""
    return f"{value:.{digits}f} ± {error:.{digits}f}"
