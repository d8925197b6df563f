"""Run configuration: one YAML is one run, parsed into frozen pydantic models; wrong keys and types are named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from boltzflow.errors import FormatError, UnknownNameError, nearest
from boltzflow.io.autoregressive_config import AutoregressiveConfig
from boltzflow.io.continuous_config import ContinuousConfig, FlowMapConfig, FlowMatchingConfig
from boltzflow.io.natural_gradient_config import NaturalGradientConfig
from boltzflow.io.section import Section
from boltzflow.io.system_folders import list_systems

__all__ = [
    "AnalysisConfig",
    "AnnealedSamplerConfig",
    "AnnealingConfig",
    "GeneratorConfig",
    "ObjectiveConfig",
    "RunConfig",
    "SamplingConfig",
    "SimulationConfig",
    "StochasticConfig",
    "TrainingConfig",
    "differences",
    "load_config",
    "parse_config",
]


class AnnealedSamplerConfig(Section):
    """Levels and moves of the families smc and annealed_importance, from a base to the target."""

    base: str | None = Field(
        None,
        description="Ensemble file of the system at a higher temperature, from whose frames the temperature falls; or "
        "run folder or checkpoint of a trained flow, or the name of a system for which one ships, from whose density "
        "paths start; None = a normal distribution, for analytic targets.",
    )
    base_sha256: str | None = Field(None, description="Of the file `base`; the pilot writes it here.")
    base_scale: float = Field(1.0, gt=0, description="Standard deviation of a normal base.")
    coordinates: Literal["samples", "latent"] = Field(
        "samples",
        description="Where the base is a trained flow: kernels move its samples, or the latent coordinates of these.",
    )
    path: Literal["density", "energy"] = Field(
        "density",
        description="Where the base is a trained flow: levels from its density, or from the energy that it was trained "
        "for, at another temperature or another one of the same coordinates.",
    )
    kernel: Literal["metropolis", "mala", "hmc", "molecule", "swap"] = Field(
        "hmc",
        description="Moves at every level; molecule = short trajectories, torsion and rigid moves; swap = swap Monte "
        "Carlo of particles with species.",
    )
    step_size: float = Field(
        0.1, gt=0, description="Of the kernel, where the pilot starts or as it stays; molecule has its own."
    )
    n_leapfrog: int = Field(4, ge=1, description="hmc: leapfrog steps of a trajectory.")
    n_steps: int = Field(
        1, ge=1, description="Trials or trajectories at every level; molecule: rounds of its moves; swap: sweeps."
    )
    threshold: float = Field(0.5, ge=0, le=1, description="smc: resample below this effective fraction.")
    levels: tuple[float, ...] | None = Field(
        None, description="Levels, rising and ending at 1; None = found by the pilot, which writes them here."
    )
    cess: float = Field(0.9, gt=0, lt=1, description="Pilot: conditional effective fraction of neighbouring levels.")
    pilot_size: int = Field(1000, ge=2, description="Pilot: rows of its population.")
    pilot_rounds: int = Field(8, ge=1, description="Pilot: calls of the kernel at every level, in which steps adapt.")
    maps: Literal["none", "pair"] = Field(
        "none",
        description="Before every level a map, fitted in the pilot: pair = a step along a field between pairs of "
        "particles, in a box or a cluster.",
    )
    map_basis: int = Field(10, ge=2, description="Gaussians of the distance, for every pair of species.")
    map_start: float = Field(0.0, ge=0, description="Centre of the first of them.")
    map_reach: float | None = Field(
        None, gt=0, description="Largest distance at which a map acts; None = half the box, which clusters lack."
    )
    map_rows: int = Field(1500, ge=2, description="Rows of the population on which the maps are fitted.")


class StochasticConfig(Section):
    """Stochastic blocks between the couplings of a `stochastic_flow`."""

    n_transforms: int = Field(3, ge=1, description="Transforms, each followed by a block; they share the couplings.")
    coupling: Literal["spline", "affine"] = Field("spline", description="What the couplings are.")
    kernel: Literal["none", "metropolis", "langevin", "mala", "hmc", "unadjusted_hmc", "bbk", "baoab", "obabo"] = Field(
        "metropolis", description="Steps of a block, see boltzflow.generators.stochastic_block; none = a flow."
    )
    n_steps: int = Field(10, ge=1, description="Steps per block.")
    step_size: float = Field(0.1, gt=0, description="Of the kernel, in the units of the coordinates.")
    n_leapfrog: int = Field(5, ge=1, description="hmc, unadjusted_hmc: leapfrog steps of a trajectory.")
    friction: float = Field(1.0, gt=0, description="bbk, baoab, obabo: friction per unit of time.")
    levels: tuple[float, ...] | None = Field(
        None, description="Position of every block on the path, ending at 1; None = evenly spaced."
    )
    prior_block: bool = Field(default=False, description="A block on the base comes first.")
    learn_steps: bool = Field(default=False, description="Step sizes and frictions are parameters, one per block.")
    learn_levels: bool = Field(default=False, description="The levels between 0 and 1 are parameters.")


class GeneratorConfig(Section):
    """Architecture of a Generator."""

    family: Literal[
        "internal_spline_flow",
        "stochastic_flow",
        "continuous_flow",
        "autoregressive_flow",
        "smc",
        "annealed_importance",
    ] = Field("internal_spline_flow", description="Assembled family, see boltzflow.generators.")
    coordinates: Literal["internal", "mixed"] = Field(
        "internal",
        description="Of a molecule: internal, or mixed, in which the atom in the middle and its neighbours are a "
        "whitened block of Cartesian coordinates in their own frame.",
    )
    n_couplings: int = Field(8, ge=0, description="Couplings; a stochastic_flow may have none.")
    hidden: tuple[PositiveInt, ...] = Field((128, 128), description="Widths of the conditioners' hidden layers.")
    n_bins: int = Field(8, ge=2, description="Spline bins of a coupling.")
    n_marginal_bins: int = Field(32, ge=2, description="Spline bins of the unconditional marginal of each coordinate.")
    bound: float = Field(6.0, gt=0, description="Splines on the line act on [−bound, bound], in standard deviations.")
    full_affine: bool = Field(
        default=True, description="A learned triangular affine map of the stiff coordinates after the couplings."
    )
    mask_seed: int = Field(0, ge=0, description="Seed of the coupling masks and of the initial weights.")
    stochastic: StochasticConfig = StochasticConfig()
    annealing: AnnealedSamplerConfig = AnnealedSamplerConfig()
    continuous: ContinuousConfig = ContinuousConfig()
    autoregressive: AutoregressiveConfig = AutoregressiveConfig()

    @property
    def is_bijective(self) -> bool:
        """Whether the Generator has a density: no stochastic blocks, no noise in its weights, no population."""
        stochastic = self.family == "stochastic_flow" and self.stochastic.kernel != "none"
        noisy = self.family == "continuous_flow" and self.continuous.weights == "perturbation"
        return not stochastic and not noisy and not self.is_piloted

    @property
    def is_piloted(self) -> bool:
        """Whether a pilot makes its checkpoint, and nothing is trained."""
        return self.family in ("smc", "annealed_importance")


class AnnealingConfig(Section):
    """The way from an untrained model to the target; the terms of the objective act where it leaves them room."""

    method: Literal["none", "cooling", "ladder", "transport"] = Field(
        "none",
        description="cooling: the terms act at a temperature that falls step by step; ladder: TA-BG, the terms act at "
        "the hottest temperature, then buffers at falling ones; transport: CMT, buffers within a trust region. After "
        "any of them the terms act at the system's temperature.",
    )
    hottest: float = Field(4.0, ge=1, description="cooling, ladder: first temperature, relative to the system's.")
    hot_steps: int = Field(2000, ge=0, description="cooling, ladder: steps of the terms at the hottest temperature.")
    cooling_steps: int = Field(4000, ge=0, description="cooling: steps from the hottest to the system's temperature.")
    cold_stages: int = Field(
        0, ge=0, description="cooling, ladder: further buffers at the system's temperature, before the terms act again."
    )
    stages: int = Field(10, ge=1, description="ladder: temperatures below the hottest; transport: constrained steps.")
    stage_steps: int = Field(500, ge=1, description="Optimisation steps per buffer.")
    buffer_size: int = Field(200_000, ge=1, description="Model samples per buffer.")
    clip_fraction: float = Field(
        1e-4, ge=0, lt=1, description="Share of a buffer whose weights are lowered to the largest of the others."
    )
    control_variate: bool = Field(
        default=True, description="Weighted rows with a control variate; false = resampled rows."
    )
    chi_squared: float = Field(0.0, ge=0, description="Weight of χ²(p‖q) beside the KL divergence, for rare states.")
    max_kl: float = Field(0.3, gt=0, description="transport: KL divergence per stage, in nats.")
    max_entropy_loss: float | None = Field(
        None, gt=0, description="transport: entropy lost per stage, in nats; None = no bound."
    )

    @property
    def n_buffers(self) -> int:
        """Buffers that are filled."""
        return {"cooling": self.cold_stages, "ladder": self.stages + self.cold_stages, "transport": self.stages}.get(
            self.method, 0
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds its references."""
        named = {"cooling": ["Cooling"], "ladder": ["TemperatureLadder"], "transport": ["MassTransport"]}
        cold = ["TemperatureLadder"] if self.method == "cooling" and self.cold_stages else []
        return tuple(named.get(self.method, []) + cold)


