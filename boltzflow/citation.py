"""`boltzflow.cite`: the BibTeX of exactly the methods that made a result, as they were recorded with it."""

import functools
import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzflow.errors import FormatError
from boltzflow.io.provenance import Provenance, method_names

if TYPE_CHECKING:
    from boltzflow.io.config import RunConfig

__all__ = ["REFERENCES", "cite"]

CORE = ("boltzflow", "Generator", "PyTorch", "OpenMM", "MDTraj", "kish_ess", "pareto_k")
"""What is cited when nothing is asked for in particular."""

REFERENCES: dict[str, tuple[str, ...]] = {
    # the package and its tools
    "boltzflow": ("boltzflow",),
    "MDTraj": ("mcgibbon2015",),
    "OpenMM": ("eastman2024",),
    "OpenMMPotential": ("eastman2024",),
    "PyTorch": ("paszke2019",),
    # generators, paths and transitions
    "Generator": ("noe2019", "wu2020"),
    "EnergyPath": ("neal2001",),
    "GeometricPath": ("neal2001",),
    "TemperedPath": ("neal2001",),
    "SquaredPath": ("midgley2023",),
    "PullbackPath": (),
    "Affine": (),
    "AffineCoupling": ("dinh2017",),
    "AutoregressiveFlow": ("zhai2024", "tan2025"),
    "ApproximateAdaptiveFlow": ("grathwohl2019", "dormand1980"),
    "ApproximateHutchinsonFlow": ("grathwohl2019", "peng2024"),
    "BAOAB": ("leimkuhler2013", "nilmeier2011", "sivak2013"),
    "BBK": ("bruenger1984", "nilmeier2011"),
    "BlockToInternal": ("noe2019",),
    "ComposedField": ("satorras2021",),
    "DrawNoise": ("peng2024", "peng2026"),
    "DrawVelocities": (),
    "DropNoise": ("peng2024", "peng2026"),
    "DropPlacement": ("tan2025",),
    "DropVelocities": (),
    "E3NNField": ("geiger2022", "batzner2022"),
    "EGNNField": ("satorras2021", "satorras2021flows", "klein2023"),
    "ElementwiseSpline": ("durkan2019",),
    "EmbeddedField": ("satorras2021", "koehler2020"),
    "EulerFlow": ("behrmann2019", "jung2024"),
    "FlowPerturbation": ("peng2024", "peng2026"),
    "FlowMapDistillation": ("rehman2025",),
    "FlowMatching": ("lipman2023", "klein2023", "tong2024", "chen2024"),
    "FrameField": ("puny2022",),
    "HollowField": ("chen2019", "schuett2021"),
    "GaussianPerturbation": ("peng2024",),
    "HMC": ("duane1987", "neal2011"),
    "InternalToCartesian": ("parsons2005",),
    "InterpolantSDE": ("albergo2023", "nilmeier2011"),
    "MALA": ("roberts1996",),
    "OBABO": ("bussi2007", "nilmeier2011", "sivak2013"),
    "OverdampedLangevin": ("nilmeier2011", "wu2020"),
    "NeighbourField": ("daw1984", "drautz2019"),
    "PaiNNField": ("schuett2021",),
    "PairField": ("koehler2020",),
    "ParticleDisplacement": ("metropolis1953",),
    "PerturbedFlow": ("peng2024", "peng2026"),
    "RandomWalkMetropolis": ("metropolis1953",),
    "GatedField": ("dauphin2017",),
    "ShallowField": (),
    "RotationFlow": ("crouch1993", "chen2024"),
    "RungeKuttaFlow": ("kutta1901",),
    "SpeciesSwap": ("grigera2001", "ninarello2017"),
    "SplineCoupling": ("durkan2019",),
    "SystematicResampling": ("kitagawa1996", "delmoral2006"),
    "RigidMove": ("metropolis1953",),
    "RotationHMC": ("beskos2011",),
    "RotationField": (),
    "TorusField": ("chen2024",),
    "TorsionBlockFlow": ("hastings1970", "wang2018"),
    "TorsionMove": ("metropolis1953",),
    "TransformerField": ("vaswani2017", "abramson2024"),
    "TriangularAffine": (),
    "UnadjustedHMC": ("duane1987", "nilmeier2011"),
    "annealing from a flow": ("tan2025",),
    "circular spline": ("rezende2020",),
    "controlled": ("benhamu2024",),
    "constant CESS schedule": ("zhou2016",),
    "lineage error": ("chan2013", "lee2018"),
    "population annealing": ("hukushima2003", "wang2015"),
    # objectives and training
    "AdamW": ("loshchilov2019",),
    "AnnealedBootstrap": ("midgley2023",),
    "AnnealedTransport": ("arbel2021", "matthews2022"),
    "ChiSquared": ("dieng2017", "midgley2023"),
    "Cooling": ("schopmans2025",),
    "CoverageLikelihood": ("midgley2023",),
    "EnergyWeightedMatching": ("dern2025", "lipman2023"),
    "ForceLikelihood": ("vaitl2024", "vaitl2025"),
    "InterpolantMatching": ("albergo2023",),
    "LogVariance": ("richter2020", "sendera2024"),
    "MassTransport": ("klitzing2025",),
    "MaximumLikelihood": ("noe2019",),
    "Mixture": ("noe2019",),
    "NaturalGradient": ("amari1998", "chenheyl2024"),
    "PathLikelihood": ("wu2020", "williams1992"),
    "PathKL": ("roeder2017", "vaitl2024", "tucker2019", "bauer2021", "amari1985"),
    "Rectification": ("liu2023",),
    "ReverseKL": ("noe2019",),
    "RotationMatching": ("chen2024", "bose2024"),
    "SelfWeightedKL": ("mueller2019",),
    "Sequence": (),
    "TemperatureLadder": ("schopmans2025",),
    "fit_transport": ("vaikuntanathan2008", "oates2017", "arbel2021"),
    "pair_log_weights": ("calvo2025", "sinkhorn1964"),
    "log-variance loss": ("richter2020",),
    "path gradient": ("roeder2017", "vaitl2024"),
    # simulation
    "dual averaging": ("hoffman2014", "nesterov2009"),
    "flow-MCMC": ("gabrie2022",),
    "mass adaptation": ("welford1962", "carpenter2017"),
    "ISIR": ("tjelmeland2004", "andrieu2018", "samsonov2022"),
    "LearnedMove": ("hastings1970", "noe2019", "gabrie2022"),
    "NeuTra": ("hoffman2019", "parno2018"),
    "ParallelTempering": ("hukushima1996",),
    "PathExchange": ("hukushima1996", "fukunishi2002"),
    "ReplicaExchange": ("hukushima1996", "fukunishi2002"),
    "molecular_dynamics": ("zhang2019",),
    "step size adaptation": ("robbins1951",),
    # estimates
    "bar": ("bennett1976", "shirts2003"),
    "exp_free_energy": ("zwanzig1954", "jarzynski1997"),
    "family_statistics": ("wang2015",),
    "kish_ess": ("kish1965",),
    "mbar": ("shirts2008",),
    "pareto_k": ("vehtari2024", "zhang2009"),
    "protocol_weights": ("shirts2008", "veach1995"),
    "reweight": ("zwanzig1954",),
    "bulk_ess": ("vehtari2021",),
    "split_rhat": ("vehtari2021",),
    "statistical_inefficiency": ("chodera2007", "shirts2008"),
    "tail_ess": ("vehtari2021",),
    # bases and targets
    "CorrelatedMixture": ("peng2024",),
    "Dirac": (),
    "DoubleWell": ("noe2019", "wu2020"),
    "DoubleWellCluster": ("koehler2020",),
    "FramesBase": (),
    "Funnel": ("neal2003",),
    "Gaussian": (),
    "GaussianMixture": (),
    "GeneratorBase": (),
    "GeneratorTarget": (),
    "Harmonic": (),
    "ImageDensity": (),
    "LennardJonesCluster": ("koehler2020",),
    "ManyWell": ("midgley2023",),
    "MeanFreeGaussian": ("koehler2020",),
    "NoisyBase": ("peng2024", "peng2026"),
    "ProductBase": (),
    "Tempered": (),
    "TernaryLiquid": ("jung2023", "parmar2020"),
    "TruncatedNormal": (),
    "Uniform": (),
    "UniformRotations": ("marsaglia1972",),
    "VonMises": ("best1979",),
    "Wells": (),
    # measures of constraints
    "mass-metric constraints": ("fixman1974", "ciccotti2008"),
    "rigid constraints": ("ciccotti2008",),
    "stiff constraints": ("fixman1974", "vankampen1984"),
    # terms of the force field
    "ACE surface area": ("schaefer1998",),
    "AlchemicalGeneralizedBorn": ("onufriev2004", "hawkins1995"),
    "AlchemicalNonbonded": ("beutler1994",),
    "CMAPTorsions": ("mackerell2004",),
    "CustomBonds": (),
    "CustomGeneralizedBorn": (),
    "CustomPairs": (),
    "GBn": ("mongan2007",),
    "GBn2": ("nguyen2013",),
    "GeneralizedBorn": ("onufriev2004", "hawkins1995"),
    "HarmonicAngles": (),
    "HarmonicBonds": (),
    "Nonbonded": (),
    "PeriodicNonbonded": (),
    "PeriodicTorsions": (),
    # parameters, by the names of OpenMM's files
    "amber03.xml": ("duan2003",),
    "amber14-all.xml": ("maier2015",),
    "amber14/protein.ff14SB.xml": ("maier2015",),
    "amber19-all.xml": ("tian2020",),
    "amber19/protein.ff19SB.xml": ("tian2020",),
    "amber96.xml": ("kollman1997",),
    "amber99sb.xml": ("hornak2006",),
    "amber99sbildn.xml": ("hornak2006", "lindorff2010"),
    "charmm36.xml": ("best2012",),
    "charmm36_2024.xml": ("best2012", "huang2017"),
    "amber03_obc.xml": ("onufriev2004",),
    "amber10_obc.xml": ("onufriev2004",),
    "amber96_obc.xml": ("onufriev2004",),
    "amber99_obc.xml": ("onufriev2004",),
    "implicit/gbn.xml": ("mongan2007",),
    "implicit/gbn2.xml": ("nguyen2013",),
    "implicit/hct.xml": ("hawkins1996",),
    "implicit/obc1.xml": ("onufriev2004",),
    "implicit/obc2.xml": ("onufriev2004",),
}
"""Name of a method, of its class where it has one, to keys of `references.bib`; () where there is nothing to cite."""


