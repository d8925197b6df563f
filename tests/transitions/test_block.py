"""A whitened block in place of internal coordinates: the contract of a Bijection, and its unit covariance."""

import pytest
import torch

from boltzflow.coordinates import CartesianBlock, ZMatrix
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.testing import check_transition
from boltzflow.transitions import BlockToInternal

# a centre with four neighbours: nine coordinates, and one atom on a neighbour, whose three coordinates stay
ZMATRIX = ZMatrix.from_bonds(6, [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5)], seed=(1, 0, 2))
MEAN = torch.tensor([0.15, 0.15, 1.9, 0.11, 1.9, 2.1, 0.15, 1.9, -2.1], dtype=torch.float64)
SCALE = torch.tensor([0.004, 0.004, 0.1, 0.004, 0.1, 0.15, 0.004, 0.1, 0.15], dtype=torch.float64)


@pytest.fixture
def bijection():
    correlation = 0.3 * torch.ones(9, 9, dtype=torch.float64) + 0.7 * torch.eye(9, dtype=torch.float64)
    covariance = SCALE[:, None] * correlation * SCALE
    return BlockToInternal(CartesianBlock(ZMATRIX), mean=MEAN, scale=SCALE, covariance=covariance)


def state_of(q):
    return State({"q": q}, {"q": Space("mixed", q.shape[1:])})


def test_the_contract(bijection):
    q = torch.randn(12, 12, dtype=torch.float64, generator=make_rng(1))
    check_transition(bijection, state_of(q), Run(make_rng(2)))


def test_columns_of_other_atoms_stay(bijection):
    q = torch.randn(5, 12, dtype=torch.float64, generator=make_rng(1))
    y, _ = bijection(state_of(q), Run(make_rng(2)))
    others = sorted(set(range(12)) - set(bijection.block.columns.tolist()))
    assert len(others) == 3
    assert torch.equal(y["q"][:, others], q[:, others])


def test_unit_noise_has_the_given_covariance_to_first_order(bijection):
    q = torch.zeros(1, 12, dtype=torch.float64)

    def internal(q):
        return bijection(state_of(q), Run(make_rng(2)))[0]["q"][0]

    columns = bijection.block.columns
    slopes = torch.autograd.functional.jacobian(internal, q)[:, 0][columns][:, columns]
    covariance = slopes @ slopes.T
    torch.testing.assert_close(covariance.diagonal(), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(covariance - torch.diag(covariance.diagonal()), 0.3 * (1 - torch.eye(9).double()))
    assert internal(q).abs().max() < 1e-12


def test_sizes_that_are_not_those_of_the_block_are_refused():
    with pytest.raises(ValueError, match=r"expected 9 coordinates of the block, got \{.mean.: \(8,\)"):
        BlockToInternal(CartesianBlock(ZMATRIX), mean=MEAN[1:], scale=SCALE[1:], covariance=torch.eye(8).double())
