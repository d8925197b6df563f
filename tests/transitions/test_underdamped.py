"""Unadjusted HMC, velocities and underdamped Langevin: ratios of their paths, the way back, counts, bad input."""

import math

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.targets import DoubleWell, Gaussian, MeanFreeGaussian, harmonic_pair
from boltzflow.testing import (
    assert_crooks,
    assert_dtypes,
    assert_reverse_ratio,
    assert_unbiased,
    check_transition,
    run_at,
)
from boltzflow.transitions import BAOAB, BBK, OBABO, DrawVelocities, DropVelocities, UnadjustedHMC
from boltzflow.transitions.velocities import flipped

KINDS = (BBK, BAOAB, OBABO)
MASSES = {"x": torch.tensor([0.4, 3.0], dtype=torch.float64)}


def start(n=64):
    """A State of the double well with velocities, and a run at it."""
    target = DoubleWell().double()
    run = run_at(target, make_rng(1))
    state, _ = DrawVelocities()(target.sample(n, run.rng), run)
    return state, run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masses", [None, MASSES], ids=["", "masses"])
def test_the_ratio_of_a_pair_is_that_of_the_path(kind, masses):
    state, run = start()
    step = kind(0.1, friction=0.7, masses=masses)
    assert_reverse_ratio(step, state, run)
    assert_dtypes(step, state, run)


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_of_the_way_back_leads_back(kind):
    state, run = start()
    step = kind(0.1, friction=0.7)
    y, ratio = step(state, run)
    # the ratio of the flipped step back is the negative one: the same noise, exchanged
    back = step.log_ratio(flipped(y), flipped(state), run)
    torch.testing.assert_close(back, -ratio)


class GivenNoise(Run):
    """Hands out the same noise at every call, in turn."""

    def normal(self, like):
        return self.context["noise"].pop(0).expand_as(like).to(like)


@pytest.mark.parametrize("kind", [BBK, OBABO])
def test_the_ratio_is_that_of_gaussian_densities(kind):
    """With two noises in one harmonic dimension (x', v') is Gaussian given (x, v), of known mean and covariance."""
    target = Gaussian(1, scale=0.8).double()
    level = run_at(target, make_rng(2)).level
    step = kind(0.3, friction=1.1)

    def image(x, v, *noise):
        fields = {"x": torch.tensor([[x]]).double(), "x_velocity": torch.tensor([[v]]).double()}
        spaces = {name: Space("line", (1,)) for name in fields}
        run = GivenNoise(make_rng(0), {"noise": [torch.tensor([[n]]).double() for n in noise]}, level=level)
        moved, ratio = step(State(fields, spaces), run)
        return torch.cat([moved["x"][0], moved["x_velocity"][0]]), ratio[0]

    matrix = torch.stack([image(*row)[0] for row in torch.eye(4).tolist()], 1)
    mean, root = matrix[:, :2], matrix[:, 2:]
    flip = torch.tensor([1.0, -1.0]).double()

    def log_density(end, start):
        return torch.distributions.MultivariateNormal(mean @ start, root @ root.T).log_prob(end)

    x = torch.tensor([0.4, -1.3]).double()
    y, ratio = image(*x.tolist(), 0.7, -0.2)
    torch.testing.assert_close(ratio, log_density(flip * x, flip * y) - log_density(y, x))


@pytest.mark.parametrize("kind", KINDS)
def test_paths_with_velocities_obey_crooks(kind):
    base, target = (end.double() for end in harmonic_pair((2,), name="x"))
    steps = [DrawVelocities(), *(kind(0.4, friction=1.0, n_steps=3, masses=MASSES, level=k / 3) for k in (1, 2, 3))]
    generator = Generator(base, [*steps, DropVelocities()])
    assert_crooks(generator, target, n=4000, rng=make_rng(4))


