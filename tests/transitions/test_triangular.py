"""Triangular affine map: the contract, and the covariance that it gives to a standard normal."""

import pytest
import torch

from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.testing import check_transition
from boltzflow.transitions.triangular import TriangularAffine


@pytest.fixture
def bijection():
    step = TriangularAffine(torch.tensor([3, 0, 2]), field="q").double()
    rng = make_rng(1)
    with torch.no_grad():
        for p in step.parameters():
            p += 0.4 * torch.randn(p.shape, generator=rng, dtype=p.dtype)
    return step


def points(n, kind="line"):
    q = torch.randn(n, 4, dtype=torch.float64, generator=make_rng(0))
    return State({"q": q}, {"q": Space(kind, (4,))})


def test_it_keeps_the_contract(bijection):
    check_transition(bijection, points(8), Run(make_rng(2)))


def test_a_new_one_is_the_identity():
    state = points(5)
    y, ratio = TriangularAffine(torch.arange(4)).double()(state, Run(make_rng(0)))
    assert torch.equal(y["q"], state["q"])
    assert not ratio.any()


def test_it_moves_the_coordinates_that_it_names_to_the_covariance_of_its_matrix(bijection):
    state = points(200_000)
    y = bijection(state, Run(make_rng(0)))[0]["q"].detach()
    assert torch.equal(y[:, 1], state["q"][:, 1])
    factor = bijection._matrix().detach()
    assert torch.equal(factor, factor.tril())
    found = torch.cov(y[:, bijection.index].T)
    expected = factor @ factor.T
    scale = (expected.diagonal()[:, None] * expected.diagonal()).sqrt()
    assert ((found - expected) / scale).abs().max() < 5 * (2 / 200_000) ** 0.5
    assert torch.allclose(y[:, bijection.index].mean(0), bijection.shift.detach(), atol=0.02)


def test_entries_above_the_diagonal_have_no_gradient(bijection):
    y, ratio = bijection(points(6), Run(make_rng(0)))
    (y["q"].square().sum() + ratio.sum()).backward()
    assert not bijection.lower.grad.triu().any()
    assert bijection.lower.grad.tril(-1).count_nonzero() == 3
