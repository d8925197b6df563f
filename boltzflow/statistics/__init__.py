"""Estimators: log-weights and energies in, Estimates with errors between independent groups out."""

from boltzflow.statistics.bar import MBARResult, bar, bar_overlap, mbar
from boltzflow.statistics.chains import bulk_ess, effective_samples, split_rhat, statistical_inefficiency, tail_ess
from boltzflow.statistics.families import FamilyStatistics, family_statistics
from boltzflow.statistics.groups import GroupError, Groups
from boltzflow.statistics.means import elbo, eubo, exp_free_energy, expectation, log_z
from boltzflow.statistics.protocols import ProtocolWeights, protocol_weights
from boltzflow.statistics.weights import (
    forward_ess_fraction,
    kish_ess,
    log_mean_exp,
    normalised_weights,
    pareto_k,
    weighted_quantile,
)

__all__ = [
    "FamilyStatistics",
    "GroupError",
    "Groups",
    "MBARResult",
    "ProtocolWeights",
    "bar",
    "bar_overlap",
    "bulk_ess",
    "effective_samples",
    "elbo",
    "eubo",
    "exp_free_energy",
    "expectation",
    "family_statistics",
    "forward_ess_fraction",
    "kish_ess",
    "log_mean_exp",
    "log_z",
    "mbar",
    "normalised_weights",
    "pareto_k",
    "protocol_weights",
    "split_rhat",
    "statistical_inefficiency",
    "tail_ess",
    "weighted_quantile",
]
