"""Annealing paths: values, forces, ends that never evaluate the other end."""

import math
from functools import partial

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.paths import (
    GeometricPath,
    LearnedSchedule,
    MixtureLevel,
    PullbackPath,
    PullbackTarget,
    SquaredPath,
    TemperedPath,
)
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import DoubleWell, Gaussian, Target, harmonic_pair
from boltzflow.testing import assert_unbiased
from boltzflow.transitions import Affine, RandomWalkMetropolis


class Forbidden(Target):
    """Raises when it is evaluated."""

    def __init__(self):
        super().__init__(Gaussian(2).fields)

    def reduced_energy(self, state, context=None):
        raise AssertionError("evaluated")


class Nowhere(Forbidden):
    """Infinite everywhere."""

    def reduced_energy(self, state, context=None):
        return torch.full((len(state),), torch.inf, dtype=torch.float64)


def points(n=5):
    return Gaussian(2).double().sample(n, make_rng(1))


@pytest.mark.parametrize("level", [0.25, 0.5])
def test_the_geometric_path_mixes_energies_and_forces(level):
    base, target = Gaussian(2).double(), DoubleWell().double()
    run, x = Run(make_rng(0)), points()
    u, force, state = GeometricPath(base, target).at(level).energy_and_force(x, run)
    expected = (1 - level) * base.reduced_energy(x) + level * target.reduced_energy(x)
    assert torch.allclose(u, expected, rtol=1e-14)
    a, b = base.energy_and_force(x)[1]["x"], target.energy_and_force(x)[1]["x"]
    assert torch.allclose(force["x"], (1 - level) * a + level * b, rtol=1e-14)
    # the leaf energies serve every other level
    before = run.ledger.n_energy()
    again, _ = GeometricPath(base, target).at(0.9).energy(state, run)
    assert torch.allclose(again, 0.1 * base.reduced_energy(x) + 0.9 * target.reduced_energy(x), rtol=1e-14)
    assert run.ledger.n_energy() == before == 10


@pytest.mark.parametrize("other", [Forbidden, Nowhere])
def test_the_ends_do_not_evaluate_the_other_end(other):
    one, run, x = DoubleWell().double(), Run(make_rng(0)), points()
    for path, level in ((GeometricPath(one, other()), 0.0), (GeometricPath(other(), one), 1.0)):
        assert torch.equal(path.at(level).energy(x, run)[0], one.reduced_energy(x))
        u, force, _ = path.at(level).energy_and_force(x, run)
        assert torch.equal(u, one.reduced_energy(x))
        assert torch.equal(force["x"], one.energy_and_force(x)[1]["x"])


def test_the_tempered_path_scales_geometrically():
    target, run, x = DoubleWell().double(), Run(make_rng(0)), points()
    path = TemperedPath(Forbidden(), target, beta_0=0.01)
    for level, beta in ((0.0, 0.01), (0.5, 0.1), (1.0, 1.0)):
        u, force, _ = path.at(level).energy_and_force(x, run)
        assert torch.allclose(u, beta * target.reduced_energy(x), rtol=1e-12)
        assert torch.allclose(force["x"], beta * target.energy_and_force(x)[1]["x"], rtol=1e-12)


def test_values_outside_the_path_are_refused():
    target = DoubleWell().double()
    for level in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"expected λ in \[0, 1\]"):
            GeometricPath(target, target).at(level)
    for beta in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="beta_0"):
            TemperedPath(target, target, beta_0=beta)


def test_a_level_is_float64_for_float32_states():
    x = points().to(dtype=torch.float32)
    u, _ = MixtureLevel(((1.0, DoubleWell()),)).energy(x, Run(make_rng(0)))
    assert u.dtype == torch.float64


