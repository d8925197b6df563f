"""ChainResult: what a simulation hands back."""

from dataclasses import dataclass, field
from typing import Any

from boltzflow._typing import Float64, Int, Tensor
from boltzflow.run import Ledger

__all__ = ["ChainResult"]


@dataclass(frozen=True, eq=False)
class ChainResult:
    """Frames of equally long Markov chains in time order: independent ones at the target's own temperature, or, where
    `rungs` is given, those of every temperature of independent ladders.

    Args:
        samples: Field name to frames, (n_frames, n_chains, *event); empty where the frames went to `on_chunk`.
        reduced_energies: u of every frame, (n_frames, n_chains), float64.
        frames: Index of every frame in the run, in sweeps or MD steps since the burn-in, (n_frames,).
        chains: Identity of every chain, (n_chains,); the columns of one ladder share theirs and are not independent.
        observables: Name to a series that may be denser than the frames, (n_records, n_chains), float64; holds
            "reduced_energy".
        diagnostics: Plain numbers and lists: swap rates, round trips, acceptance, inefficiencies, R-hat.
        ledger: Evaluations of the whole simulation up to now, burn-in included.
        seconds: Wall time of this run.
        methods: What was used, by the names that `boltzflow.cite` knows.
        rungs: Index of the temperature of every column, (n_chains,); None where all are the target's own.
    """

    samples: dict[str, Tensor]
    reduced_energies: Float64[Tensor, "n_frames n_chains"]
    frames: Int[Tensor, " n_frames"]
    chains: Int[Tensor, " n_chains"]
    observables: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    seconds: float = 0.0
    methods: tuple[str, ...] = ()
    rungs: Int[Tensor, " n_chains"] | None = None