class BootstrapConfig(Section):
    """Samples of p²/q by annealing from the flow, kept and replayed (FAB); see boltzflow.objectives."""

    weight: float = Field(0.0, ge=0, description="Weight of the term.")
    levels: int = Field(8, ge=1, description="HMC steps from q to p²/q.")
    leapfrog: int = Field(4, ge=1, description="Leapfrog steps of each; every one costs an energy with force.")
    step_size: float = Field(0.1, gt=0, description="Leapfrog step at first, in the flow's coordinates; adapted.")
    updates: int = Field(8, ge=1, description="Optimisation steps per annealed batch of reverse_batch_size samples.")
    buffer_batches: int = Field(64, ge=1, description="Batches that are kept for replay.")


class ObjectiveConfig(Section):
    """What is minimised: a weighted sum of the terms whose weight is not 0."""

    likelihood: float = Field(1.0, ge=0, description="Weight of the negative log-likelihood of the data.")
    force_likelihood: float = Field(
        0.0, ge=0, description="The same by path gradients: the data give their forces, evaluated once, for less noise."
    )
    reverse_kl: float = Field(0.0, ge=0, description="Weight of the reverse KL divergence (energy training).")
    path_gradient: bool = Field(
        default=False, description="Drop the zero-mean score term from the reverse-KL gradient."
    )
    energy_cut: float = Field(
        1e3, gt=0, description="Reverse KL: energies more than this (kT) above the base level grow logarithmically."
    )
    energy_base: float = Field(0.0, description="Reverse KL: base level of energy_cut, in kT.")
    coverage: float = Field(
        0.0, ge=0, description="Weight of the likelihood of data of which the model has too little."
    )
    self_forward_kl: float = Field(0.0, ge=0, description="Weight of KL(p‖q) from the model's own weighted samples.")
    self_reverse_kl: float = Field(0.0, ge=0, description="Weight of KL(q‖p) from the model's own weighted samples.")
    path_forward_kl: float = Field(0.0, ge=0, description="The same as self_forward_kl, by path gradients.")
    path_reverse_kl: float = Field(0.0, ge=0, description="The same as self_reverse_kl, by path gradients.")
    path_min_efficiency: float = Field(
        0.0, ge=0, lt=1, description="path_forward_kl: batches below it train an α-divergence with flatter weights."
    )
    path_max_residual: float | None = Field(
        None, gt=0, description="Path gradients: longest derivative of a row by x, in units of the median of the batch."
    )
    chi_squared: float = Field(0.0, ge=0, description="Weight of log(1 + χ²(p‖q)) from the model's own samples.")
    log_variance: float = Field(0.0, ge=0, description="Weight of ½ Var(log w) on the model's own paths.")
    log_dispersion: float = Field(0.0, ge=0, description="Weight of ½ Var(log w) on the data.")
    bootstrap: BootstrapConfig = BootstrapConfig()
    flow_matching: FlowMatchingConfig = FlowMatchingConfig()
    flow_map: FlowMapConfig = FlowMapConfig()
    annealing: AnnealingConfig = AnnealingConfig()
    data: str | None = Field(None, description="Ensemble file with training frames; None = what ships with the system.")

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of the terms that have a weight."""
        weights = {
            "MaximumLikelihood": self.likelihood,
            "ForceLikelihood": self.force_likelihood,
            "CoverageLikelihood": self.coverage,
            "ReverseKL": self.reverse_kl,
            "path gradient": self.reverse_kl * self.path_gradient,
            "SelfWeightedKL": self.self_forward_kl + self.self_reverse_kl,
            "log-variance loss": self.self_reverse_kl,
            "PathKL": self.path_forward_kl + self.path_reverse_kl,
            "ChiSquared": self.chi_squared,
            "LogVariance": self.log_variance + self.log_dispersion,
            "AnnealedBootstrap": self.bootstrap.weight,
            "FlowMapDistillation": self.flow_map.weight,
            self.flow_matching.method_name: self.flow_matching.weight,
            "pair_log_weights": self.flow_matching.weight * (self.flow_matching.entropy or 0.0),
        }
        return (*(name for name, weight in weights.items() if weight > 0), *self.annealing.methods)


class TrainingConfig(Section):
    """The optimisation loop."""

    steps: int = Field(10_000, ge=1)
    batch_size: int = Field(512, ge=1, description="Data rows per step.")
    reverse_batch_size: int = Field(512, ge=1, description="Model samples per step for reverse KL.")
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(200, ge=0)
    final_learning_rate_fraction: float = Field(0.01, ge=0, le=1, description="Cosine decay ends here.")
    weight_decay: float = Field(0.0, ge=0)
    clip_gradient: float | None = Field(
        10.0, gt=0, description="Maximal gradient norm; None = no clipping. Clipped steps are counted."
    )
    ema_decay: float = Field(0.999, ge=0, lt=1)
    checkpoint_every: int = Field(500, ge=1)
    log_every: int = Field(50, ge=1)
    seed: int | None = Field(None, ge=0, description="Random by default; recorded.")
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    threads: int | None = Field(None, ge=1, description="torch threads; None = torch's default.")
    compile: bool = Field(
        default=False,
        description="continuous_flow: compile the field; minutes at the start, then shorter steps.",
    )
    natural_gradient: NaturalGradientConfig = NaturalGradientConfig()
    cuda_graph: bool = Field(
        default=False, description="Replay steps as a CUDA graph: the same numbers with one launch; terms by KL only."
    )
    shards: int | None = Field(
        None,
        ge=1,
        description="Equal parts of a batch, each with a random stream and a mean of its own, which processes share; "
        "None = the number of processes that start the run.",
    )

    @property
    def optimizer(self) -> str:
        """Name by which `boltzflow.cite` finds its references."""
        return "NaturalGradient" if self.natural_gradient.rows else "AdamW"


class SamplingConfig(Section):
    """How ensembles are drawn."""

    n: int = Field(20_000, ge=1)
    batch_size: int = Field(1000, ge=1)
    seed: int | None = Field(None, ge=0)
    dtype: Literal["float32", "float64"] = "float32"


class SimulationConfig(Section):
    """A reference by Markov chains; what is None follows from the size of the system, see boltzflow.simulation."""

    method: Literal["pt", "md", "neutra"] = Field(
        "pt", description="Parallel tempering, plain OpenMM dynamics, or HMC in the latent coordinates of `moves`."
    )
    n: int | None = Field(None, ge=1, description="Frames in the file, over all chains and kept temperatures.")
    chains: int | None = Field(None, ge=1, description="Independent ladders of temperatures, or MD replicas.")
    stride: int | None = Field(None, ge=1, description="Sweeps, or MD steps, between frames.")
    burn_in: int | None = Field(None, ge=1, description="Sweeps, or MD steps, left out.")
    max_temperature: float = Field(1.8, ge=1, description="PT: of the hottest rung, relative to the system's.")
    keep: Literal["cold", "all"] = Field(
        "cold", description="PT: frames of the system's temperature, or of all, weighted by MBAR."
    )
    moves: str | None = Field(None, description="PT, neutra: run folder or checkpoint of a generator of this system.")
    moves_every: int = Field(5, ge=1, description="PT: sweeps between learned moves.")
    moves_proposals: int | None = Field(
        None, ge=1, description="PT: proposals per learned move, one of which i-SIR chooses; None = one, by Metropolis."
    )
    moves_training: int = Field(
        0, ge=0, description="PT: optimisation steps of the generator per sweep, on the chains, in the burn-in."
    )
    seed: int | None = Field(None, ge=0, description="Random by default; recorded.")
    device: str = "cpu"
    shards: int | None = Field(
        None,
        ge=1,
        description="Equal parts of the chains, each with a random stream and step sizes of its own, which processes "
        "share; None = the number of processes that start the simulation.",
    )


class AnalysisConfig(Section):
    """What `analyze` compares with."""

    reference: str | None = Field(None, description="Reference ensemble file; None = what ships with the system.")
    cv: str | None = Field(None, description="Collective variable of the default profile.")


class RunConfig(Section):
    """One run."""

    system: str
    simulation: SimulationConfig = SimulationConfig()
    generator: GeneratorConfig = GeneratorConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    analysis: AnalysisConfig = AnalysisConfig()

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of what trains the Generator."""
        likelihood = "MaximumLikelihood" if self.generator.is_bijective else "PathLikelihood"
        return tuple(likelihood if name == "MaximumLikelihood" else name for name in self.objective.methods)


