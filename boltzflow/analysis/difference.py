"""SystemDifference: the free-energy difference between two systems, and how it was found."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boltzflow.estimate import Estimate
from boltzflow.run import Ledger

__all__ = ["RELIABLE_K", "SystemDifference"]

RELIABLE_K = 0.7
"""k-hat of weights above which neither they nor their error bars can be trusted."""


@dataclass(frozen=True, eq=False)
class SystemDifference:
    """Delta_f = f_B − f_A = −log(Z_B / Z_A) between two systems, and how it was found.

    Args:
        estimate: In kT; where the temperatures differ each f is −log Z in its own kT.
        method: "learned", "exp", "bar" or "mbar".
        names: Of A and B.
        states: For every state that was sampled: its λ (0 = A, 1 = B) or name, number of samples, diagnostics.
        overlap: Overlap matrix of MBAR over the states, shape (K, K); None for one-sided estimates.
        diagnostics: What else is to be known: burn-in, swap rates, rounds of added states, notes.
        ledger: Evaluations, pilots and burn-in included.
        seconds: Wall time.
        seed: Of the samples.
        methods: What was used, by the names that `boltzflow.cite` knows.
    """

    estimate: Estimate
    method: str
    names: tuple[str, str]
    states: list[dict[str, Any]]
    overlap: np.ndarray | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    seconds: float = 0.0
    seed: int = 0
    methods: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as `free-energy --json` prints them; None for what is not finite."""
        e = self.estimate
        return {
            "from": self.names[0],
            "to": self.names[1],
            "delta_f": e.value,
            "error": e.error,
            "interval_95": list(e.interval()),
            "unit": e.unit,
            "note": e.note,
            "method": self.method,
            "error_method": e.method,
            "n_effective": e.n_effective,
            "states": [
                {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
                for row in self.states
            ],
            "overlap": None if self.overlap is None else self.overlap.tolist(),
            "diagnostics": self.diagnostics,
            "n_energy": self.ledger.n_energy(),
            "n_force": self.ledger.n_force(),
            "seconds": self.seconds,
            "seed": self.seed,
            "warnings": list(e.warnings),
        }
