"""Annealing of (z, e): exact weights with noise that moves with the positions, in SMC and in chains."""

import math

import pytest
import torch

from boltzflow.generators import Generator, find_schedule, perturbed_smc
from boltzflow.networks import PairField, ShallowField
from boltzflow.paths import NoisyBase, PullbackTarget, perturbed_path
from boltzflow.run import Run, make_rng
from boltzflow.simulation import NeuTra
from boltzflow.targets import Gaussian, MeanFreeGaussian, harmonic_pair, perturbation_wells
from boltzflow.testing import assert_unbiased
from boltzflow.transitions import HMC, MALA, DrawNoise, DropNoise, FlowPerturbation, RandomWalkMetropolis, RotationHMC

SCALE = 0.7


def flow(d=3, *, size=0.3, **settings):
    field, rng = ShallowField(d, 12).double(), make_rng(1)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=rng)
    with torch.no_grad():
        field.last.weight.mul_(size)
    return FlowPerturbation(field, n_steps=2, name="x", **settings)


def ends(d=3):
    return Gaussian(d, scale=SCALE).double(), perturbation_wells(d).double()


def drop(perturbed):
    return DropNoise(perturbed.n_noises, name=perturbed.name)


def test_the_noisy_base_is_normalised_and_weighs_as_noise_that_is_drawn():
    base, perturbed = ends()[0], flow()
    noisy = NoisyBase(base, perturbed)
    state = noisy.sample(200, make_rng(1))
    normal = -0.5 * state["x_noise"].square().sum((1, 2)) - 3.0 * math.log(2 * math.pi)
    torch.testing.assert_close(noisy.log_prob(state), base.log_prob(state) + normal)
    assert noisy.dimension == 3 + 2 * 3
    generator = Generator(NoisyBase(harmonic_pair(3)[0].double(), perturbed), [perturbed, drop(perturbed)])
    assert_unbiased(generator, harmonic_pair(3)[1].double(), n=1000, rng=make_rng(2))


@pytest.mark.parametrize("per_step", [True, False])
def test_the_pulled_back_density_is_the_weight_of_flow_perturbation(per_step):
    base, target = ends()
    perturbed = flow(per_step=per_step)
    noisy = NoisyBase(base, perturbed)
    state = noisy.sample(50, make_rng(1))
    path = perturbed_path(perturbed)(noisy, target)
    run = Run(make_rng(2))
    pulled = path.at(1.0).energy(state, run)[0]
    image, ratio = perturbed(state, run)
    log_omega = noisy.base.reduced_energy(state) - target.reduced_energy(image) + ratio
    prior = noisy.reduced_energy(state)
    torch.testing.assert_close(pulled, prior - log_omega)
    # levels are p(z) N(e) ω^λ
    torch.testing.assert_close(path.at(0.3).energy(state, run)[0], prior - 0.3 * log_omega)


def test_forces_on_positions_and_noise_are_the_derivatives():
    base, target = ends()
    perturbed = flow()
    noisy = NoisyBase(base, perturbed)
    pulled = PullbackTarget(target, [perturbed, drop(perturbed)], noisy)
    state = noisy.sample(4, make_rng(1))
    _, force = pulled.energy_and_force(state)
    turn = {name: torch.randn(x.shape, dtype=torch.float64, generator=make_rng(2)) for name, x in state.fields.items()}
    h = 1e-5
    up, down = (
        pulled.reduced_energy(state.replace(**{n: x + sign * h * turn[n] for n, x in state.fields.items()}))
        for sign in (1, -1)
    )
    expected = sum((force[n] * turn[n]).flatten(1).sum(1) for n in turn)
    torch.testing.assert_close(-(up - down) / (2 * h), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "kernel",
    [
        RandomWalkMetropolis(0.3, n_steps=2),
        MALA(0.05),
        HMC(0.2, n_leapfrog=2),
        RotationHMC(0.3, n_rotations=2, scales={"x": SCALE}),
    ],
    ids=["random walk", "mala", "hmc", "rotation"],
)
def test_weights_with_moves_of_the_noise_are_exact(kernel):
    base, target = (end.double() for end in harmonic_pair(3))
    generator = perturbed_smc(base, flow(), kernel, [0.5, 1.0], threshold=None)
    # E[1/w] as well: without resampling paths are traced back
    assert_unbiased(generator, target, n=1000, rng=make_rng(1))


