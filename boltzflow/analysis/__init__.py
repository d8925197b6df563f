"""Observables, free energies, reweighting, comparison with a reference; plots are in `boltzflow.analysis.plots`."""

from boltzflow.analysis.difference import SystemDifference
from boltzflow.analysis.free_energy import Profile, delta_f, free_energy_report, profile
from boltzflow.analysis.learned_difference import learned_difference
from boltzflow.analysis.observables import (
    CollectiveVariable,
    collective_variable,
    distance,
    radius_of_gyration,
    rmsd,
    torsion,
)
from boltzflow.analysis.protocols import CombinedProtocols, combine_protocols
from boltzflow.analysis.reference import Comparison, compare
from boltzflow.analysis.report import report
from boltzflow.analysis.reweight import reweight
from boltzflow.analysis.summary import summary
from boltzflow.analysis.system_difference import system_difference
from boltzflow.analysis.two_sided import TwoSided, two_sided

__all__ = [
    "CollectiveVariable",
    "CombinedProtocols",
    "Comparison",
    "Profile",
    "SystemDifference",
    "TwoSided",
    "collective_variable",
    "combine_protocols",
    "compare",
    "delta_f",
    "distance",
    "free_energy_report",
    "learned_difference",
    "profile",
    "radius_of_gyration",
    "report",
    "reweight",
    "rmsd",
    "summary",
    "system_difference",
    "torsion",
    "two_sided",
]
