"""Targets: unnormalised densities exp(−u), and the bases from which Generators start."""

from boltzflow.targets.target import Base, Target

__all__ = ["Base", "Target"]