@pytest.mark.parametrize("kind", KINDS)
def test_several_steps_are_the_sum_of_single_ones(kind):
    state, _ = start()
    y, ratio = kind(0.1, friction=0.7, n_steps=3)(state, run_at(DoubleWell().double(), make_rng(9)))
    total, again = torch.zeros_like(ratio), run_at(DoubleWell().double(), make_rng(9))
    for _ in range(3):
        state, r = kind(0.1, friction=0.7)(state, again)
        total = total + r
    torch.testing.assert_close(y["x"], state["x"])
    torch.testing.assert_close(ratio, total)


def test_unadjusted_hmc_passes_the_checks_of_any_transition():
    target = DoubleWell().double()
    run = run_at(target, make_rng(1))
    check_transition(UnadjustedHMC(0.2, n_leapfrog=3, n_steps=2, masses=MASSES), target.sample(8, run.rng), run)


def test_velocities_pass_the_checks_of_any_transition():
    target = DoubleWell().double()
    run = run_at(target, make_rng(1))
    state = target.sample(8, run.rng)
    assert_reverse_ratio(DrawVelocities(), state, run)
    joint, ratio = DrawVelocities()(state, run)
    assert_reverse_ratio(DropVelocities(), joint, run)
    expected = 0.5 * joint["x_velocity"].square().sum(1) + math.log(2 * math.pi)
    torch.testing.assert_close(ratio, expected)


def test_particles_without_translations_keep_their_centre_and_their_weights():
    base, target = MeanFreeGaussian(4, 2).double(), MeanFreeGaussian(4, 2, scale=1.3).double()
    steps = [OBABO(0.3, friction=1.0, n_steps=2, level=k / 2) for k in (1, 2)]
    generator = Generator(base, [DrawVelocities(), *steps, DropVelocities()])
    assert_unbiased(generator, target, n=4000, rng=make_rng(1))
    with torch.no_grad():
        end = generator.rollout(100, target, make_rng(2)).end["positions"]
    assert end.mean(1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("kernel", "n_force"),
    [(UnadjustedHMC(0.1, n_leapfrog=3, n_steps=4), 13), *((kind(0.1, friction=1.0, n_steps=4), 5) for kind in KINDS)],
)
def test_evaluations_are_counted_and_never_repeated(kernel, n_force):
    state, run = start(7)
    run.ledger.forces.clear()
    kernel(state, run)
    assert run.ledger.n_force() == 7 * n_force


def test_missing_velocities_are_named():
    target = DoubleWell().double()
    run = run_at(target, make_rng(1))
    with pytest.raises(ValueError, match="put DrawVelocities before"):
        BAOAB(0.1, friction=1.0)(target.sample(2, run.rng), run)
    with pytest.raises(ValueError, match="put DrawVelocities before"):
        DropVelocities()(target.sample(2, run.rng), run)
    state, _ = DrawVelocities()(target.sample(2, run.rng), run)
    with pytest.raises(ValueError, match="already"):
        DrawVelocities()(state, run)


def test_unequal_masses_without_translations_are_refused():
    base = MeanFreeGaussian(3, 2).double()
    step = BBK(0.1, friction=1.0, masses={"positions": torch.tensor([[1.0], [2.0], [3.0]]).double()})
    generator = Generator(base, [DrawVelocities(), step, DropVelocities()])
    with pytest.raises(ValueError, match="one mass"):
        generator.rollout(2, MeanFreeGaussian(3, 2).double(), make_rng(0))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: BAOAB(0.0, friction=1.0), "step_size"),
        (lambda: BAOAB(0.1, friction=-1.0), "friction"),
        (lambda: BBK(0.1, friction=1.0, n_steps=0), "BBK n_steps"),
        (lambda: UnadjustedHMC(0.1, n_leapfrog=0), "n_leapfrog"),
        (lambda: OBABO(0.1, friction=1.0, masses={"x": torch.zeros(2)}), "OBABO masses"),
    ],
)
def test_bad_settings_are_named(make, what):
    with pytest.raises(ValueError, match=what):
        make()


def test_a_pair_of_several_steps_has_no_ratio():
    state, run = start(2)
    with pytest.raises(ValueError, match="n_steps = 1"):
        BAOAB(0.1, friction=1.0, n_steps=2).log_ratio(state, state, run)
