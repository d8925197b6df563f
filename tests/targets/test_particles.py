import pytest
import torch

from boltzflow.run import make_rng
from boltzflow.state import State
from boltzflow.targets import DoubleWellCluster, LennardJonesCluster, PairTarget
from boltzflow.targets.cluster_kernel import library


@pytest.fixture
def _compiler():
    if library() is None:
        pytest.skip("no C++ compiler")


def cluster(n_dimensions=3, **settings):
    settings = {"pair_sum": "unordered", "epsilon": 0.7, "r_min": 0.9, "stiffness": 0.6} | settings
    return LennardJonesCluster(13, n_dimensions=n_dimensions, **settings)


def rows(target, batch=37, dtype=torch.float64):
    n, dim = target.fields["positions"].shape
    line = torch.arange(n, dtype=dtype)[:, None].expand(n, dim)
    return target.state(line + 0.2 * torch.randn(batch, n, dim, dtype=dtype, generator=make_rng(1)))


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_dimensions", [1, 2, 3])
@pytest.mark.parametrize("pair_sum", ["ordered", "unordered"])
def test_compiled_and_eager_clusters_agree(n_dimensions, pair_sum, dtype):
    target = cluster(n_dimensions, pair_sum=pair_sum)
    state = rows(target, dtype=dtype)
    u, force = target.energy_and_force(state)
    v, other = PairTarget.energy_and_force(target, state)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(u, v, rtol=rtol, atol=0)
    torch.testing.assert_close(force["positions"], other["positions"], rtol=rtol, atol=rtol)
    torch.testing.assert_close(target.reduced_energy(state), u, rtol=0, atol=0)


@pytest.mark.usefixtures("_compiler")
def test_rows_do_not_depend_on_the_batch_nor_on_threads():
    target, n_threads = cluster(), torch.get_num_threads()
    state = rows(target, batch=200)
    try:
        torch.set_num_threads(2)
        u, force = target.energy_and_force(state)
    finally:
        torch.set_num_threads(n_threads)
    for k in (0, 15, 16, 101, 199):
        alone, pull = target.energy_and_force(state.index(torch.tensor([k])))
        assert torch.equal(alone[0], u[k])
        assert torch.equal(pull["positions"][0], force["positions"][k])


def test_coinciding_particles_and_nan_stay_in_their_rows():
    target = cluster()
    state = rows(target)
    x = state["positions"].clone()
    x[3, 5], x[7, 0, 0] = x[3, 6], torch.nan
    u, force = target.energy_and_force(state.replace(positions=x))
    assert u[3] == torch.inf
    assert u[7].isnan()
    fine = [k for k in range(len(x)) if k not in (3, 7)]
    expected, forces = target.energy_and_force(state)
    assert torch.equal(u[fine], expected[fine])
    assert torch.equal(force["positions"][fine], forces["positions"][fine])


@pytest.mark.usefixtures("_compiler")
def test_autograd_and_other_dimensions_run_eagerly():
    target, flat = cluster(), cluster(4)
    state = rows(target)
    x = state["positions"].requires_grad_()
    (slope,) = torch.autograd.grad(target.reduced_energy(State({"positions": x}, target.fields)).sum(), x)
    torch.testing.assert_close(-slope, target.energy_and_force(state)[1]["positions"], rtol=1e-10, atol=1e-10)
    state = rows(flat)
    assert torch.equal(flat.energy_and_force(state)[0], PairTarget.reduced_energy(flat, state))


@pytest.mark.parametrize("target", [cluster(), cluster(pair_sum="ordered"), DoubleWellCluster(c=0.3)])
def test_slopes_written_out_are_those_of_autograd(target):
    squared = torch.linspace(0.7, 30.0, 200, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        target.pair_slope(squared), PairTarget.pair_slope(target, squared), rtol=1e-10, atol=1e-12
    )


def test_no_rows_have_no_forces():
    target = DoubleWellCluster()
    u, force = target.energy_and_force(rows(target, batch=0))
    assert u.shape == (0,)
    assert force["positions"].shape == (0, 4, 2)
