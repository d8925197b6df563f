"""What the XML of an openmm.System says of its degrees of freedom, read without OpenMM."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.errors import FormatError
from boltzflow.forcefield.constraints import ConstraintParameters

__all__ = ["SerializedSystem", "read_serialized"]

_FIRST_PERIODIC_METHOD = 2
"""Nonbonded methods of every openmm.Force: none and a cutoff without a box come first, all others have a box."""


@dataclass(frozen=True, eq=False)
class SerializedSystem:
    """Size and box of a System.

    Args:
        n_particles: Number of particles, virtual sites included.
        n_sites: Number of virtual sites.
        constraints: Constrained distances; None without.
        box: Default box, three vectors in nm; None where no force is periodic.
    """

    n_particles: int
    n_sites: int
    constraints: ConstraintParameters | None
    box: Float64[Tensor, "3 3"] | None

    @property
    def n_constraints(self) -> int:
        """Number of constrained distances."""
        return 0 if self.constraints is None else len(self.constraints.distances)

    @property
    def dimension(self) -> int:
        """Degrees of freedom without virtual sites, constraints and rigid motions; in a box only translations."""
        rigid = 6 if self.box is None else 3
        return 3 * (self.n_particles - self.n_sites) - self.n_constraints - rigid


def read_serialized(text: str | bytes) -> SerializedSystem:
    """Read what `openmm.XmlSerializer` wrote of a System.

    Args:
        text: The XML.

    Raises:
        FormatError: If it is not the XML of a System.

    Example:
        >>> from boltzflow import load_system
        >>> system = load_system("alanine_dipeptide")
        >>> found = read_serialized((system.folder / "system.xml").read_bytes())
        >>> found.n_particles, found.n_constraints, found.dimension
        (22, 0, 60)
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise FormatError(f"system: not valid XML ({error}); expected what openmm.XmlSerializer writes.") from None
    if root.tag != "System":
        raise FormatError(f"system: expected the XML of an openmm.System, found {root.tag!r}.")
    particles = root.findall("Particles/Particle")
    masses = torch.tensor([float(particle.get("mass")) for particle in particles], dtype=torch.float64)
    fixed = [(int(c.get("p1")), int(c.get("p2")), float(c.get("d"))) for c in root.findall("Constraints/Constraint")]
    atoms = torch.tensor([pair for *pair, _ in fixed])
    distances = torch.tensor([d for *_, d in fixed], dtype=torch.float64)
    vectors = [[float(vector.get(axis)) for axis in "xyz"] for vector in root.findall("PeriodicBoxVectors/*")]
    periodic = any(
        force.get("usesPeriodic") == "1" or int(force.get("method", "0")) >= _FIRST_PERIODIC_METHOD
        for force in root.findall("Forces/Force")
    )
    return SerializedSystem(
        n_particles=len(particles),
        n_sites=sum(len(particle) > 0 for particle in particles),  # described by an element of its own
        constraints=ConstraintParameters(atoms, distances, masses) if fixed else None,
        box=torch.tensor(vectors, dtype=torch.float64) if periodic else None,
    )