def cite(run: Any = None) -> str:
    """BibTeX of the methods that made a result, each entry headed by a comment that says what it is cited for.

    Nothing is guessed: ensembles and checkpoints record what was used, down to the terms of the force field and to what
    trained the generator. Names without a known reference are listed in a comment.

    Args:
        run: An Ensemble, a SystemDifference, a Generator, a Target, a System, a RunConfig, a Checkpoint or a
            Provenance; the path of an ensemble file, a checkpoint, the YAML file of a run, a run folder or a system
            folder; or the name of a system. None gives the core references of the package.

    Returns:
        The text of a `.bib` file.

    Raises:
        FormatError: If a file is none of these.
        TypeError: If an object is none of these.
        UnknownNameError: If a name is neither a path nor a system.

    Example:
        >>> import boltzflow
        >>> boltzflow.cite().splitlines()[1]
        '@misc{boltzflow,'
    """
    if isinstance(run, str | os.PathLike):
        run = _open(run)
    names = method_names("boltzflow", *_methods(run), "PyTorch")
    used_for: dict[str, list[str]] = {}
    for name in names:
        for key in REFERENCES.get(name, ()):
            used_for.setdefault(key, []).append(name)
    parts = [f"% used for: {', '.join(used)}\n{_entries()[key]}" for key, used in used_for.items()]
    unknown = [name for name in names if name not in REFERENCES]
    if unknown:
        parts.insert(0, f"% no reference is known here for: {', '.join(unknown)}\n")
    if isinstance(_provenance(run), Provenance) and not _provenance(run).methods:
        parts.insert(0, "% the methods of this result were not recorded; these are the core references\n")
    return "\n".join(parts)


