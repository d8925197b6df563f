"""Autoregressive flows as Generators: densities of the joint, training on frames, hands, and what is refused."""

import pytest
import torch

import boltzflow as bf
from boltzflow.errors import UnsupportedForceError
from boltzflow.generators import Generator, build_generator
from boltzflow.io.config import GeneratorConfig, ObjectiveConfig
from boltzflow.objectives import LogVariance, MaximumLikelihood, PathLikelihood, build_objective
from boltzflow.objectives.objective import Step
from boltzflow.run import make_rng
from boltzflow.targets import Gaussian
from boltzflow.transitions import DropPlacement
from tests.transitions.test_autoregressive import randomised

SMALL = {"n_blocks": 2, "n_layers": 1, "width": 16, "head_width": 8}


def config(**options):
    return GeneratorConfig(family="autoregressive_flow", autoregressive=SMALL | options)


@pytest.fixture(scope="module")
def molecule():
    return bf.load_system("alanine_dipeptide_ff99sbildn")


def frames(molecule, n=16):
    noise = torch.randn(n, molecule.n_atoms, 3, dtype=torch.float64, generator=make_rng(7))
    return molecule.target.state(molecule.positions + 0.004 * noise)


def built(molecule):
    generator = build_generator(molecule, config(), dtype=torch.float64)
    randomised(generator.transitions[:-2], scale=0.05)
    return generator


def test_the_density_of_positions_with_their_placement_is_known(molecule):
    generator = built(molecule)
    joint, (drop,) = generator.joint()
    assert isinstance(drop, DropPlacement)
    assert joint.is_bijective
    assert not generator.is_bijective
    with torch.no_grad():
        trajectory = generator.rollout(5, molecule.target, make_rng(1))
        state = joint.as_target().sample(5, make_rng(1))
    expected = -trajectory.base_energy - sum(trajectory.log_ratios[:-1])
    torch.testing.assert_close(joint.log_prob(state), expected, rtol=1e-10, atol=1e-8)
    centred = state["positions"] - state["positions"].mean(1, keepdim=True)
    torch.testing.assert_close(trajectory.end["positions"], centred)
    with pytest.raises(TypeError, match="DropPlacement"):
        generator.log_prob(trajectory.end)


def test_likelihood_is_that_of_the_joint_at_a_random_placement_and_needs_no_energy(molecule):
    generator, data = built(molecule), frames(molecule)
    objective = build_objective(generator, molecule.target, ObjectiveConfig())
    assert isinstance(objective, MaximumLikelihood)
    step, other = Step(make_rng(3), data=data), Step(make_rng(3), data=data)
    loss, _ = objective(step)
    expected, _ = PathLikelihood(generator, molecule.target)(other)
    torch.testing.assert_close(loss, expected)
    assert step.ledger.n_energy() == 0
    assert other.ledger.n_energy() == len(data)


def test_dispersion_on_data_holds_their_placement_fixed(molecule):
    generator, data = built(molecule), frames(molecule)
    objective = LogVariance(generator, molecule.target, paths="data", max_deviation=1e6)
    with torch.no_grad():
        trajectory = generator.trace_back(data, molecule.target, make_rng(4))
    loss, logs = objective(Step(make_rng(4), data=data))
    torch.testing.assert_close(logs["log_variance"], 0.5 * trajectory.log_weights.var())
    gradients = torch.autograd.grad(loss, [p for p in generator.parameters() if p.requires_grad])
    assert all(float(g.abs().max()) > 0 for g in gradients)


def test_a_step_of_likelihood_helps(molecule):
    generator, data = build_generator(molecule, config(), dtype=torch.float64), frames(molecule, 64)
    objective = MaximumLikelihood(generator)
    optimiser = torch.optim.Adam([p for p in generator.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for k in range(15):
        loss, _ = objective(Step(make_rng(5, k), data=data))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 20.0


def test_samples_of_the_wrong_hand_have_weight_zero_and_are_counted(molecule):
    centred = molecule.positions - molecule.positions.mean(0)
    drop = DropPlacement(0.01)
    counts = []
    for hand in (1.0, -1.0):
        mean = centred * torch.tensor([hand, 1.0, 1.0], dtype=torch.float64)
        base = Gaussian((molecule.n_atoms, 3), mean=mean, scale=0.003, name="positions").double()
        shards = Generator(base, [drop]).sample_shards(40, molecule.target, 1)
        (ensemble,) = shards
        counts.append((ensemble.provenance.n_nonfinite, ensemble.provenance.n_failed))
        assert (ensemble.log_weights == -float("inf")).all() == (hand < 0)
    assert counts == [(0, 0), (40, 0)]


def test_weights_on_an_analytic_energy_are_exact():
    system = bf.load_system("snf_double_well")
    generator = build_generator(system, config(length=1.7), dtype=torch.float64)
    randomised(generator.transitions[:-1], scale=0.1)
    assert generator.is_bijective
    found = generator.sample(20_000, system.target, seed=1).log_z()
    assert abs(found.z_score(system.target.log_z)) < 4
    assert found.error < 0.05


def test_particles_lose_their_centre_alone():
    generator = build_generator(bf.load_system("dw4"), config(), dtype=torch.float64)
    drop = generator.transitions[-1]
    assert isinstance(drop, DropPlacement)
    assert not drop.rotate
    assert drop.scale == pytest.approx(0.5)
    start = generator.rollout(3, bf.load_system("dw4").target, make_rng(1)).end
    assert start.spaces == bf.load_system("dw4").target.fields


@pytest.mark.parametrize("name", ["tip3p_box", "tip4pew_box"])
def test_boxes_and_constraints_are_refused(name):
    with pytest.raises(UnsupportedForceError, match="autoregressive_flow"):
        build_generator(bf.load_system(name), config())
