"""Turn one batch of paths into an Ensemble shard: what failed is counted, what must not pass is raised."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.errors import NonFiniteEnergyError
from boltzflow.run import Context
from boltzflow.statistics.families import family_statistics
from boltzflow.targets.bases import FramesBase
from boltzflow.targets.target import Base, Target

if TYPE_CHECKING:
    from boltzflow.generators.generator import Trajectory

__all__ = ["shard_ensemble"]


def shard_ensemble(
    trajectory: "Trajectory",
    base: Base,
    target: Target,
    *,
    seed: int,
    group_by_population: bool,
    context: Context | None,
    seconds: float,
    methods: list[str],
    log_q_errors: list[float] | None = None,
) -> Ensemble:
    """Make the Ensemble of one shard.

    Args:
        trajectory: Paths without gradients.
        base: Where they started.
        target: What the weights are for.
        seed: Seed of the whole run.
        group_by_population: Whether resampled rows are grouped by population (many of them) or by lineage (few).
        context: Context of the run.
        seconds: Time that the shard took.
        methods: What was used, for the provenance.
        log_q_errors: Measured errors of log q of some rows, for the provenance; None where there are none.

    Raises:
        NonFiniteEnergyError: If a log-weight is +inf.
    """
    log_weights = trajectory.log_weights
    infinite = int((log_weights == torch.inf).sum())
    if infinite:
        raise NonFiniteEnergyError(
            f"sample: {infinite} of {len(log_weights)} log-weights are +inf, i.e. an energy of {target.name} or a "
            f"log-density of the model is −inf, or an energy of {base.name} is +inf. No estimate can bear that; check "
            "the energies at these rows."
        )
    n, end, lineage = len(log_weights), trajectory.end, trajectory.lineage
    groups = sizes = None
    extra = {} if log_q_errors is None else {"log_q_errors": log_q_errors}
    if lineage is not None and bool((log_weights > -torch.inf).any()):
        extra |= {"populations": [asdict(family_statistics(lineage, log_weights=log_weights))]}
    started = base.groups[trajectory.start["frame"]] if isinstance(base, FramesBase) else None
    if started is not None:
        # rows of one frame of the base depend on each other, whatever shard they are in
        groups = started if lineage is None else started[lineage]
        # counted at the start: a frame whose rows all died out is a group, too
        sizes = None if lineage is None else torch.bincount(started)
    elif lineage is not None:
        groups, sizes = (
            (torch.zeros_like(lineage), torch.tensor([n])) if group_by_population else (lineage, torch.ones(n))
        )
        methods = methods if group_by_population else [*methods, "lineage error"]
    n_failed = int(trajectory.n_failed)
    # every row that failed and is still there has weight zero
    n_nonfinite = int((~torch.isfinite(log_weights) & ~trajectory.failed).sum())
    return Ensemble(
        samples={name: end[name].cpu().numpy() for name in target.fields},
        spaces=target.fields,
        log_weights=log_weights.cpu().numpy(),
        reduced_energies=trajectory.target_energy.cpu().numpy(),
        target=target.name,
        base=base.name,
        context=context,
        log_z_base=base.log_z,
        groups=groups,
        group_sizes=sizes,
        groups_shared=started is not None,
        topology=getattr(target, "topology", None),
        provenance=Provenance(
            seed=seed,
            device=str(end.device),
            dtype=str(end.dtype).removeprefix("torch."),
            ledger=trajectory.ledger.as_dict(),
            seconds=seconds,
            n_nonfinite=n_nonfinite,
            n_failed=n_failed,
            methods=methods,
            extra=extra,
        ),
    )
