"""Observables, free energies, reweighting, comparison with a reference; plots are in `boltzflow.analysis.plots`."""

from boltzflow.analysis.free_energy import Profile, delta_f, free_energy_report, profile
from boltzflow.analysis.observables import (
    CollectiveVariable,
    collective_variable,
    distance,
    radius_of_gyration,
    rmsd,
    torsion,
)
from boltzflow.analysis.reference import Comparison, compare
from boltzflow.analysis.reweight import reweight
from boltzflow.analysis.summary import summary

__all__ = [
    "CollectiveVariable",
    "Comparison",
    "Profile",
    "collective_variable",
    "compare",
    "delta_f",
    "distance",
    "free_energy_report",
    "profile",
    "radius_of_gyration",
    "reweight",
    "rmsd",
    "summary",
    "torsion",
]