def _provenance(run: Any) -> Any:
    return run if isinstance(run, Provenance) else getattr(run, "provenance", None)


def _methods(run: Any) -> list[str]:
    from boltzflow.ensemble import Ensemble
    from boltzflow.io.checkpoint import Checkpoint
    from boltzflow.io.config import RunConfig
    from boltzflow.systems import SystemFolder, load_system

    if run is None:
        return list(CORE)
    if isinstance(run, Ensemble):
        # what every error bar and warning of such an ensemble rests on
        errors = ("statistical_inefficiency",) if run.chain is not None else ("kish_ess", "pareto_k")
        return method_names(*(run.provenance.methods or CORE), *errors)
    if isinstance(run, Provenance):
        return run.methods or list(CORE)
    if isinstance(run, SystemFolder):
        return method_names(run.target)
    if isinstance(run, Checkpoint):
        return method_names(*_built(run.config), *run.methods, load_system(run.config.system).target)
    if isinstance(run, RunConfig):
        simulated = _simulated(run) if "simulation" in run.model_fields_set else []
        trains = run.model_fields_set & {"generator", "objective", "training"} or not simulated
        # levels that are given are not looked for
        found = ("constant CESS schedule",) if run.generator.annealing.levels is None else ()
        by = (*found, "step size adaptation") if run.generator.is_piloted else (*run.methods, run.training.optimizer)
        trained = [*_built(run), *by] if trains else []
        return method_names(*trained, *simulated, load_system(run.system).target)
    if hasattr(run, "methods") or hasattr(run, "reduced_energy"):
        return method_names(run)
    raise TypeError(
        f"cite: expected an Ensemble, Generator, Target, System, RunConfig, Checkpoint, Provenance, path or name, got "
        f"{type(run).__name__}."
    )