def test_the_squared_path_passes_through_the_target_to_p_squared_over_q():
    base, target = Gaussian(2).double(), DoubleWell().double()
    run, x = Run(make_rng(0)), points()
    u, q = target.reduced_energy(x), base.reduced_energy(x)
    path = SquaredPath(base, target)
    for level, expected in ((0.0, q), (0.5, u), (1.0, 2 * u - q)):
        torch.testing.assert_close(path.at(level).energy(x, run)[0], expected)
    for level, forbidden in ((0.0, SquaredPath(base, Forbidden())), (0.5, SquaredPath(Forbidden(), target))):
        forbidden.at(level).energy(x, run)


def test_a_pulled_back_target_has_the_log_z_and_the_samples_of_its_target():
    base, target = Gaussian(2).double(), DoubleWell().double()
    through = [Affine(torch.tensor([0.5, 0.0]).double(), torch.tensor([2.0, 0.7], dtype=torch.float64), field="x")]
    pulled = PullbackTarget(target, through, base)
    q = points()
    image = State({"x": 2.0 * q["x"][:, :1] + 0.5}, {"x": Space("line", (1,))})
    expected = -0.5 * image["x"] - 6 * image["x"] ** 2 + image["x"] ** 4 + 0.5 * (0.7 * q["x"][:, 1:]) ** 2
    torch.testing.assert_close(pulled.reduced_energy(q), expected[:, 0] - math.log(2.0 * 0.7))
    assert pulled.log_z == target.log_z
    path = PullbackPath(base, target, through=through)
    torch.testing.assert_close(path.at(1.0).energy(q, Run(make_rng(0)))[0], pulled.reduced_energy(q))
    torch.testing.assert_close(path.at(0.0).energy(q, Run(make_rng(0)))[0], base.reduced_energy(q))


def test_stochastic_steps_before_a_map_are_weighted_exactly():
    base, target = (end.double() for end in harmonic_pair((2,), name="x"))
    scaled = Affine(torch.tensor([0.2, 0.0]), torch.tensor([1.5, 0.7]), field="x").double()
    steps = [RandomWalkMetropolis(0.8, n_steps=3, level=level) for level in (0.5, 1.0)]
    generator = Generator(base, [*steps, scaled], path=partial(PullbackPath, through=[scaled]))
    assert_unbiased(generator, target, n=4000, rng=make_rng(2))
    assert "Harmonic" not in " ".join(generator.state_dict())


def test_a_learned_schedule_starts_as_given_moves_levels_and_keeps_the_ends():
    base, target = Gaussian(2).double(), DoubleWell().double()
    run, x = Run(make_rng(0)), points()
    schedule = LearnedSchedule([0.3, 0.6, 1.0])
    plain = GeometricPath(base, target)
    for level in (0.0, 0.15, 0.3, 0.6, 0.9, 1.0):
        u = schedule(base, target).at(level).energy(x, run)[0]
        torch.testing.assert_close(u.detach(), plain.at(level).energy(x, run)[0])
    for level, end in ((0.0, schedule(base, Forbidden())), (1.0, schedule(Forbidden(), target))):
        end.at(level).energy(x, run)
    with torch.no_grad():
        schedule.log_increments[0] += 1.0
    values = schedule.values()
    assert values[1] > 0.3
    assert bool((values.diff() > 0).all())
    assert (values[0].item(), values[-1].item()) == (0.0, pytest.approx(1.0))
    moved = schedule(base, target).at(0.3).energy(x, run)[0].detach()
    torch.testing.assert_close(moved, plain.at(values[1].item()).energy(x, run)[0])


def test_a_learned_schedule_is_saved_with_the_generator():
    steps = [RandomWalkMetropolis(0.8, level=0.5)]
    one, other = (Generator(Gaussian(2), steps, path=LearnedSchedule([0.5])) for _ in range(2))
    with torch.no_grad():
        one.path.log_increments[0] += 1.0
    other.load_state_dict(one.state_dict())
    assert other.path.values().tolist() == one.path.values().tolist()
    assert "GeometricPath" in one.methods


@pytest.mark.parametrize("levels", [[], [0.0, 1.0], [0.5, 1.2]])
def test_levels_outside_are_refused(levels):
    with pytest.raises(ValueError, match="LearnedSchedule levels"):
        LearnedSchedule(levels)