def load_config(path: str | Path, *, overrides: list[str] | None = None) -> RunConfig:
    """Read a run from YAML.

    Relative paths in `system`, `simulation.moves`, `generator.annealing.base`, `objective.data` and
    `analysis.reference` mean the folder of the YAML file if they exist there, and the working directory otherwise; one
    that starts with a dot and exists in neither means the former. A bare word in `system` is never a path.

    Args:
        path: YAML file.
        overrides: "section.key=value" strings, values in YAML syntax, paths relative to the working directory.

    Raises:
        FileNotFoundError: If there is no such file.
        FormatError: If it is not YAML of the expected shape.
        UnknownNameError: If a key does not exist (named, with the nearest valid ones).
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"run configuration {path}: no such file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"run configuration {path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise FormatError(
            f"run configuration {path}: expected sections (system, generator, ...), got {type(values).__name__}."
        )
    _resolve_paths(values, path.resolve().parent)
    for override in overrides or []:
        _override(values, override)
    return parse_config(values, origin=str(path))


def parse_config(values: dict[str, Any], *, origin: str = "run configuration") -> RunConfig:
    """Make a RunConfig of a nested dictionary; errors name the key, what was expected and what was found."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        messages = [_explain(item) for item in error.errors()]
        kind = UnknownNameError if any(i["type"] == "extra_forbidden" for i in error.errors()) else FormatError
        raise kind(f"{origin}: " + "; ".join(messages)) from None


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Where two dumped configurations differ, in words: "section.key: this there, that here".

    Args:
        mine: What is asked for.
        theirs: What was found.
        prefix: Of the keys.
    """
    found = []
    for key in [*mine, *(k for k in theirs if k not in mine)]:
        here, there = mine.get(key), theirs.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            found += differences(here, there, prefix=f"{prefix}{key}.")
        elif here != there:
            found.append(f"{prefix}{key}: {there} there, {here} here")
    return found


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the paths of a run absolute that are relative to the folder of its file."""
    if isinstance(values.get("system"), str):
        values["system"] = _resolved_system(values["system"], folder)
    paths = ("simulation.moves", "generator.annealing.base", "objective.data", "analysis.reference")
    for *sections, key in (path.split(".") for path in paths):
        node: Any = values
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        # names of systems that ship are no paths, see `checkpoint_file`
        if isinstance(node, dict) and isinstance(node.get(key), str) and node[key] not in list_systems():
            node[key] = _resolved(node[key], folder)


