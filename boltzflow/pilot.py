"""The pilot of an annealed sampler in a run folder: what `boltzflow train` does where nothing is learned."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError, FormatError
from boltzflow.generators.annealed_families import annealed_family, run_pilot
from boltzflow.generators.generator import Generator
from boltzflow.generators.schedule import Schedule
from boltzflow.generators.trained_base import checkpoint_file
from boltzflow.io.atomic import atomic_path
from boltzflow.io.checkpoint import load_checkpoint, save_checkpoint
from boltzflow.io.config import RunConfig, differences, parse_config
from boltzflow.io.provenance import file_sha256, method_names
from boltzflow.io.system_folders import list_systems
from boltzflow.objectives.fit_transport import fit_transport
from boltzflow.run import Ledger, new_seed
from boltzflow.systems import load_system

__all__ = ["finished_pilot", "pilot"]

logger = logging.getLogger(__name__)


def pilot(config: RunConfig, folder: str | Path, *, resume: bool = False) -> Generator:
    """Find levels, step sizes and maps, and freeze them in a checkpoint: `run.json`, `checkpoint.pt`, `metrics.jsonl`.

    The configuration in the checkpoint has the levels that were found; its cost is that of the pilot, whose population
    is thrown away, and of the frames or the flow that it started from. A line of metrics is one level.

    Args:
        config: Of a run whose family is piloted.
        folder: Made if it does not exist.
        resume: Keep a checkpoint that is there, if it is of the same run.

    Raises:
        FileExistsError: If the folder holds a run and `resume` is False.
        CheckpointMismatchError: If it holds one of another configuration.
        AnnealingError: If there is no schedule from the base to the target.
    """
    folder, settings = Path(folder), config.training
    dtype = getattr(torch, settings.dtype)
    system = load_system(config.system, dtype=dtype)
    file = folder / "checkpoint.pt"
    if file.exists() and not resume:
        raise FileExistsError(f"{folder} holds a run already; continue it with --resume, or name another folder.")
    if finished_pilot(config, folder):
        return system.generator_from(load_checkpoint(file, system), dtype=dtype, device=settings.device)
    began = time.perf_counter()
    seed = new_seed() if settings.seed is None else settings.seed
    logger.info("pilot of %s for %s, seed %d", config.generator.family, system.name, seed)
    schedule = run_pilot(system, config.generator, seed=seed, dtype=dtype, device=settings.device)
    generator = annealed_family(system, config.generator, schedule=schedule).to(device=settings.device, dtype=dtype)
    explained = None
    if config.generator.annealing.maps != "none":
        fitted = fit_transport(generator, system.target, n=config.generator.annealing.map_rows, seed=seed)
        schedule.ledger.merge(fitted.ledger)
        explained = fitted.explained
    ledger, methods, found = schedule.ledger, generator.trained_by, {"levels": schedule.levels}
    if config.generator.annealing.base is not None:
        base = config.generator.annealing.base
        trained = checkpoint_file(base)
        origin = Path(base) if trained is None else trained
        # a name that ships stays a name, and the checkpoint of the pilot may ship as well
        found |= {"base": base if base in list_systems() else str(origin.resolve()), "base_sha256": file_sha256(origin)}
        cost, made_by = _cost_of_frames(origin) if trained is None else _cost_of_training(origin)
        ledger.merge(cost)
        methods = method_names(*methods, *made_by)
    seconds = time.perf_counter() - began
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("run.json", config.model_dump_json(indent=2)),
        ("metrics.jsonl", _metrics(schedule, explained, seconds)),
    ):
        with atomic_path(folder / name) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    annealing = config.generator.annealing.model_copy(update=found)
    frozen = config.model_copy(update={"generator": config.generator.model_copy(update={"annealing": annealing})})
    save_checkpoint(
        file,
        generator=generator,
        system=system,
        config=frozen,
        training={
            "step": len(schedule),
            "seed": seed,
            "seconds": seconds,
            "ledger": ledger.as_dict(),
            "data": [found["base_sha256"]] if "base_sha256" in found else [],
        },
        methods=methods,
    )
    return generator.eval()


def _cost_of_frames(file: Path) -> tuple[Ledger, list[str]]:
    made = Ensemble.load(file).provenance
    return Ledger.from_dict(made.ledger), made.methods


def _cost_of_training(file: Path) -> tuple[Ledger, list[str]]:
    made = load_checkpoint(file)
    return Ledger.from_dict(made.cost.get("ledger", {})), list(made.methods)


def finished_pilot(config: RunConfig, folder: Path) -> bool:
    """Whether a folder holds the pilot of a run; what is sampled from it, and with what seed, may differ.

    Raises:
        CheckpointMismatchError: If it holds a run of another system, generator or seed.
        FormatError: If its `run.json` is missing or damaged.
    """
    if not (folder / "checkpoint.pt").exists():
        return False
    try:
        text = (folder / "run.json").read_text(encoding="utf-8")
        theirs = parse_config(json.loads(text), origin=str(folder / "run.json"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise FormatError(f"{folder}: its run.json is missing or damaged ({error}); remove the folder.") from None
    mine, other = ({"system": c.system, "generator": c.generator.model_dump()} for c in (config, theirs))
    changed = differences(mine, other)
    if config.training.seed not in (None, theirs.training.seed):
        changed.append(f"training.seed: {theirs.training.seed} there, {config.training.seed} here")
    if changed:
        raise CheckpointMismatchError(
            f"{folder}: holds the pilot of another configuration ({'; '.join(changed)}). Remove it, or name another "
            "folder."
        )
    return True


def _metrics(schedule: Schedule, explained: Sequence[float] | None, seconds: float) -> str:
    rows = zip(schedule.levels, schedule.cess, schedule.step_sizes, schedule.acceptance, strict=True)
    lines = [
        {"step": k, "level": level, "cess": cess, "step_sizes": steps, "acceptance": rates, "seconds": seconds}
        for k, (level, cess, steps, rates) in enumerate(rows, start=1)
    ]
    for line, part in zip(lines, explained or (), strict=False):
        line["explained"] = part
    return "".join(json.dumps(line) + "\n" for line in lines)
