"""Topping up a file of samples: only to what sampling at one go would have given."""

from pathlib import Path
from typing import Any

from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError
from boltzflow.generators.generator import Generator
from boltzflow.transitions.transition import BatchStep

__all__ = ["rows_to_keep"]


def rows_to_keep(path: str | Path, generator: Generator, *, seed: int | None, recorded: dict[str, Any]) -> Ensemble:
    """The shards that a file holds already.

    Args:
        path: Of the file.
        generator: Draws the rest.
        seed: None = that of the file.
        recorded: Provenance of the whole: "sampling" with n and batch_size, and what made the generator, of which only
            the path "checkpoint" may differ.

    Raises:
        CheckpointMismatchError: If the file was sampled in another way, or its n cannot be raised to this one.
    """
    kept = Ensemble.load(path)
    spent, wanted = kept.provenance, recorded["sampling"]
    had = spent.extra.get("sampling", {"n": len(kept), "batch_size": None})
    device = {name.strip().partition(":")[0] for name in spent.device.split(",")}
    mine = {"seed": spent.seed if seed is None else seed, "batch_size": wanted["batch_size"]}
    mine |= {"dtype": str(generator.dtype).removeprefix("torch."), "device": {generator.device.type}}
    theirs = {"seed": spent.seed, "batch_size": had["batch_size"], "dtype": spent.dtype, "device": device}
    for name in recorded.keys() - {"sampling", "checkpoint"}:
        mine[name], theirs[name] = recorded[name], spent.extra.get(name)
    changed = [f"{name}: {theirs[name]} there, {mine[name]} here" for name in mine if mine[name] != theirs[name]]
    if changed:
        raise CheckpointMismatchError(
            f"{path}: was sampled in another way ({'; '.join(changed)}). Resume with the same, or name another file."
        )
    n_populations = [-(-n // wanted["batch_size"]) for n in (had["n"], wanted["n"])]
    regrouped = (min(n_populations) >= 20) != (max(n_populations) >= 20)
    reason = None
    if wanted["n"] < len(kept):
        reason = f"it holds {len(kept)} samples"
    elif wanted["n"] != had["n"] and len(kept) % wanted["batch_size"]:
        reason = f"its last shard is not one of {wanted['batch_size']} rows"
    elif regrouped and any(isinstance(step, BatchStep) for step in generator.transitions):
        reason = "the errors of its few resampled populations were found in another way"
    if reason is not None:
        raise CheckpointMismatchError(
            f"{path}: was to have {had['n']} samples and cannot be topped up to {wanted['n']}: {reason}. Name another "
            "file."
        )
    return kept
