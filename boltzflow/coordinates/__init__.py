"""Pure coordinate maps: internal coordinates (Z-matrix), mean-free coordinates, rigid alignment, the torus."""

from boltzflow.coordinates.internal import InternalCoordinateMap, InternalCoordinates
from boltzflow.coordinates.zmatrix import ZMatrix

__all__ = ["InternalCoordinateMap", "InternalCoordinates", "ZMatrix"]
