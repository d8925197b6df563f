"""Drawing ensembles: shards and their streams, failures that are counted or raised, groups, coverage of the errors."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from boltzflow.ensemble import Ensemble
from boltzflow.errors import NonFiniteEnergyError
from boltzflow.generators import Generator
from boltzflow.run import make_rng
from boltzflow.targets import FramesBase, Gaussian, Target
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.metropolis import RandomWalkMetropolis
from boltzflow.transitions.resampling import SystematicResampling
from boltzflow.transitions.transition import Bijection
from tests.generators.conftest import annealed, flow, stochastic


class Identity(Bijection):
    """Spoils x in the rows where it is above a threshold: its value, its log-ratio, or both."""

    def __init__(self, threshold, *, value=None, ratio=None):
        super().__init__()
        self.threshold, self.value, self.ratio = threshold, value, ratio

    def forward(self, state, run):
        x = state["x"]
        hit = x[:, 0] > self.threshold
        if self.value is not None:
            x = torch.where(hit[:, None], self.value, x)
        zero = torch.zeros(len(state), dtype=torch.float64)
        return state.replace(x=x), zero if self.ratio is None else torch.where(hit, self.ratio, zero)

    reverse = forward


class Spoilt(Target):
    """A unit Gaussian energy, spoilt where x is above 1."""

    def __init__(self, value):
        super().__init__(Gaussian(1).fields, name="spoilt")
        self.value = value

    def reduced_energy(self, state, context=None):
        x = state["x"][:, 0]
        return torch.where(x > 1, self.value, 0.5 * x.square())


@pytest.mark.parametrize("build", [flow, stochastic, annealed])
def test_one_call_draws_the_shards_that_are_drawn_alone(build, pair):
    base, target = pair
    generator = build(base)
    whole = generator.sample(1000, target, seed=7, batch_size=250)
    shards = list(generator.sample_shards(1000, target, 7, batch_size=250))
    continued = [
        *itertools.islice(generator.sample_shards(1000, target, 7, batch_size=250), 2),
        *generator.sample_shards(1000, target, 7, batch_size=250, first=2),
    ]
    alone = generator.sample(250, target, seed=7, batch_size=250)
    assert np.array_equal(whole.log_weights[:250], alone.log_weights)
    for parts in (shards, continued):
        merged = Ensemble.merge(parts)
        assert np.array_equal(merged.log_weights, whole.log_weights)
        assert np.array_equal(merged.samples["x"], whole.samples["x"])
        assert np.array_equal(merged.groups, whole.groups)
        assert merged.provenance.ledger == whole.provenance.ledger
        assert merged.provenance.seed == 7
    assert len(np.unique(whole.log_weights)) > 900 or build is annealed
    assert not np.array_equal(generator.sample(250, target, seed=8).log_weights, alone.log_weights)


def test_the_last_shard_may_be_smaller(pair):
    shards = list(flow(pair[0]).sample_shards(25, pair[1], 1, batch_size=10))
    assert [len(s) for s in shards] == [10, 10, 5]


def test_sampling_needs_no_gradients_and_leaves_their_mode_alone(pair):
    generator = flow(pair[0])
    shards = generator.sample_shards(20, pair[1], 1, batch_size=10)
    next(shards)
    assert torch.is_grad_enabled()
    trajectory = generator.rollout(10, pair[1], make_rng(0))
    assert trajectory.log_weights.requires_grad


def test_an_interrupt_leaves_the_finished_shards_with_the_caller(pair):
    base, target = pair
    calls = itertools.count()

    class Interrupted(type(target)):
        def reduced_energy(self, state, context=None):
            if next(calls) == 2:
                raise KeyboardInterrupt
            return super().reduced_energy(state, context)

    generator, finished = flow(base), []

    def collect():
        for shard in generator.sample_shards(40, Interrupted(target.precision).double(), 1, batch_size=10):
            finished.append(shard)

    with pytest.raises(KeyboardInterrupt):
        collect()
    assert [len(s) for s in finished] == [10, 10]


@pytest.mark.parametrize("n", [0, -3])
def test_a_number_of_samples_that_is_not_positive_is_refused(n, pair):
    generator = flow(pair[0])
    with pytest.raises(ValueError, match=f"n >= 1, got {n}"):
        generator.sample(n, pair[1])
    with pytest.raises(ValueError, match=f"n >= 1, got {n}"):
        generator.rollout(n, pair[1], make_rng(0))
    with pytest.raises(ValueError, match=f"batch_size >= 1, got {n}"):
        generator.sample(10, pair[1], batch_size=n)


def test_seeds_are_random_and_recorded(pair):
    generator = flow(pair[0])
    a, b = (generator.sample(5, pair[1]) for _ in range(2))
    assert a.provenance.seed != b.provenance.seed
    again = generator.sample(5, pair[1], seed=a.provenance.seed)
    assert np.array_equal(a.log_weights, again.log_weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [flow, stochastic, annealed])
def test_samples_have_the_dtype_of_the_generator_and_weights_are_float64(build, dtype, pair):
    generator, target = build(pair[0]).to(dtype), pair[1].to(dtype)
    assert generator.dtype == generator.base.mean.dtype == dtype
    trajectory = generator.rollout(10, target, make_rng(0))
    assert trajectory.end["x"].dtype == dtype
    wide = (trajectory.log_weights, trajectory.base_energy, trajectory.target_energy, *trajectory.log_ratios)
    assert {t.dtype for t in wide} == {torch.float64}
    ensemble = generator.sample(10, target, seed=1)
    assert ensemble.samples["x"].dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert ensemble.log_weights.dtype == ensemble.reduced_energies.dtype == np.float64
    assert ensemble.provenance.dtype == str(dtype).removeprefix("torch.")


def test_ratios_are_summed_in_float64():
    class Shift(Bijection):
        def forward(self, state, run):
            return state, torch.full((len(state),), 1e-5, dtype=torch.float64)

        reverse = forward

    # a float32 sum about 3·10⁴ kT would lose every one of these
    base = Gaussian(1)
    target = Spoilt(torch.nan)
    target.reduced_energy = lambda state, context=None: state["x"][:, 0].double() * 0 + 30_000.0
    trajectory = Generator(base, [Shift() for _ in range(100)]).rollout(4, target, make_rng(0))
    rest = trajectory.log_weights - trajectory.base_energy + 30_000.0
    assert torch.allclose(rest, torch.full_like(rest, 1e-3), rtol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_energies_that_are_not_finite_give_weight_zero_and_are_counted(value):
    base = Gaussian(1).double()
    ensemble = Generator(base, [Identity(9.0)]).sample(1000, Spoilt(value), seed=1)
    above = ensemble.samples["x"][:, 0] > 1
    assert np.array_equal(ensemble.log_weights == -np.inf, above)
    assert np.all(np.isposinf(ensemble.reduced_energies[above]))
    assert ensemble.provenance.n_nonfinite == above.sum() == ensemble.provenance.ledger["nonfinite"]["spoilt"] > 0
    assert ensemble.provenance.n_failed == 0


def test_an_energy_of_minus_infinity_raises():
    with pytest.raises(NonFiniteEnergyError, match=r"log-weights are \+inf.*spoilt"):
        Generator(Gaussian(1).double(), [Identity(9.0)]).sample(1000, Spoilt(-torch.inf), seed=1)


@pytest.mark.parametrize(
    "spoil", [{"value": torch.nan}, {"value": torch.inf}, {"ratio": torch.nan}, {"ratio": torch.inf}]
)
def test_failures_of_the_model_are_counted_apart_and_raise_when_many(spoil):
    base, target = Gaussian(1).double(), Spoilt(torch.tensor(0.5))
    few, many = Generator(base, [Identity(2.8, **spoil)]), Generator(base, [Identity(1.0, **spoil)])
    ensemble = few.sample(2000, target, seed=1)
    failed = ensemble.provenance.n_failed
    assert 0 < failed < 20
    assert ensemble.provenance.n_nonfinite == 0
    assert (ensemble.log_weights == -np.inf).sum() == failed
    with pytest.raises(NonFiniteEnergyError, match=r"NaN or inf for 1\d\.\d+% of 2000 rows"):
        many.sample(2000, target, seed=1)
    assert many.sample(2000, target, seed=1, max_failed_fraction=0.5).provenance.n_failed > 200


def test_no_density_is_not_a_failure():
    # a map without image there (r = −inf): exact weight zero
    ensemble = Generator(Gaussian(1).double(), [Identity(1.0, ratio=-torch.inf)]).sample(
        1000, Spoilt(torch.tensor(0.5)), seed=1
    )
    assert ensemble.provenance.n_failed == 0
    assert ensemble.provenance.n_nonfinite == (ensemble.samples["x"][:, 0] > 1).sum()


def test_failures_before_a_resampling_are_still_counted():
    steps = [Identity(2.0, ratio=torch.nan), SystematicResampling(threshold=1.0, level=0.5), MALA(0.1, level=1.0)]
    generator, target = Generator(Gaussian(1).double(), steps).double(), Spoilt(torch.tensor(0.5))
    trajectory = generator.rollout(1000, target, make_rng(1))
    assert not trajectory.failed.any()
    assert int(trajectory.n_failed) == (trajectory.start["x"][:, 0] > 2).sum() > 0
    with pytest.raises(NonFiniteEnergyError, match="NaN or inf"):
        generator.sample(1000, target, seed=1)


def test_a_population_without_weight_raises():
    generator = Generator(Gaussian(1).double(), [SystematicResampling(threshold=1.0, level=0.5)])
    target = Spoilt(torch.inf)
    target.reduced_energy = lambda state, context=None: torch.full((len(state),), torch.inf, dtype=torch.float64)
    with pytest.raises(NonFiniteEnergyError, match="not all −inf"):
        generator.sample(10, target)


def test_paths_keep_their_ratios_and_their_ancestors_through_resampling(pair):
    base, target = pair
    steps = [MALA(0.2, level=0.4), SystematicResampling(threshold=1.0, level=0.4), MALA(0.2, level=0.9)]
    trajectory = Generator(base, steps).double().rollout(200, target, make_rng(1))
    assert trajectory.lineage.unique().numel() < 200
    first = trajectory.log_ratios[0]
    assert torch.equal(first, first[torch.searchsorted(trajectory.lineage, trajectory.lineage)])
    population = torch.logsumexp(trajectory.log_weights, 0) - np.log(200)
    assert abs(population - (target.log_z - base.log_z)) < 0.5


def test_groups_of_resampled_rows_are_lineages_or_populations(pair):
    base, target = pair
    few = annealed(base, threshold=1.0, n_levels=3).sample(300, target, seed=1, batch_size=100)
    assert len(few.group_sizes) == 300
    assert np.all(few.group_sizes == 1)
    assert len(np.unique(few.groups)) < 300
    assert np.array_equal(np.unique(few.groups // 100, return_counts=True)[1], [100, 100, 100])
    many = annealed(base, threshold=1.0, n_levels=3).sample(400, target, seed=1, batch_size=20)
    assert np.array_equal(many.groups, np.repeat(np.arange(20), 20))
    assert "20 groups" in many.log_z().method
    plain = stochastic(base).sample(30, target, seed=1, batch_size=10)
    assert len(plain.grouping) == 30


def test_rows_of_one_base_frame_are_one_group_in_all_shards(pair):
    first, second = pair
    frames = FramesBase(first.sample(40, make_rng(1)), first)
    for build in (stochastic, annealed):
        ensemble = build(frames).sample(900, second, seed=2, batch_size=300)
        assert ensemble.groups_shared
        assert len(np.unique(ensemble.groups)) <= 40
        assert len(ensemble.grouping) <= 40
        assert ensemble.provenance.n_energy == sum(ensemble.provenance.ledger["energy"].values())
    # all frames that were drawn count, also those that left no row
    assert ensemble.group_sizes.sum() == 900
    error = ensemble.log_z().error
    doubled = build(frames).sample(8 * 900, second, seed=3, batch_size=300).log_z().error
    assert doubled > 0.6 * error  # 40 frames hold no more than 40 frames, however often they are used


def test_evaluations_are_counted_once_and_bases_of_closed_form_cost_nothing(pair):
    base, target = pair
    count = flow(base).sample(100, target, seed=1, batch_size=50).provenance
    assert count.ledger["energy"] == {target.name: 100}
    assert count.n_force == 0
    # start and end of each of two Metropolis steps at one level, both ends of the path at one point at most once
    generator = Generator(base, [RandomWalkMetropolis(0.3, n_steps=2, level=0.5)])
    assert generator.sample(100, target, seed=1).provenance.n_energy == 300
    frames = FramesBase(base.sample(40, make_rng(1)), target)
    count = Generator(frames, [RandomWalkMetropolis(0.3, n_steps=2, level=0.5)]).sample(100, target, seed=1).provenance
    assert count.ledger["energy"] == {frames.name: 300, target.name: 300}


def test_a_generator_is_pickled_and_holds_no_target(pair):
    generator = stochastic(pair[0])
    copy = pickle.loads(pickle.dumps(generator))
    a, b = generator.sample(20, pair[1], seed=1), copy.sample(20, pair[1], seed=1)
    assert np.array_equal(a.log_weights, b.log_weights)
    assert all(name.startswith("transitions.") for name in generator.state_dict())
    assert pair[0] not in list(generator.modules())


def test_ninety_five_percent_intervals_of_annealed_runs_cover_log_z(wells):
    base, target = wells
    n_runs, inside = 100, 0
    generator = annealed(base, n_levels=4, threshold=0.9)
    for seed in range(n_runs):
        estimate = generator.sample(100, target, seed=seed).log_z()
        inside += abs(estimate.value - target.log_z) < 1.96 * estimate.error
    # 95 % of 100 are 95 ± 2.2; log Z of so small a population is a little skewed
    assert inside >= 88
