"""What the XML of an openmm.System says of its degrees of freedom, read without OpenMM."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.errors import FormatError

__all__ = ["SerializedSystem", "read_serialized"]

_FIRST_PERIODIC_METHOD = 2
"""Nonbonded methods of every openmm.Force: none and a cutoff without a box come first, all others have a box."""


@dataclass(frozen=True, eq=False)
class SerializedSystem:
    """Size and box of a System.

    Args:
        n_particles: Number of particles, virtual sites included.
        n_sites: Number of virtual sites.
        n_constraints: Number of constrained distances.
        box: Default box, three vectors in nm; None where no force is periodic.
    """

    n_particles: int
    n_sites: int
    n_constraints: int
    box: Float64[Tensor, "3 3"] | None

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
    vectors = [[float(vector.get(axis)) for axis in "xyz"] for vector in root.findall("PeriodicBoxVectors/*")]
    periodic = any(
        force.get("usesPeriodic") == "1" or int(force.get("method", "0")) >= _FIRST_PERIODIC_METHOD
        for force in root.findall("Forces/Force")
    )
    return SerializedSystem(
        n_particles=len(particles),
        n_sites=sum(len(particle) > 0 for particle in particles),  # described by an element of its own
        n_constraints=len(root.findall("Constraints/Constraint")),
        box=torch.tensor(vectors, dtype=torch.float64) if periodic else None,
    )
