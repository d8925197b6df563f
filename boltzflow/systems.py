"""Physical systems, one folder each: the registry is the folder listing, and any folder of a user works as well."""

import copy
import hashlib
import json
import logging
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.coordinates.constraints import Constraints
from boltzflow.coordinates.links import fragment_links
from boltzflow.coordinates.sector import LabelSector
from boltzflow.coordinates.zmatrix import ZMatrix
from boltzflow.errors import (
    CheckpointMismatchError,
    FormatError,
    NotAMoleculeError,
    UnknownNameError,
    UnsupportedForceError,
    nearest,
)
from boltzflow.forcefield.alchemical import alchemical, lambda_schedule
from boltzflow.forcefield.compiled import CompiledForceField
from boltzflow.forcefield.potential import ForceField
from boltzflow.forcefield.serialized import SerializedSystem, read_serialized
from boltzflow.generators.families import build_generator
from boltzflow.generators.generator import Generator
from boltzflow.io.alchemical import check_lambda, select_atoms
from boltzflow.io.checkpoint import Checkpoint, load_checkpoint
from boltzflow.io.config import RunConfig, load_config
from boltzflow.io.system_definition import SystemDefinition, read_definition
from boltzflow.io.system_folders import find_folder, list_systems, shipped_folder
from boltzflow.io.system_name import SystemName, read_name
from boltzflow.run import make_rng
from boltzflow.targets.molecule import CONSTRAINT_MEASURES, MoleculeTarget, as_temperature
from boltzflow.targets.named import named_target
from boltzflow.targets.target import Target

if TYPE_CHECKING:
    from boltzflow.ensemble import Ensemble

__all__ = [
    "AnalyticSystem",
    "System",
    "SystemDefinition",
    "SystemFolder",
    "cache_folder",
    "list_systems",
    "load_system",
    "probe_positions",
]

logger = logging.getLogger(__name__)

ENERGY_TOLERANCE = 1e-6
"""Largest |ΔU|/max(1, |U|) between a recorded and a computed energy."""
N_EXACT = 10_000
"""Exact samples that stand in for a reference ensemble."""


