"""Pure maps: internal coordinates and their label sectors, constraints, mean-free coordinates, alignment, the torus."""

from boltzflow.coordinates.alignment import align, rmsd
from boltzflow.coordinates.cartesian_block import CartesianBlock
from boltzflow.coordinates.constraints import Constraints
from boltzflow.coordinates.dihedral import dihedral_angles
from boltzflow.coordinates.domain import InternalDomain
from boltzflow.coordinates.frozen import FrozenCoordinates, frozen_coordinates
from boltzflow.coordinates.internal import InternalCoordinateMap, InternalCoordinates
from boltzflow.coordinates.links import fragment_links
from boltzflow.coordinates.matching import couple, match, matched_distances
from boltzflow.coordinates.mean_free import from_mean_free, mean_free_basis, project_mean_free, to_mean_free
from boltzflow.coordinates.rotations import rotation_exp, rotation_hat, rotation_log, rotation_right_jacobian
from boltzflow.coordinates.sector import LabelSector
from boltzflow.coordinates.torus import circular_difference, wrap
from boltzflow.coordinates.zmatrix import ZMatrix

__all__ = [
    "CartesianBlock",
    "Constraints",
    "FrozenCoordinates",
    "InternalCoordinateMap",
    "InternalCoordinates",
    "InternalDomain",
    "LabelSector",
    "ZMatrix",
    "align",
    "circular_difference",
    "couple",
    "dihedral_angles",
    "fragment_links",
    "from_mean_free",
    "frozen_coordinates",
    "match",
    "matched_distances",
    "mean_free_basis",
    "project_mean_free",
    "rmsd",
    "rotation_exp",
    "rotation_hat",
    "rotation_log",
    "rotation_right_jacobian",
    "to_mean_free",
    "wrap",
]
