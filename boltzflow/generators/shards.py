"""Turn one batch of paths into an Ensemble shard: what failed is counted, what must not pass is raised."""

from typing import TYPE_CHECKING

import torch

from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.errors import NonFiniteEnergyError
from boltzflow.run import Context
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

    Raises:
        NonFiniteEnergyError: If a log-weight is +inf.
    """
    log_weights = trajectory.log_weights
    infinite = int((log_weights == torch.inf).sum())
    if infinite:
        raise NonFiniteEnergyError(
            f"sample: {infinite} of {len(log_weights)} log-weights are +inf, i.e. an energy of {target.name} or a log-density of the model "
            "is −inf. No estimate can bear that; check the energy at these rows."
        )
    end, start = trajectory.end, trajectory.start
    groups = sizes = None
    frames = "frame" in start
    if frames:
        # rows of one frame of the base depend on each other wherever they are
        groups = start["frame"]
        if trajectory.lineage is not None:
            # all frames count from the start, those that left no descendant, too
            sizes = torch.bincount(drawn, minlength=...)
    elif trajectory.lineage is not None and group_by_population:
        groups, sizes = torch.zeros_like(trajectory.lineage), torch.tensor([len(end)])
    elif trajectory.lineage is not None:
        groups, sizes = trajectory.lineage, torch.ones(len(end))
    return Ensemble(
        samples={name: end[name].cpu().numpy() for name in target.fields},
        spaces=target.fields,
        log_weights=log_weights.cpu().numpy(),
        reduced_energies=trajectory.target_energy.cpu().numpy(),
        target=target.name,
        base=base.name,
        context=context,
        normalisation=f"relative to {base.name}" if relative else "absolute",
        log_z_base=None if relative else float(base.log_z),
        groups=groups,
        groups_shared="frame" in trajectory.start and trajectory.lineage is None,
        group_sizes=sizes,
        topology=getattr(target, "topology", None),
        provenance=Provenance(
            seed=seed,
            device=str(end.device),
            dtype=str(end.dtype).removeprefix("torch."),
            ledger=trajectory.ledger.as_dict(),
            seconds=seconds,
            n_nonfinite=n_nonfinite,
            n_failed=n_failed,
        ),
    )