@dataclass(frozen=True, eq=False)
class SystemFolder:
    """What every system has: a definition, a Target, recipes, and the checkpoints and references that ship.

    Args:
        folder: Holds `system.yaml` and `recipes/`.
        definition: What `system.yaml` says.
        temperature: In K; None where the energy is in kT from the start.
        dtype: Of the arithmetic of the energy; energies are float64 on return in either case.
    """

    folder: Path
    definition: SystemDefinition
    temperature: float | None
    dtype: torch.dtype = field(default=torch.float64)

    def _called(self, text: str, temperature: float | None) -> SystemName:
        return SystemName(text, temperature=temperature)

    @property
    def name(self) -> str:
        """Name, with measure, temperature and λ where these are not the system's own; `load_system` reads it back."""
        own = self.temperature == self.definition.temperature
        return str(self._called(self.definition.name, None if own else self.temperature))

    @property
    def source(self) -> str:
        """What `load_system` finds it by: its name if it ships, else its folder at its temperature."""
        if self.folder.parent == shipped_folder("systems"):
            return self.name
        return str(self._called(str(self.folder), self.temperature))

    @property
    def description(self) -> str:
        """One sentence."""
        return self.definition.description

    @property
    def data_folder(self) -> Path:
        """Where its reference ensemble and its checkpoints are."""
        if self.definition.data is not None:
            return self.folder / self.definition.data
        return shipped_folder("data") / self.definition.name

    @property
    def recipes(self) -> list[str]:
        """Names of the run configurations that come with the system."""
        return sorted(path.stem for path in (self.folder / "recipes").glob("*.yaml"))

    def recipe(self, name: str | None = None) -> RunConfig:
        """Read a run configuration that comes with the system.

        Args:
            name: By default the one that made the shipped checkpoint.

        Raises:
            UnknownNameError: If there is none of that name.
        """
        name = name or self.definition.recipe
        if name not in self.recipes:
            hint = nearest(str(name), self.recipes)
            raise UnknownNameError(f"system {self.definition.name} has no recipe {name!r}; {hint}")
        return load_config(self.folder / "recipes" / f"{name}.yaml")

    @property
    def checkpoint_path(self) -> Path | None:
        """The shipped checkpoint of the default recipe; None if there is none."""
        path = self.data_folder / "checkpoint.pt"
        return path if path.is_file() else None

    def load_generator(
        self,
        recipe: str | None = None,
        *,
        checkpoint: str | os.PathLike | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Generator:
        """Load a trained Generator, with averaged parameters and in evaluation mode.

        Args:
            recipe: Whose shipped checkpoint to load; by default that of the system's default recipe.
            checkpoint: Another checkpoint file of this system.
            dtype: Of parameters and samples; log-weights are float64 in either case.
            device: Where it runs.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            UnknownNameError: If there is no such recipe.
            CheckpointMismatchError: If the checkpoint is damaged or belongs to another system.
        """
        path = Path(checkpoint) if checkpoint is not None else self.find_checkpoint(recipe)
        return self.generator_from(load_checkpoint(path, self), dtype=dtype, device=device)

    def generator_from(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Generator:
        """Build the Generator of a checkpoint that was read by `load_checkpoint`."""
        if checkpoint.fingerprint != self.fingerprint:
            raise CheckpointMismatchError(
                f"the checkpoint is for {checkpoint.system!r}, not for {self.name!r}; load that system."
            )
        # at its own temperature, which the constants of the model are made from; weights are for any target
        trained_for = (
            self if checkpoint.temperature == self.temperature else replace(self, temperature=checkpoint.temperature)
        )
        generator = build_generator(trained_for, checkpoint.config.generator, dtype=dtype, device=device)
        checkpoint.load_into(generator)
        generator.trained_by = checkpoint.methods
        return generator.eval()

    def trained_for(self, checkpoint: Checkpoint) -> "System | AnalyticSystem":
        """The system that a checkpoint was trained for, at its temperature, in the dtype of this one."""
        return load_system(checkpoint.config.system, dtype=self.dtype)

    def find_checkpoint(self, recipe: str | None = None) -> Path:
        """The shipped checkpoint of a recipe.

        Raises:
            UnknownNameError: If there is no such recipe.
            FileNotFoundError: If it has no checkpoint.
        """
        if recipe is not None:
            self.recipe(recipe)
        default = recipe is None or recipe == self.definition.recipe
        path = self.data_folder / ("checkpoint.pt" if default else f"checkpoint-{recipe}.pt")
        if not path.is_file():
            name = recipe or self.definition.recipe
            run = f"{name or 'RUN'}.yaml"
            choice = "" if name else f" Its recipes are {', '.join(self.recipes) or 'none'}; name one with --recipe."
            raise FileNotFoundError(
                f"system {self.name}: no trained checkpoint {path}. Train one with "
                f"`boltzflow train {self.folder / 'recipes' / run}` and sample from its run "
                f"folder.{choice}"
            )
        return path

    @property
    def has_reference(self) -> bool:
        """Whether `reference` gives an ensemble."""
        return (self.data_folder / "reference.h5").is_file()

    def reference(self) -> "Ensemble | None":
        """The reference ensemble that ships; None if there is none."""
        from boltzflow.ensemble import Ensemble

        path = self.data_folder / "reference.h5"
        return Ensemble.load(path) if path.is_file() else None


@dataclass(frozen=True, eq=False)
class System(SystemFolder):
    """A molecule under its force field at a temperature; everything heavy is made on first use.

    Args:
        folder: Holds `system.yaml`, the serialised System, the topology and `recipes/`.
        definition: What `system.yaml` says.
        temperature: In K.
        dtype: Of the torch force field's arithmetic; energies are float64 on return in either case.
        constraint_measure: In place of that of the definition, see `MoleculeTarget`.
        lam: λ of the alchemical atoms, 1 for the molecule as it is, 0 where they do not interact with the rest.

    Example:
        >>> from boltzflow import load_system
        >>> system = load_system("alanine_dipeptide")
        >>> system.n_atoms, system.dimension, system.temperature
        (22, 60, 300.0)
    """

    constraint_measure: str | None = None
    lam: float = 1.0

    def _called(self, text: str, temperature: float | None) -> SystemName:
        return SystemName(text, self.constraint_measure, temperature, self.lam)

    def at_lambda(self, lam: float, *, temperature: float | None = None) -> "System":
        """The system at another λ of its alchemical atoms.

        Args:
            lam: From 1, all interactions, to 0, none between the alchemical atoms and the rest.
            temperature: In K; by default the same.

        Raises:
            FormatError: If λ is not in [0, 1], or `system.yaml` has no alchemical atoms.
        """
        check_lambda(lam, self.definition.name, self.definition.alchemical)
        found = replace(self, lam=float(lam), temperature=self.temperature if temperature is None else temperature)
        shared = ("_structure", "zmatrix", "sector", "_serialized", "_system_bytes", "_openmm_system", "_forcefield")
        vars(found).update({name: vars(self)[name] for name in shared if name in vars(self)})
        return found

    @cached_property
    def alchemical_atoms(self) -> tuple[int, ...]:
        """Atoms whose interactions with the rest λ switches; () if there are none.

        Raises:
            FormatError: If the selection is not understood, or selects no atom, or all.
        """
        if self.definition.alchemical is None:
            return ()
        return select_atoms(self.topology, self.definition.alchemical.atoms, where=str(self.folder / "system.yaml"))

    @cached_property
    def _structure(self) -> Any:
        import mdtraj

        return mdtraj.load_pdb(str(self.folder / self.definition.topology))

    @property
    def topology(self) -> Any:
        """The `mdtraj.Topology`."""
        return self._structure.topology

    @property
    def positions(self) -> Float64[Tensor, "n_atoms 3"]:
        """The relaxed structure of the topology file, nm, with constrained distances as exact as they are fixed."""
        found, fixed = torch.from_numpy(self._structure.xyz[0]).double(), self._serialized.constraints
        if fixed is None:
            return found
        # a PDB file rounds to 10⁻⁴ nm
        return Constraints(fixed.atoms, fixed.distances, masses=fixed.masses).project(found[None])[0]

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.topology.n_atoms

    @property
    def dimension(self) -> int:
        """Degrees of freedom without rigid motions, constraints and virtual sites; boxes keep their rotations."""
        return self._serialized.dimension

    @property
    def box(self) -> Float64[Tensor, "3 3"] | None:
        """The periodic box, three vectors in nm in OpenMM's reduced form; None for molecules in infinite space."""
        return self._serialized.box

    @property
    def n_constraints(self) -> int:
        """Number of constrained distances."""
        return self._serialized.n_constraints

    def with_measure(self, measure: str) -> "System":
        """The same system with its density with respect to another measure of the constraints.

        Args:
            measure: "mass-metric", what OpenMM's dynamics samples, "stiff" or "rigid"; see `MoleculeTarget`.

        Raises:
            FormatError: If there is no such measure, or the System has no constraints.
        """
        if measure not in CONSTRAINT_MEASURES:
            raise FormatError(
                f"system {self.definition.name}: expected a measure of constraints, one of "
                f"{', '.join(CONSTRAINT_MEASURES)}, got {measure!r}."
            )
        if not self.n_constraints:
            raise FormatError(f"system {self.definition.name}: has no constraints, so there is no measure {measure!r}.")
        return replace(self, constraint_measure=None if measure == self.definition.constraint_measure else measure)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers; 0 for virtual sites."""
        return tuple(0 if atom.element is None else atom.element.atomic_number for atom in self.topology.atoms)

    @property
    def bonds(self) -> tuple[tuple[int, int], ...]:
        """Pairs of bonded atoms, sorted."""
        return tuple(sorted((min(a.index, b.index), max(a.index, b.index)) for a, b in self.topology.bonds))

    @cached_property
    def zmatrix(self) -> ZMatrix:
        """Internal coordinates, with the peptide backbone preferred; links join the molecules if there are several.

        Raises:
            ValueError: If there are fewer than three atoms, or atoms that no bond, angle and torsion can place.
            UnsupportedForceError: If the system is periodic.
        """
        if self.box is not None:
            raise UnsupportedForceError(
                f"system {self.name} is in a periodic box, where rotations change the energy: it has no internal "
                "coordinates and no labelling sector. Simulate it by molecular dynamics "
                f"(boltzflow simulate {self.source} --method md)."
            )
        names = {"N", "CA", "C"}
        amino_acids = [r for r in self.topology.residues if names <= {atom.name for atom in r.atoms}]
        backbone = [atom.index for residue in amino_acids for atom in residue.atoms if atom.name in names]
        common = {"elements": self.elements, "names": [f"{a.residue}-{a.name}" for a in self.topology.atoms]}
        links = fragment_links(self.n_atoms, self.bonds, positions=self.positions, **common)
        return ZMatrix.from_bonds(
            self.n_atoms, self.bonds, links=links, reference=self.positions, backbone=backbone, **common
        )

    @cached_property
    def sector(self) -> LabelSector:
        """Hand of the stereo-centres and labelling of identical hydrogens, those of `positions`."""
        return LabelSector(self.zmatrix, self.positions)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the serialised System and the atoms and bonds of the topology; not the temperature."""
        digest = hashlib.sha256(self._system_bytes)
        for atom in self.topology.atoms:
            digest.update(f"{atom.index} {atom.name} {atom.residue.name} {atom.residue.index}\n".encode())
        digest.update(repr(self.bonds).encode())
        return digest.hexdigest()

    @cached_property
    def _serialized(self) -> SerializedSystem:
        return read_serialized(self._system_bytes)

    @cached_property
    def _system_bytes(self) -> bytes:
        return (self.folder / self.definition.system).read_bytes()

    @property
    def openmm_system(self) -> Any:
        """The `openmm.System`, which has all interactions.

        Raises:
            FormatError: At a λ other than 1, which OpenMM's System does not know.
        """
        if self.lam != 1:
            raise FormatError(
                f"system {self.name}: the openmm.System has all interactions of the alchemical atoms; leave lambda "
                "out, or hand the target to OpenMM by boltzflow.forcefield.to_openmm."
            )
        return self._openmm_system

    @cached_property
    def _openmm_system(self) -> Any:
        import openmm

        return openmm.XmlSerializer.deserialize(self._system_bytes.decode())

    @cached_property
    def potential(self) -> CompiledForceField:
        """The torch force field, (batch, n_atoms, 3) nm → (batch,) kJ/mol; eager where there is no C++ compiler.

        Its parameters are cached in `cache_folder()`, after which OpenMM is no longer needed.

        At a λ other than 1 it is that of `boltzflow.forcefield.alchemical`, charges switched before cores as by
        `boltzflow.forcefield.lambda_schedule`.

        Raises:
            FormatError: If the System and the topology have different numbers of atoms, or its energies are not those
                that `system.yaml` records.
            UnsupportedForceError: If the System holds a force that the torch back-end does not know.
        """
        potential = self._forcefield
        if self.lam != 1:
            sterics, electrostatics = lambda_schedule(self.lam)
            potential = alchemical(
                potential,
                self.alchemical_atoms,
                lambda_sterics=sterics,
                lambda_electrostatics=electrostatics,
                softness=self.definition.alchemical.softness,
            )
        return copy.deepcopy(potential).to(self.dtype).compiled()

    @cached_property
    def _forcefield(self) -> ForceField:
        """The verified force field at λ = 1, eager and in float64."""
        cached = cache_folder() / "forcefields" / f"{hashlib.sha256(self._system_bytes).hexdigest()}.pt"
        try:
            potential = ForceField.load(cached)
            self._verify(potential)
        except FileNotFoundError:
            potential = self._convert(cached)
        except Exception as error:  # whatever is wrong with a cache, it is made anew
            logger.info("cached force field %s is of no use (%s); it is made anew", cached, error)
            potential = self._convert(cached)
        return potential

    def _convert(self, cached: Path) -> ForceField:
        from boltzflow.forcefield import from_openmm

        potential = from_openmm(self._openmm_system)
        self._verify(potential)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            potential.save(cached)
        except OSError as error:
            logger.info("the force field is not cached: %s", error)
        return potential

    def _verify(self, potential: ForceField) -> None:
        if potential.n_atoms != self.n_atoms:
            raise FormatError(
                f"{self.folder}: {self.definition.system} has {potential.n_atoms} particles, but "
                f"{self.definition.topology} has {self.n_atoms} atoms; give matching files."
            )
        recorded = torch.tensor(self.definition.energies, dtype=torch.float64)
        if not len(recorded):
            return
        computed = potential(probe_positions(self.positions, len(recorded)))
        error = (computed - recorded).abs() / recorded.abs().clamp_min(1.0)
        if not bool((error < ENERGY_TOLERANCE).all()):
            raise FormatError(
                f"system {self.definition.name}: energies of the probe structures are {computed.tolist()} kJ/mol, but "
                f"{self.folder / 'system.yaml'} records {recorded.tolist()}. System and record do not belong together: "
                "restore the files, or record the energies again if the System was changed on purpose."
            )

    @cached_property
    def target(self) -> MoleculeTarget:
        """The Boltzmann distribution of a molecule within its `sector`, or of all configurations in a periodic box.

        Raises:
            ValueError: If constraints depend on each other.
        """
        names = [f"{a.residue}-{a.name}" for a in self.topology.atoms]
        common = {
            "n_atoms": self.n_atoms,
            "temperature": self.temperature,
            "constraint_measure": self.constraint_measure or self.definition.constraint_measure,
            "topology": self.topology,
            "origin": ("OpenMM", "MDTraj", *self.definition.forcefield),
            "name": self.name,
        }
        if self.box is not None:
            return _independent(MoleculeTarget(self.potential, **common), self.positions, names)
        described = self.sector.describe(names)
        target = MoleculeTarget(self.potential, sector=self.sector.contains, sector_description=described, **common)
        # registered, so that target.to(device) moves the buffers of the sector as well
        target.add_module("label_sector", self.sector)
        return _independent(target, self.positions, names)


@dataclass(frozen=True, eq=False)
class AnalyticSystem(SystemFolder):
    """An energy in kT that `boltzflow.targets` has in closed form, named by `target` in `system.yaml`.

    It has no atoms: what needs a molecule is refused by name.

    Args:
        folder: Holds `system.yaml` and `recipes/`.
        definition: What `system.yaml` says.
        temperature: None.
        dtype: Of the Target.
        reduced_temperature: Of a Target with the argument `temperature`, in its own unit, in place of the definition's.

    Example:
        >>> from boltzflow import load_system
        >>> system = load_system("snf_double_well")
        >>> system.dimension, round(system.target.log_z, 4)
        (2, 10.2935)
    """

    reduced_temperature: float | None = None

    def _called(self, text: str, temperature: float | None) -> SystemName:
        return SystemName(text, temperature=self.reduced_temperature)

    def __getattr__(self, name: str) -> Any:
        """Say of what only molecules have that this system has none."""
        if not name.startswith("_") and hasattr(System, name):
            raise NotAMoleculeError(
                f"system {self.definition.name} is the analytic energy {self.definition.target}, which has no "
                f"{name.replace('_', ' ')}: molecular dynamics, force fields and torsions need a molecule. Simulate "
                "it by parallel tempering, or train and sample a Generator."
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def dimension(self) -> int:
        """Degrees of freedom."""
        return self.target.dimension

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the Target."""
        given = {} if self.reduced_temperature is None else {"temperature": self.reduced_temperature}
        return self.definition.arguments | given

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the target and its arguments in the definition."""
        return hashlib.sha256(
            json.dumps([self.definition.target, self.definition.arguments], sort_keys=True).encode()
        ).hexdigest()

    @cached_property
    def target(self) -> Target:
        """The Target, under the name of the system.

        Raises:
            UnknownNameError: If `boltzflow.targets` has none of that name.
            FormatError: If it does not take the arguments.
        """
        target = named_target(str(self.definition.target), self.arguments, system=self.definition.name)
        target.name = self.name
        return target.to(self.dtype)

    @property
    def has_reference(self) -> bool:
        """Whether `reference` gives an ensemble."""
        return super().has_reference or type(self.target).sample is not Target.sample

    def reference(self) -> "Ensemble | None":
        """The reference ensemble that ships, else exact samples where the Target has a sampler; None otherwise."""
        from boltzflow.ensemble import Ensemble, Provenance

        if super().has_reference or not self.has_reference:
            return super().reference()
        with torch.no_grad():
            state = self.target.sample(N_EXACT, make_rng(0))
            energies = self.target.reduced_energy(state)
        return Ensemble(
            samples={name: state[name] for name in self.target.fields},
            spaces=self.target.fields,
            log_weights=torch.zeros(N_EXACT, dtype=torch.float64),
            reduced_energies=energies,
            target=self.name,
            provenance=Provenance(seed=0, extra={"system": self.name, "source": self.source, "exact": True}),
        )


def _independent(target: MoleculeTarget, positions: Tensor, names: list[str]) -> MoleculeTarget:
    """The Target, whose dimension counts every constraint, if none of them follows from others."""
    if target.constraints is not None:
        target.constraints.require_independent(positions, names)
    return target


def probe_positions(positions: Float[Tensor, "n_atoms 3"], n: int) -> Float[Tensor, "n n_atoms 3"]:
    """Structures at which the recorded energies are compared: the relaxed one and n − 1 growing displacements of it.

    Args:
        positions: The relaxed structure, nm.
        n: How many.

    Returns:
        Structure k is displaced by 0.002 k sin((k + 1) m) nm in its m-th Cartesian coordinate.
    """
    k = torch.arange(n, dtype=positions.dtype)[:, None]
    m = torch.arange(positions.numel(), dtype=positions.dtype)
    return positions + (0.002 * k * torch.sin((k + 1) * m)).reshape(n, *positions.shape)


def load_system(
    name: str | os.PathLike, *, temperature: Any = None, dtype: torch.dtype = torch.float64
) -> System | AnalyticSystem:
    """Load a system by name or folder.

    Args:
        name: A name of `list_systems()`, or a folder with a `system.yaml`; "name@350" sets the temperature, too,
            "name@lambda=0.5" the λ of its alchemical atoms, "name@350,lambda=0.5" both, and "name:stiff" the measure of
            its constraints, see `System.with_measure`. Of an analytic energy with an argument `temperature`,
            "name@0.25" sets that.
        temperature: In K or as `openmm.unit.Quantity`; by default the system's own.
        dtype: Of the torch force field's arithmetic.

    Raises:
        UnknownNameError: If there is no such system (the nearest are named).
        FormatError: If its `system.yaml` has an unknown key or a wrong value, a file is missing, or an analytic
            system without one is asked for at a temperature; if λ is not in [0, 1], or is given where no atoms are
            alchemical.

    Example:
        >>> load_system("alanine_dipeptide@350").temperature
        350.0
    """
    called = read_name(name, measures=CONSTRAINT_MEASURES)
    if temperature is None:
        temperature = called.temperature
    elif called.temperature is not None:
        raise FormatError(f"system {called}: temperature={temperature} gives its temperature a second time; omit one.")
    folder = find_folder(called.text)
    definition = read_definition(folder)
    if definition.target is not None:
        own = definition.arguments.get("temperature")
        if (temperature is not None and own is None) or definition.temperature is not None or called.lam != 1:
            raise FormatError(
                f"system {definition.name}: an analytic target is in kT and has no temperature and no λ; leave it out."
            )
        return AnalyticSystem(folder, definition, None, dtype, None if temperature in (None, own) else temperature)
    kelvin = as_temperature(definition.temperature if temperature is None else temperature)
    if called.lam != 1:
        check_lambda(called.lam, definition.name, definition.alchemical)
    system = System(folder, definition, kelvin, dtype, lam=called.lam)
    return system if called.measure is None else system.with_measure(called.measure)


def cache_folder() -> Path:
    """Where compiled parameters are cached: $BOLTZFLOW_CACHE_DIR, by default ~/.cache/boltzflow."""
    return Path(os.environ.get("BOLTZFLOW_CACHE_DIR", "~/.cache/boltzflow")).expanduser()