def test_weights_of_resampled_noise_are_exact():
    base, target = (end.double() for end in harmonic_pair(3))
    generator = perturbed_smc(base, flow(), RandomWalkMetropolis(0.3), [0.5, 1.0], threshold=0.95)
    assert_unbiased(generator, target, n=1000, rng=make_rng(1), n_populations=25)


def test_adaptive_levels_reach_the_wells():
    """log Z, the weight of the left well and the mean energy, against the exact ones; errors between populations."""
    base, target, perturbed = Gaussian(2, scale=1.5).double(), perturbation_wells(2).double(), flow(2)
    kernel = RotationHMC(0.4, n_rotations=2, scales={"x": 1.5})
    path = perturbed_path(perturbed)
    schedule = find_schedule(NoisyBase(base, perturbed), target, kernel, path=path, cess=0.8, n=100, n_rounds=3, seed=1)
    assert schedule.levels[-1] == 1.0
    assert len(schedule) > 2
    generator = perturbed_smc(base, perturbed, kernel, schedule)
    assert {"FlowPerturbation", "NoisyBase", "constant CESS schedule"} <= set(generator.methods)
    ensemble = generator.sample(2000, target, seed=2, batch_size=100)
    assert "between 20 groups" in ensemble.log_z().method
    assert abs(ensemble.log_z().z_score(target.log_z)) < 4
    assert ensemble.log_z().error < 0.25
    exact = target.sample(40_000, make_rng(3))
    for value in (lambda s: (s["x"][:, 0] < 0).double(), lambda s: target.reduced_energy(s)):
        truth, found = value(exact), ensemble.expectation(value)
        error = math.hypot(found.error, float(truth.std()) / math.sqrt(len(truth)))
        assert abs(found.value - float(truth.mean())) < 4 * error


def test_noise_without_a_centre_of_mass_stays_so():
    field = PairField([0] * 4, 2, reach=4.0, n_basis=6, n_times=2).double()
    torch.nn.init.normal_(field.weights, std=0.03, generator=make_rng(1))
    perturbed = FlowPerturbation(field, n_steps=2)
    base, target = (MeanFreeGaussian(4, 2, scale=s).double() for s in (1.0, 1.1))
    kernels = [HMC(0.2, n_leapfrog=2), RandomWalkMetropolis(0.2), MALA(0.02), RotationHMC(0.3)]
    generator = perturbed_smc(base, perturbed, kernels, [0.5, 1.0])
    moved = generator.rollout(20, target, make_rng(1)).end["positions"]
    torch.testing.assert_close(moved.mean(1), torch.zeros(20, 2, dtype=torch.float64))
    noisy = NoisyBase(base, perturbed)
    assert noisy.dimension == 6 + 2 * 6
    state, run = noisy.sample(20, make_rng(2)), Run(make_rng(3))
    level = perturbed_path(perturbed)(noisy, target).at(1.0)
    for kernel in kernels:
        state = kernel.step(state, run.at(level))
        assert state["positions_noise"].mean(2).abs().max() < 1e-12
    free = perturbed_smc(base, perturbed, RotationHMC(0.3), [1.0], threshold=None)
    assert_unbiased(free, target, n=500, rng=make_rng(4))


def test_chains_on_positions_and_noise_sample_the_target():
    target = Gaussian(3, scale=0.6).double()
    base, perturbed = Gaussian(3, scale=SCALE).double(), flow()
    generator = Generator(NoisyBase(base, perturbed), [perturbed, drop(perturbed)])
    kernels = [RotationHMC(0.7, n_rotations=2, scales={"x": SCALE})]
    chains = NeuTra(
        generator, target, n_chains=32, kernels=kernels, seed=1, observables={"r2": lambda s: s["x"].square().sum(1)}
    )
    chains.burn_in(15)
    result = chains.run(25)
    assert set(result.samples) == {"x"}
    r2 = torch.as_tensor(result.observables["r2"]).double().mean(0)
    assert abs(float((r2.mean() - 3 * 0.36) / (r2.std() / 32**0.5))) < 4


def test_chains_refuse_noise_that_is_drawn_on_the_way():
    base, target = ends()
    perturbed = flow()
    generator = Generator(base, [DrawNoise(perturbed.n_noises, name="x"), perturbed, drop(perturbed)])
    with pytest.raises(TypeError, match="not a Bijection"):
        NeuTra(generator, target, n_chains=2)
