"""Adaptation in a burn-in: acceptance at its target, masses at the inverse variances, windows, resume, exactness."""

import itertools
import math

import pytest
import torch

from boltzflow.run import make_rng
from boltzflow.simulation import ParallelTempering
from boltzflow.simulation.adaptation import DualAveraging, RunningVariance, slow_windows
from boltzflow.state import Space, State
from boltzflow.targets.bases import Gaussian
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.metropolis import RandomWalkMetropolis

torch.set_num_threads(1)
SCALES = torch.logspace(-2, 1, 12, dtype=torch.float64)


def anisotropic(kernels, *, n_chains=16, seed=1, temperatures=(1.0,)):
    """Chains that start at equilibrium."""
    target = Gaussian(12, scale=SCALES).double()
    start = target.sample(n_chains, make_rng(seed, 1))
    return ParallelTempering(
        target, start, temperatures=temperatures, n_chains=n_chains, kernels=kernels, n_relax=0, seed=seed
    )


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(
    ("kernel", "step"),
    [(lambda s: HMC(s, n_leapfrog=5), 0.6), (MALA, 0.3), (RandomWalkMetropolis, 0.5)],
    ids=["hmc", "mala", "metropolis"],
)
def test_the_acceptance_comes_to_its_target_from_any_start(kernel, step, factor):
    target, rng = Gaussian(12).double(), make_rng(2)
    simulation = ParallelTempering(
        target,
        target.sample(16, rng),
        temperatures=[1.0],
        n_chains=16,
        kernels=[kernel(step * factor)],
        n_relax=0,
        seed=3,
    )
    simulation.burn_in(120)
    found = simulation.run(60).diagnostics["acceptance"][0][0]
    assert abs(found - kernel(step).target_acceptance) < 0.06


def test_dual_averaging_is_the_published_recursion_about_the_first_step():
    steps, acceptances = DualAveraging(torch.tensor([0.2], dtype=torch.float64), 0.8), [0.1, 0.9, 0.95, 0.4]
    log_mean = 0.0
    for t, a in enumerate(acceptances, 1):
        steps.update(torch.tensor([a], dtype=torch.float64))
        # Hoffman and Gelman, Eq. 6: the error is the mean over t + t0 trials of which the first t0 had none
        error = sum(0.8 - b for b in acceptances[:t]) / (t + 10)
        log_step = math.log(0.2) - math.sqrt(t) / 0.1 * error
        log_mean = t**-0.75 * log_step + (1 - t**-0.75) * log_mean
        assert float(steps.log_step) == pytest.approx(log_step, abs=1e-12)
    assert float(steps.mean.log()) == pytest.approx(log_mean, abs=1e-12)


def test_running_variance_is_that_of_all_rows_and_skips_what_is_on_no_line():
    rng = make_rng(4)
    x = 1e6 + torch.randn(50, 3, 2, generator=rng, dtype=torch.float64)
    spaces = {"x": Space("line", (3, 2)), "phi": Space("circle", (1,)), "k": Space("integer", ())}
    found = RunningVariance()
    for rows in x.split([10, 1, 39]):
        n = len(rows)
        found.update(State({"x": rows, "phi": torch.zeros(n, 1), "k": torch.zeros(n, dtype=torch.int64)}, spaces))
    variance = x.var(0)
    assert list(found.variances()) == ["x"]
    torch.testing.assert_close(
        found.variances()["x"], (50 * variance + 0.005 * variance.mean()) / 55, rtol=1e-7, atol=0
    )


def test_windows_are_those_of_stan():
    assert slow_windows(1000) == [(75, 100), (100, 150), (150, 250), (250, 450), (450, 950)]
    assert slow_windows(150) == [(75, 100)]
    assert slow_windows(100) == [(15, 75)]
    assert slow_windows(39) == []
    for n in range(40, 2000, 37):
        windows = slow_windows(n)
        assert windows[-1][1] == n - (50 if n >= 150 else int(0.25 * n))
        assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))


def test_masses_recover_the_scales_of_an_anisotropic_target():
    simulation = anisotropic([HMC(1e-3, n_leapfrog=5)], n_chains=200)
    simulation.burn_in(100, masses=True)
    ratio = (simulation.kernels[0].mass("x", SCALES[None]) * SCALES.square()).log()
    assert ratio.abs().max() < 0.3
    result = simulation.run(40)
    assert abs(result.diagnostics["acceptance"][0][0] - 0.75) < 0.08
    assert {"dual averaging", "mass adaptation"} <= set(result.methods)
    plain = anisotropic([HMC(0.02, n_leapfrog=5)], n_chains=200)
    plain.burn_in(30)
    assert "mass adaptation" not in plain.methods

    def lag_one(samples):
        slow = samples["x"][..., -1]
        return float((slow[1:] * slow[:-1]).mean() / slow.square().mean())

    assert lag_one(result.samples) < 0.8 < 0.99 < lag_one(plain.run(40).samples)


def test_with_adapted_masses_the_moments_are_exact():
    n = 400
    simulation = anisotropic([HMC(1e-3, n_leapfrog=5)], n_chains=n, seed=5)
    simulation.burn_in(60, masses=True)
    x = simulation.run(25).samples["x"] / SCALES
    for moment, expected in ((x, 0.0), (x.square(), 1.0), (x[..., :1] * x[..., 1:], 0.0)):
        mean = moment.mean(0)
        assert ((mean.mean(0) - expected) / mean.std(0) * math.sqrt(n)).abs().max() < 3.8


def test_masses_come_from_the_coldest_walkers():
    simulation = anisotropic([HMC(1e-3, n_leapfrog=5)], temperatures=(1.0, 9.0), n_chains=100)
    simulation.burn_in(60, masses=True)
    ratio = (simulation.kernels[0].mass("x", SCALES[None]) * SCALES.square()).log()
    assert ratio.abs().max() < 0.5  # ln 9 = 2.2 if it were those of the hot ones, which start cold but soon are not


@pytest.mark.parametrize("stop", [5, 30, 57])
def test_a_burn_in_that_is_broken_goes_on_bit_for_bit(stop, tmp_path):
    class Stop(Exception):
        pass

    whole, broken, resumed = (anisotropic([HMC(1e-3, n_leapfrog=2)], n_chains=3) for _ in range(3))
    whole.burn_in(60, masses=True)
    expected = whole.run(5)
    sweeps = iter(range(1, 61))

    def interrupt():
        if next(sweeps) == stop:
            raise Stop

    with pytest.raises(Stop):
        broken.burn_in(60, masses=True, on_sweep=interrupt)
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.needs_burn_in
    resumed.burn_in(60, masses=True)
    assert torch.equal(resumed.run(5).samples["x"], expected.samples["x"])
    assert torch.equal(resumed.masses[0]["x"], whole.masses[0]["x"])


def test_what_was_adapted_is_frozen_and_travels_with_the_state(tmp_path):
    whole, resumed = (anisotropic([HMC(1e-3, n_leapfrog=2), RandomWalkMetropolis(0.01)], n_chains=3) for _ in range(2))
    whole.burn_in(60, masses=True)
    frozen = [whole.step_sizes[0].clone(), whole.kernels[0].mass("x", SCALES[None]).clone()]
    whole.run(5)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    expected = whole.run(8)
    assert torch.equal(frozen[0], whole.step_sizes[0])
    assert torch.equal(frozen[1], whole.kernels[0].mass("x", SCALES[None]))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again = resumed.run(8)
    assert torch.equal(again.samples["x"], expected.samples["x"])
    assert again.diagnostics["step_sizes"] == expected.diagnostics["step_sizes"]
