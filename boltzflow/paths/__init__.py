"""Annealing paths: families of energies between a base and a Target."""

from boltzflow.paths.path import GeometricPath, MixtureLevel, Path, TemperedPath

__all__ = ["GeometricPath", "MixtureLevel", "Path", "TemperedPath"]
