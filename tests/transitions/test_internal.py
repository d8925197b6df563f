"""Internal coordinates to positions: round trips, the log-ratio by autograd, and values outside the chart."""

import math

import pytest
import torch

from boltzflow.coordinates import ZMatrix
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.testing import assert_dtypes, assert_invertible
from boltzflow.transitions.internal import InternalToCartesian

# a branched chain: 0-1-2-3 with 4 and 5 on 2, so that there are siblings
BONDS = [(0, 1), (1, 2), (2, 3), (2, 4), (2, 5)]
D = 12


@pytest.fixture
def bijection():
    zmatrix = ZMatrix.from_bonds(6, BONDS)
    mean = torch.tensor([0.15] * 5 + [1.9] * 4 + [0.0, 2.1, -2.1], dtype=torch.float64)
    scale = torch.tensor([0.01] * 5 + [0.1] * 4 + [1.0, 0.15, 0.15], dtype=torch.float64)
    circular = torch.zeros(D, dtype=torch.bool)
    circular[9] = True
    return InternalToCartesian(zmatrix, mean=mean, scale=scale, circular=circular)


def points(n=7, seed=0):
    q = torch.randn(n, D, dtype=torch.float64, generator=make_rng(seed))
    q[:, 9] = (2 * torch.rand(n, dtype=torch.float64, generator=make_rng(seed, 1)) - 1) * math.pi
    return state_of(q)


def state_of(q):
    return State({"q": q}, {"q": Space("mixed", (D,))})


def test_it_is_inverted_in_both_dtypes(bijection):
    run = Run(make_rng(0))
    assert_invertible(bijection, points(), run)
    assert_dtypes(bijection, points(), run)
    assert_invertible(bijection.float(), points().to(dtype=torch.float32), run)


def test_the_log_ratio_is_the_jacobian_of_the_free_coordinates_and_of_the_rigid_motions(bijection):
    state, run = points(), Run(make_rng(0))
    i, j, k = bijection.map.zmatrix.seed
    for row in range(len(state)):
        q = state["q"][row : row + 1]
        y, ratio = bijection(state_of(q), run)
        x = y["positions"][0]
        full = torch.autograd.functional.jacobian(lambda q: bijection(state_of(q[None]), run)[0]["positions"][0], q[0])
        # atom j is at the origin, i on the x axis, k in the xy plane
        free = [(a, c) for a in range(6) for c in range(3) if a not in (i, j, k)] + [(i, 0), (k, 0), (k, 1)]
        jacobian = torch.stack([full[a, c] for a, c in free])
        fixed = torch.ones(6, 3, dtype=torch.bool)
        for a, c in free:
            fixed[a, c] = False
        assert x[fixed].abs().max() < 1e-15
        # d³x_i = b² db dΩ, and the polar angle of k about (j, i) adds its distance from that axis
        rigid = 2 * x[i, 0].log() + x[k, 1].log()
        expected = torch.linalg.slogdet(jacobian).logabsdet + rigid
        assert ratio.item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize(
    ("coordinate", "value"),
    [(0, -16.0), (3, -15.0), (4, -1e4), (5, -19.5), (6, 12.6), (10, 21.0), (11, -21.0)],
)
def test_values_outside_the_chart_have_weight_zero_and_no_gradient(bijection, coordinate, value):
    q, run = points()["q"], Run(make_rng(0))
    inside = q.clone().requires_grad_()
    q[2, coordinate] = value
    spoilt = q.clone().requires_grad_()
    keep = torch.arange(len(q)) != 2
    results = []
    for leaf, rows in ((inside, keep), (spoilt, slice(None))):
        y, ratio = bijection(state_of(leaf), run)
        if leaf is spoilt:
            assert ratio[2] == -torch.inf
            assert torch.isfinite(y["positions"]).all()
        finite = torch.where(torch.isfinite(ratio), ratio, 0.0)[rows]
        (y["positions"][rows].square().sum() + finite.sum()).backward()
        results.append((y["positions"].detach(), ratio.detach(), leaf.grad))
    (x, r, g), (x_, r_, g_) = results
    assert torch.equal(x[keep], x_[keep])
    assert torch.equal(r[keep], r_[keep])
    assert torch.equal(g[keep], g_[keep])
    assert not g_[2].any()


def test_a_bond_of_exactly_zero_is_outside(bijection):
    q = points()["q"]
    q[1, 0] = -15.0
    q.requires_grad_()
    _, ratio = bijection(state_of(q), Run(make_rng(0)))
    assert ratio[1] == -torch.inf
    torch.where(torch.isfinite(ratio), ratio, 0.0).sum().backward()
    assert torch.isfinite(q.grad).all()


def test_nan_stays_nan_so_that_it_counts_as_a_failure(bijection):
    q = points()["q"]
    q[1, 4] = torch.nan
    y, ratio = bijection(state_of(q), Run(make_rng(0)))
    assert torch.isnan(ratio).tolist() == [row == 1 for row in range(len(q))]
    assert torch.isnan(y["positions"][1]).any()