def _resolved(value: str, folder: Path) -> str:
    here = folder / value  # an absolute value stays as it is
    if here.exists() or (value.startswith(".") and not Path(value).exists()):
        return str(here.resolve())
    return value


def _resolved_system(value: str, folder: Path) -> str:
    name, at, kelvin = value.rpartition("@") if not (folder / value).exists() else (value, "", "")
    name = name or value
    # a bare word is the name of a system that ships, or a folder of the working directory
    if not name.startswith(".") and len(Path(name).parts) == 1:
        return value
    resolved = _resolved(name, folder)
    return f"{resolved}@{kelvin}" if at else resolved


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise FormatError(f"--set {override!r}: expected section.key=value, e.g. training.steps=5000.")
    *sections, last = key.strip().split(".")
    node = values
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise FormatError(f"--set {override!r}: {section!r} is a value, not a section.")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FormatError(f"--set {override!r}: the value is not valid YAML: {error}") from None


def _explain(item: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        model: type[BaseModel] = RunConfig
        for part in item["loc"][:-1]:
            model = model.model_fields[str(part)].annotation
        return f"unknown key {key!r}; {nearest(str(item['loc'][-1]), model.model_fields)}"
    if item["type"] == "missing":
        return f"key {key!r} is missing"
    return f"key {key!r}: {item['msg']}, got {item['input']!r}"