def _built(config: "RunConfig") -> list[str]:
    """The parts of the Generator that a configuration describes."""
    from boltzflow.generators.families import build_generator
    from boltzflow.systems import load_system

    return method_names(build_generator(load_system(config.system), config.generator))


def _simulated(config: "RunConfig") -> list[str]:
    """What the simulation of a configuration uses."""
    from boltzflow.simulation.settings import chains_of, complete
    from boltzflow.systems import load_system

    if config.simulation.method == "md":
        return ["molecular_dynamics"]
    system = load_system(config.system)
    # one ladder has the same methods as many
    settings = complete(config.simulation, dimension=system.dimension).model_copy(update={"chains": 1})
    weighted = ["mbar"] if settings.keep == "all" else []
    return method_names(chains_of(system, settings, device="cpu", seed=0), *weighted)


def _open(name: str | os.PathLike) -> Any:
    """What a path or the name of a system stands for."""
    from boltzflow.ensemble import Ensemble
    from boltzflow.io.checkpoint import load_checkpoint
    from boltzflow.io.config import load_config, parse_config
    from boltzflow.systems import load_system

    path = Path(name)
    if (path / "checkpoint.pt").is_file():
        return load_checkpoint(path / "checkpoint.pt")
    if (path / "run.json").is_file():
        return parse_config(json.loads((path / "run.json").read_text(encoding="utf-8")), origin=str(path / "run.json"))
    readers = {".h5": Ensemble.load, ".pt": load_checkpoint, ".yaml": load_config, ".yml": load_config}
    if path.suffix in readers:
        return readers[path.suffix](path)
    if path.is_file():
        raise FormatError(f"cite {path}: expected an ensemble (.h5), a checkpoint (.pt) or a run (.yaml).")
    return load_system(name)


@functools.cache
def _entries() -> dict[str, str]:
    """Key to entry of `references.bib`."""
    text = resources.files("boltzflow").joinpath("references.bib").read_text(encoding="utf-8")
    return {re.match(r"@\w+\{([^,]+),", entry).group(1): entry + "\n" for entry in re.split(r"\n\n+", text.strip())}
