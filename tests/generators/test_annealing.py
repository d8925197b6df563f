"""Annealed samplers: exact weights, schedules that are found and frozen, errors that cover, and what is refused."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from boltzflow.ensemble import Ensemble
from boltzflow.errors import AnnealingError, NonFiniteEnergyError
from boltzflow.generators import Schedule, annealed_importance, conditional_ess, find_schedule, smc, stochastic_block
from boltzflow.generators.normal_base import normal_base
from boltzflow.paths import TemperedPath
from boltzflow.run import make_rng
from boltzflow.targets import DoubleWell, FramesBase, Gaussian, LennardJonesCluster, Target, gmm9
from boltzflow.testing import assert_crooks, assert_unbiased
from boltzflow.transitions import HMC, MALA, OverdampedLangevin, RandomWalkMetropolis, SystematicResampling
from boltzflow.transitions.transition import Bijection
from tests.generators.conftest import coupling


def levels(n):
    return [k / n for k in range(1, n + 1)]


def left(state):
    return (state["x"][:, 0] < 0).double()


@pytest.mark.parametrize(
    "kernels",
    [
        RandomWalkMetropolis(0.5, n_steps=2),
        HMC(0.2, n_leapfrog=2),
        OverdampedLangevin(0.03),
        [HMC(0.2, n_leapfrog=2), RandomWalkMetropolis(0.5)],
        stochastic_block("baoab", step_size=0.2, n_steps=2),
    ],
    ids=["metropolis", "hmc", "langevin", "two kernels", "underdamped"],
)
def test_weights_of_annealed_paths_are_exact_in_both_directions(kernels, pair):
    generator = annealed_importance(pair[0], kernels, levels(4)).double()
    assert_unbiased(generator, pair[1], n=20_000, rng=make_rng(1))
    assert_crooks(generator, pair[1], n=5_000, rng=make_rng(2))


@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("maps", [False, True])
def test_resampled_populations_have_exact_weights(threshold, maps, pair):
    flows = [coupling(k % 2 == 0, scale=0.1) for k in range(4)] if maps else None
    generator = smc(pair[0], MALA(0.1), levels(4), threshold=threshold, maps=flows).double()
    assert_unbiased(generator, pair[1], n=20_000, rng=make_rng(1))


def test_a_sampler_is_its_levels_in_order_and_never_resamples_for_the_target(wells):
    generator = smc(wells[0], [MALA(0.1), HMC(0.1, n_leapfrog=2)], [0.5, 1.0])
    kinds = [(type(step), step.level) for step in generator.transitions]
    assert kinds == [(SystematicResampling, 0.5), (MALA, 0.5), (HMC, 0.5), (MALA, 1.0), (HMC, 1.0)]
    assert [type(s) for s in annealed_importance(wells[0], MALA(0.1), [0.5, 1.0]).transitions] == [MALA, MALA]


def test_the_conditional_effective_fraction_is_that_of_its_definition():
    rng = make_rng(3)
    log_w, log_v = torch.randn(2, 50, generator=rng, dtype=torch.float64)
    w, v = torch.softmax(log_w, 0), log_v.exp()
    assert conditional_ess(log_w, log_v) == pytest.approx(float((w * v).sum() ** 2 / (w * v**2).sum()))
    assert conditional_ess(log_w, torch.full_like(log_w, 3.0)) == pytest.approx(1.0)
    log_w[7], log_v[9] = -torch.inf, -torch.inf
    kept = torch.ones(50, dtype=torch.bool)
    kept[[7, 9]] = False
    assert conditional_ess(log_w, log_v) == pytest.approx(conditional_ess(log_w[kept], log_v[kept]))


@pytest.mark.parametrize("cess", [0.8, 0.95])
def test_a_schedule_keeps_the_conditional_effective_fraction_and_ends_at_the_target(cess, wells):
    schedule = find_schedule(*wells, HMC(0.1, n_leapfrog=3), cess=cess, n=500, seed=1)
    assert schedule.levels[-1] == 1.0
    assert all(a < b for a, b in zip((0.0, *schedule.levels), schedule.levels, strict=False))
    assert schedule.cess[:-1] == pytest.approx([cess] * (len(schedule) - 1), abs=1e-6)
    assert schedule.cess[-1] >= cess - 1e-6


def test_finer_schedules_have_more_levels(wells):
    n = [len(find_schedule(*wells, HMC(0.1, n_leapfrog=3), cess=c, n=500, seed=1)) for c in (0.5, 0.8, 0.95)]
    assert n[0] < n[1] < n[2]


def test_steps_come_to_their_acceptance_from_far_away(wells):
    for start in (1e-3, 10.0):
        schedule = find_schedule(*wells, HMC(start, n_leapfrog=3), n=500, n_rounds=20, seed=1)
        # the base is isotropic and wide: at its first levels any step is taken
        assert np.abs(np.array(schedule.acceptance[2:]) - 0.75).max() < 0.1
        assert schedule.step_sizes[-1][0] == pytest.approx(0.3, rel=0.25)


def test_the_frozen_steps_are_those_of_the_pilot_and_the_pilot_is_counted(wells):
    base, target = wells
    kernel = MALA(0.1)
    schedule = find_schedule(base, target, kernel, n=300, seed=4)
    generator = smc(base, kernel, schedule)
    assert float(kernel.step_size) == 0.1
    moves = [t for t in generator.transitions if isinstance(t, MALA)]
    assert [m.level for m in moves] == list(schedule.levels)
    assert [float(m.step_size) for m in moves] == [s for (s,) in schedule.step_sizes]
    # every round evaluates the population once, and so do the start and a change of level that needs an energy first
    per_round = schedule.ledger.n_force(target.name) / 300
    assert 8 * len(schedule) <= per_round <= 8 * len(schedule) + 2
    again = find_schedule(base, target, kernel, n=300, seed=4)
    assert again.levels == schedule.levels
    assert again.step_sizes == schedule.step_sizes
    assert "constant CESS schedule" in generator.methods


def test_given_levels_are_kept_and_maps_carry_the_pilot(pair):
    kernel = HMC(0.1, n_leapfrog=2)
    schedule = find_schedule(*pair, kernel, levels=[0.3, 1.0], n=200, seed=1)
    assert schedule.levels == (0.3, 1.0)
    plain = find_schedule(*pair, kernel, levels=[1.0], n=2000, seed=1).cess[0]
    # a map that does all of the work leaves nothing to the weights
    found = find_schedule(*pair, kernel, levels=[1.0], maps=[_Exact(pair[1])], n=2000, seed=1).cess[0]
    assert plain < 0.9
    assert found > 0.999


class _Exact(Bijection):
    """The affine map that carries the standard normal into a harmonic target."""

    def __init__(self, target):
        super().__init__()
        self.scale = torch.linalg.cholesky(torch.linalg.inv(target.precision))
        self.mean = target.mean

    def forward(self, state, run):
        ratio = torch.logdet(self.scale).expand(len(state))
        return state.replace(x=self.mean + state["x"] @ self.scale.T), ratio

    def reverse(self, state, run):
        raise NotImplementedError


def test_ninety_five_percent_intervals_between_populations_cover_the_exact_values(pair):
    base, target = pair
    generator = smc(base, RandomWalkMetropolis(0.5), levels(2), threshold=1.0)
    n_runs, exact = 16, np.array([target.log_z, float(target.mean[0])])
    shards = list(generator.sample_shards(20 * 40 * n_runs, target, 7, batch_size=40))
    runs = [Ensemble.merge(shards[20 * k : 20 * k + 20]) for k in range(n_runs)]
    found = [(run.log_z(), run.expectation(lambda state: state["x"][:, 0])) for run in runs]
    z = np.array([[f.z_score(e) for f, e in zip(both, exact, strict=True)] for both in found])
    low, high = (np.array([[f.interval()[side] for f in both] for both in found]) for side in (0, 1))
    # the mean of 16 z-scores is 0 ± 0.25, their spread 1 ± 0.18, and 95 % of 16 are 15 ± 1
    assert np.abs(z.mean(0)).max() < 0.8
    assert 0.5 < z.std(0).min() <= z.std(0).max() < 1.5
    assert ((low < exact) & (exact < high)).sum(0).min() >= 13


def test_mode_weights_are_exact():
    base, target = Gaussian(2, scale=6.0).double(), gmm9().double()
    kernel = HMC(0.5, n_leapfrog=3)
    generator = smc(base, kernel, find_schedule(base, target, kernel, cess=0.7, seed=1))
    ensemble = generator.sample(10_000, target, seed=2, batch_size=500)
    mode = target.component(ensemble.to_state()).numpy()
    z = np.array([ensemble.expectation(mode == k).z_score(1 / 9) for k in range(9)])
    assert np.abs(z).max() < 3.5
    assert 0.2 < np.mean(z**2) < 2.5
    assert abs(ensemble.log_z().z_score(0.0)) < 3.5


class Hot(Target):
    """The double well at another temperature."""

    def __init__(self, beta):
        super().__init__(Gaussian(2).fields, name="hot wells")
        self.well, self.beta = DoubleWell().double(), beta

    def reduced_energy(self, state, context=None):
        return self.beta * self.well.reduced_energy(state)


def test_population_annealing_from_frames_at_a_higher_temperature():
    beta_0 = 0.25
    hot, target = Hot(beta_0), DoubleWell().double()
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    states = target.state(torch.stack([grid, torch.zeros_like(grid)], 1))
    p = torch.softmax(-hot.reduced_energy(states), 0)
    rng = make_rng(5)
    x = grid[torch.multinomial(p, 20_000, replacement=True, generator=rng)]
    y = torch.randn(20_000, generator=rng, dtype=torch.float64) / math.sqrt(beta_0)
    base = FramesBase(target.state(torch.stack([x, y], 1)), hot)
    # log Z of the hot well by the same quadrature
    log_z_hot = float(torch.logsumexp(-hot.reduced_energy(states), 0)) + math.log(12 / 4000)
    log_z_hot += 0.5 * math.log(2 * math.pi / beta_0)
    path, kernel = partial(TemperedPath, beta_0=beta_0), HMC(0.2, n_leapfrog=3)
    schedule = find_schedule(base, target, kernel, path=path, cess=0.9, n=500, seed=1)
    generator = smc(base, kernel, schedule, threshold=1.0, path=path)
    ensemble = generator.sample(10_000, target, seed=2, batch_size=500)
    found = ensemble.log_z()
    assert "frames of hot wells" in found.note
    assert abs(found.z_score(target.log_z - log_z_hot)) < 3.5
    assert found.error < 0.03
    assert abs(ensemble.expectation(left).z_score(0.1556929)) < 3.5


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([0.5, 0.9], r"ends at λ = 0\.9.*not the target.*exactly 1\.0"),
        ([0.5, 0.4, 1.0], "rising strictly"),
        ([0.0, 1.0], "rising strictly"),
        ([0.5, 2.0], "ends at λ = 2"),
        ([], "rising strictly"),
    ],
)
def test_a_schedule_that_does_not_end_at_the_target_is_refused(bad, words, wells):
    for make in (lambda: smc(wells[0], MALA(0.1), bad), lambda: annealed_importance(wells[0], MALA(0.1), bad)):
        with pytest.raises(AnnealingError, match=words):
            make()
    with pytest.raises(AnnealingError, match=words):
        Schedule(tuple(bad))


def test_parts_that_do_not_fit_are_refused(wells, pair):
    schedule = find_schedule(*wells, MALA(0.1), n=100, cess=0.5, seed=1)
    with pytest.raises(AnnealingError, match="steps of 1 kernels, but 2"):
        smc(wells[0], [MALA(0.1), MALA(0.2)], schedule)
    with pytest.raises(AnnealingError, match="each of 2 levels, got 1"):
        smc(pair[0], MALA(0.1), [0.5, 1.0], maps=[coupling(True)])
    with pytest.raises(AnnealingError, match="one Bijection for every given level"):
        find_schedule(*pair, MALA(0.1), maps=[coupling(True)])
    with pytest.raises(AnnealingError, match=r"fraction in \(0, 1\), got 1.0"):
        find_schedule(*wells, MALA(0.1), cess=1.0)
    with pytest.raises(AnnealingError, match=r"3 levels reach only λ = 0\.\d+.*raise max_levels"):
        find_schedule(*wells, MALA(0.1), cess=0.99, n=100, max_levels=3, seed=1)


def test_a_step_that_rejects_everything_is_reported(wells, caplog):
    kernel = HMC(300.0, n_leapfrog=3)
    with pytest.raises(AnnealingError, match=r"HMC at λ = \S+ with step size \S+ accepts 0\.\d+%.*75% are aimed at"):
        find_schedule(*wells, kernel, n_rounds=2, n=200, seed=1)
    generator = smc(wells[0], kernel, levels(3))
    generator.sample(40, wells[1], seed=1)
    assert "accepts 0.00% of its proposals" in caplog.text
    assert "2 other steps stand still, too" in caplog.text
    caplog.clear()
    smc(wells[0], HMC(0.1, n_leapfrog=3), levels(3)).sample(40, wells[1], seed=1)
    assert not caplog.text


def test_a_base_outside_the_support_is_refused():
    class Walled(DoubleWell):
        def reduced_energy(self, state, context=None):
            u = super().reduced_energy(state, context)
            return torch.where(state["x"][:, 0] > 30.0, u, torch.inf)

    with pytest.raises(NonFiniteEnergyError, match=r"no row of the population at λ = 0 has a finite energy"):
        find_schedule(Gaussian(2).double(), Walled().double(), MALA(0.1), n=100, seed=1)


def test_rows_of_infinite_energy_are_left_behind():
    class Half(DoubleWell):
        def reduced_energy(self, state, context=None):
            u = super().reduced_energy(state, context)
            return torch.where(state["x"][:, 0] > 0.0, u, torch.inf)

    base, target, kernel = Gaussian(2, scale=2.0).double(), Half().double(), RandomWalkMetropolis(0.3, n_steps=4)
    schedule = find_schedule(base, target, kernel, n=400, cess=0.7, seed=1)
    ensemble = smc(base, kernel, schedule).sample(4000, target, seed=2, batch_size=200)
    exact = DoubleWell().log_z + math.log(1 - 0.1556929)
    assert abs(ensemble.log_z().z_score(exact)) < 3.5


def test_weights_with_a_heavy_tail_say_so(wells):
    ensemble = annealed_importance(wells[0], MALA(1e-4), [1.0]).sample(400, wells[1], seed=3)
    assert any("k-hat" in w for w in ensemble.log_z().warnings) == (ensemble.pareto_k() > 0.7)
    narrow = Gaussian(2, scale=0.35).double()
    estimate = annealed_importance(narrow, MALA(1e-3), [0.5, 1.0]).sample(2000, wells[1], seed=3).log_z()
    assert any("k-hat" in w and "cannot be trusted" in w for w in estimate.warnings)


def test_particles_that_overlap_in_the_base_take_as_small_first_steps_as_they_must():
    """r⁻¹² of a gas without a repulsion is 10²⁰ kT, and more."""
    target = LennardJonesCluster(20).double()
    base, kernel = normal_base(target, scale=0.6).double(), HMC(0.02, n_leapfrog=3)
    schedule = find_schedule(base, target, kernel, cess=0.6, n=100, n_rounds=2, seed=1)
    assert schedule.levels[0] < 1e-9
    assert len(schedule) < 300
