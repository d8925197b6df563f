"""The contract kit: what Targets, Transitions and Generators must satisfy, as functions that raise AssertionError."""

from boltzflow.testing._compare import run_at
from boltzflow.testing.bijections import assert_invertible, assert_log_ratio
from boltzflow.testing.checks import check_target, check_transition
from boltzflow.testing.equivariance import assert_equivariant, check_vector_field
from boltzflow.testing.generators import assert_crooks, assert_unbiased
from boltzflow.testing.physics import assert_energy_matches_openmm
from boltzflow.testing.targets import assert_force, assert_normalised, assert_sampler, assert_target
from boltzflow.testing.transitions import (
    assert_detailed_balance,
    assert_dtypes,
    assert_leaves_invariant,
    assert_reverse_ratio,
)

__all__ = [
    "assert_crooks",
    "assert_detailed_balance",
    "assert_dtypes",
    "assert_energy_matches_openmm",
    "assert_equivariant",
    "assert_force",
    "assert_invertible",
    "assert_leaves_invariant",
    "assert_log_ratio",
    "assert_normalised",
    "assert_reverse_ratio",
    "assert_sampler",
    "assert_target",
    "assert_unbiased",
    "check_target",
    "check_transition",
    "check_vector_field",
    "run_at",
]