def test_wrong_sizes_are_named(bijection):
    sizes = {"mean": torch.zeros(11), "scale": torch.ones(11), "circular": torch.zeros(12, dtype=torch.bool)}
    message = r"expected shape \(12,\) for 6 atoms, got \{'mean': \(11,\), 'scale': \(11,\)\}"
    with pytest.raises(ValueError, match=message):
        InternalToCartesian(bijection.map.zmatrix, **sizes)


@pytest.fixture
def linked():
    # water, an ion and a bent triple: every kind of coordinate of a link
    zmatrix = ZMatrix.from_bonds(
        7, [(0, 1), (0, 2), (4, 5), (4, 6)], links=[(0, 3), (3, 4)], elements=[8, 1, 1, 11, 8, 1, 1]
    )
    d = 15
    mean = torch.cat([torch.full((6,), 0.1), torch.full((5,), 1.2), torch.full((4,), 0.4)]).double()
    mean[torch.from_numpy(zmatrix.linked_bonds).nonzero()[:, 0]] = 0.3
    scale = torch.cat([torch.full((6,), 0.01), torch.full((5,), 0.1), torch.full((4,), 1.0)]).double()
    scale[torch.from_numpy(zmatrix.linked_bonds).nonzero()[:, 0]] = 0.1
    scale[6 + torch.from_numpy(zmatrix.linked_angles).nonzero()[:, 0]] = 0.5
    circular = torch.zeros(d, dtype=torch.bool)
    circular[11:] = torch.from_numpy(zmatrix.proper)
    assert circular[11:].all()
    return InternalToCartesian(zmatrix, mean=mean, scale=scale, circular=circular)


def linked_points(n=7):
    q = torch.randn(n, 15, dtype=torch.float64, generator=make_rng(3))
    q[:, 11:] = (2 * torch.rand(n, 4, dtype=torch.float64, generator=make_rng(4)) - 1) * math.pi
    return State({"q": q}, {"q": Space("mixed", (15,))})


def test_links_are_inverted_in_both_dtypes(linked):
    run = Run(make_rng(0))
    assert_invertible(linked, linked_points(), run)
    assert_dtypes(linked, linked_points(), run)
    assert_invertible(linked.float(), linked_points().to(dtype=torch.float32), run)


def test_the_log_ratio_of_links_is_the_derivative_of_their_maps(linked):
    state = linked_points()
    internal = linked.map(linked(state, Run(make_rng(0)))[0]["positions"])[0]
    _, log_det = linked.map.inverse(internal)

    def values(q):
        y, _ = linked(State({"q": q[None]}, {"q": Space("mixed", (15,))}), Run(make_rng(0)))
        return torch.cat(linked.map(y["positions"])[0], 1)[0]

    _, ratio = linked(state, Run(make_rng(0)))
    for row in range(len(state)):
        jacobian = torch.autograd.functional.jacobian(values, state["q"][row])
        assert ratio[row].item() == pytest.approx((log_det[row] + jacobian.diagonal().log().sum()).item(), abs=1e-9)
        assert (jacobian - torch.diag(jacobian.diagonal())).abs().max() < 1e-9


def test_links_stay_positive_and_have_the_stated_centre_and_slope(linked):
    run = Run(make_rng(0))
    lengths, angles = linked._link_lengths, linked._link_angles
    assert (len(lengths), len(angles)) == (2, 3)
    q = torch.zeros(4, 15, dtype=torch.float64)
    q[1, lengths], q[1, angles] = 1e-5, 1e-5
    q[2, lengths], q[2, angles] = -8.0, -8.0
    q[3, lengths], q[3, angles] = 8.0, 8.0
    y, ratio = linked(State({"q": q}, {"q": Space("mixed", (15,))}), run)
    assert torch.isfinite(ratio).all()
    internal = torch.cat(linked.map(y["positions"])[0], 1)
    links = torch.cat([lengths, angles])
    assert torch.allclose(internal[0, links], linked.mean[links], atol=1e-12)
    assert torch.allclose((internal[1] - internal[0])[links] / 1e-5, linked.scale[links], rtol=1e-4)
    assert (internal[2:, lengths] > 0).all()
    assert ((internal[2:, angles] > 0) & (internal[2:, angles] < math.pi)).all()


def test_a_link_beyond_all_bounds_is_outside_and_leaves_no_gradient(linked):
    q = linked_points()["q"]
    q[1, linked._link_lengths[0]] = 1e5
    q[2, linked._link_angles[0]] = 1e5
    q.requires_grad_()
    y, ratio = linked(State({"q": q}, {"q": Space("mixed", (15,))}), Run(make_rng(0)))
    assert torch.isneginf(ratio).tolist() == [False, True, True, False, False, False, False]
    (y["positions"].square().sum() + torch.where(torch.isfinite(ratio), ratio, 0.0).sum()).backward()
    assert torch.isfinite(q.grad[[0, 3, 4, 5, 6]]).all()
    assert not q.grad[1:3].any()
