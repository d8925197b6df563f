"""Chains that sample a Target at equilibrium: batched parallel tempering, and plain molecular dynamics as the check."""

from boltzflow.simulation.diagnostics import entries, independent_visits, series_diagnostics, split_r_hat
from boltzflow.simulation.flow_mcmc import flow_mcmc, neutra
from boltzflow.simulation.flow_training import FlowTraining
from boltzflow.simulation.isir import ISIR
from boltzflow.simulation.learned_move import LearnedKernel, LearnedMove
from boltzflow.simulation.neutra import NeuTra
from boltzflow.simulation.parallel_tempering import ParallelTempering, TemperedRows
from boltzflow.simulation.path_exchange import PathExchange, PathRows
from boltzflow.simulation.relaxation import relax
from boltzflow.simulation.replica_exchange import MixedRows, ReplicaExchange
from boltzflow.simulation.result import ChainResult
from boltzflow.transitions.molecule import molecule_blocks, molecule_kernels, single_bond_axes, soft_axes

__all__ = [
    "ISIR",
    "ChainResult",
    "FlowTraining",
    "LearnedKernel",
    "LearnedMove",
    "MixedRows",
    "NeuTra",
    "ParallelTempering",
    "PathExchange",
    "PathRows",
    "ReplicaExchange",
    "TemperedRows",
    "entries",
    "flow_mcmc",
    "independent_visits",
    "molecule_blocks",
    "molecule_kernels",
    "neutra",
    "relax",
    "series_diagnostics",
    "single_bond_axes",
    "soft_axes",
    "split_r_hat",
]
