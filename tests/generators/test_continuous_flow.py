"""Continuous flows from a configuration: exact weights and those of flow perturbation, also from a checkpoint."""

import math

import pytest
import torch
from typer.testing import CliRunner

from boltzflow.cli import sample  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError, UnsupportedForceError
from boltzflow.generators import build_generator
from boltzflow.io.checkpoint import save_checkpoint
from boltzflow.io.config import parse_config
from boltzflow.run import Run, make_rng
from boltzflow.state import State
from boltzflow.systems import load_system
from boltzflow.targets import MeanFreeGaussian
from boltzflow.transitions import EulerFlow, PerturbedFlow, RungeKuttaFlow
from boltzflow.workflow import train

N, D = 4, 2


def config(**continuous):
    sizes = {"field": "pair", "base_scale": 1.85, "n_steps": 3, "n_basis": 8, "n_times": 3}
    generator = {"family": "continuous_flow", "continuous": {**sizes, **continuous}}
    return parse_config({"system": "dw4", "generator": generator, "objective": {"likelihood": 1.0}})


def generator(*, size=0.02, **continuous):
    made = build_generator(load_system("dw4"), config(**continuous).generator, dtype=torch.float64)
    torch.nn.init.normal_(made.transitions[0].field.weights, std=size, generator=make_rng(1))
    return made


def test_the_configuration_says_how_the_same_field_is_weighed():
    exact, noisy = generator(), generator(weights="perturbation", perturbation={"directions": 3})
    assert isinstance(exact.transitions[0], EulerFlow)
    assert isinstance(noisy.transitions[0], PerturbedFlow)
    assert (noisy.transitions[0].n_steps, noisy.transitions[0].n_directions) == (3, 3)
    # so that a field that was trained for the one serves the other
    noisy.load_state_dict(exact.state_dict())
    assert config().generator.is_bijective
    assert not config(weights="perturbation").generator.is_bijective


@pytest.mark.parametrize("weights", [{}, {"weights": "perturbation", "perturbation": {"directions": 2}}])
def test_weights_are_for_the_target(weights):
    ensemble = generator(**weights).sample(4000, MeanFreeGaussian(N, D, scale=1.9), seed=1)
    assert abs(ensemble.log_z().z_score(0.0)) < 4
    assert 0.02 < ensemble.ess_fraction() < 0.9
    assert type(generator(**weights).transitions[0]).__name__ in ensemble.provenance.methods


def test_without_a_centre_of_mass_the_dimension_is_that_of_the_subspace():
    """Against the Jacobian of the map in an orthonormal basis of the positions without a centre of mass."""
    made = generator(size=0.1, weights="perturbation")
    flow, state = made.transitions[0], made.base.sample(1, make_rng(2))
    basis = torch.linalg.qr(torch.eye(N).double() - 1 / N)[0][:, : N - 1]

    def through(q):
        x = basis @ q.reshape(N - 1, D)
        return (
            basis.T @ flow(State({"positions": x[None]}, state.spaces), Run(make_rng(3)))[0]["positions"][0]
        ).ravel()

    q = (basis.T @ state["positions"][0]).ravel()
    exact = torch.linalg.slogdet(torch.autograd.functional.jacobian(through, q)).logabsdet
    n = 2000
    with torch.no_grad():
        ratio = flow(state.index(torch.zeros(n, dtype=torch.int64)), Run(make_rng(4)))[1]

    def z_score(log_det):
        w = (log_det - exact).exp()
        return float((w.mean() - 1.0) / (w.std() / math.sqrt(n)))

    assert abs(float(exact)) > 0.1
    assert abs(z_score(ratio)) < 4
    # the exponent of all N·D coordinates would be seen to be wrong
    assert abs(z_score(ratio * N / (N - 1))) > 6


def run(tmp_path, **perturbation):
    """`boltzflow sample` of a run folder."""
    made, settings = generator(weights="perturbation"), config(weights="perturbation", perturbation=perturbation)
    save_checkpoint(tmp_path / "checkpoint.pt", generator=made, system=load_system("dw4"), config=settings)
    return CliRunner().invoke(app, ["sample", str(tmp_path), "-n", "300", "--seed", "1", "-o", str(tmp_path / "e.h5")])


def test_a_run_is_sampled_with_the_weights_of_its_configuration(tmp_path):
    result = run(tmp_path, directions=2)
    assert result.exit_code == 0, result.output
    found = Ensemble.load(tmp_path / "e.h5").log_weights
    weights = {"weights": "perturbation", "perturbation": {"directions": 2}}
    expected = generator(**weights).float().sample(300, load_system("dw4").target, seed=1).log_weights
    assert abs(found - expected).max() < 1e-3
    weights["perturbation"] = {"directions": 1}
    noisier = generator(**weights).float().sample(300, load_system("dw4").target, seed=1).log_weights
    assert abs(found - noisier).max() > 0.1


def test_a_run_whose_noise_is_not_isotropic_is_refused(tmp_path):
    result = run(tmp_path, noise="rademacher")
    assert result.exit_code == 2
    assert "needs isotropic noise" in result.output


@pytest.mark.parametrize(("noise", "why"), [("rademacher", "biased"), ("uniform", "isotropic noise")])
def test_noise_that_is_not_isotropic_is_refused(noise, why):
    with pytest.raises(ValueError, match=why):
        generator(weights="perturbation", perturbation={"noise": noise})


def molecule_flow(field, **continuous):
    sizes = {"field": field, "n_steps": 2, "hidden": 6, "n_features": 3, "n_basis": 6, **continuous}
    generator = {"family": "continuous_flow", "n_couplings": 0, "continuous": sizes}
    settings = parse_config({"system": "alanine_dipeptide", "generator": generator, "objective": {"likelihood": 1.0}})
    made = build_generator(load_system("alanine_dipeptide"), settings.generator, dtype=torch.float64)
    velocity = made.transitions[-1].field
    last = velocity.weights if field == "pair" else velocity.last.weight
    torch.nn.init.normal_(last, std=0.005 if field == "pair" else 0.05, generator=make_rng(1))
    return made


@pytest.mark.parametrize("field", ["embedded", "neighbour", "pair"])
def test_the_ratio_of_a_molecule_is_that_of_its_internal_coordinates(field):
    """Against the Jacobian of what the steps do to internal coordinates, which know no rigid motion."""
    made = molecule_flow(field)
    to_positions, flow = made.transitions[-2:]
    state, run = made.base.sample(1, make_rng(2)), Run(make_rng(3))
    for transition in made.transitions[:-2]:
        state, _ = transition(state, run)

    def through(q):
        positions, there = to_positions(State({"q": q[None]}, state.spaces), run)
        moved, ratio = flow(positions, run)
        back, home = to_positions.reverse(moved, run)
        return back["q"][0], (there + ratio + home)[0]

    q = state["q"][0].detach()
    moved, ratio = through(q)
    jacobian = torch.autograd.functional.jacobian(lambda q: through(q)[0], q)
    assert (moved - q).abs().max() > 0.05
    assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(ratio.item(), abs=1e-8)
    assert abs(ratio.item()) > 0.01


def test_a_constrained_molecule_is_refused():
    generator = parse_config({"system": "tip3p_box", "generator": {"family": "continuous_flow"}}).generator
    with pytest.raises(UnsupportedForceError, match="constraints"):
        build_generator(load_system("tip3p_box"), generator)


def test_it_goes_on_from_the_spline_flow_that_it_starts_with(tmp_path):
    system = load_system("alanine_dipeptide")
    values = {"system": "alanine_dipeptide", "objective": {"reverse_kl": 1.0, "likelihood": 0.0}}
    values["training"] = {"steps": 1, "reverse_batch_size": 4, "seed": 1, "learning_rate": 1e-12}
    spline = {"family": "internal_spline_flow", "n_couplings": 0, "hidden": [4]}
    continuous = {**spline, "family": "continuous_flow", "continuous": {"field": "pair", "n_steps": 1, "n_basis": 4}}
    first = train(parse_config({**values, "generator": spline}), tmp_path / "first")
    checkpoint = tmp_path / "first" / "checkpoint.pt"
    second = train(parse_config({**values, "generator": continuous}), tmp_path / "second", initial=checkpoint)
    same = first.sample(8, system.target, seed=1).log_weights - second.sample(8, system.target, seed=1).log_weights
    assert abs(same).max() < 1e-2
    other = parse_config({**values, "generator": {**continuous, "n_couplings": 1}})
    with pytest.raises(CheckpointMismatchError, match="n_couplings"):
        train(other, tmp_path / "third", initial=checkpoint)


@pytest.mark.parametrize("solver", ["midpoint", "rk4"])
def test_the_solver_is_chosen_and_the_field_is_the_same(solver):
    made, euler = generator(solver=solver), generator()
    assert isinstance(made.transitions[0], RungeKuttaFlow)
    assert made.transitions[0].method == solver
    made.load_state_dict(euler.state_dict())


def test_perturbation_has_steps_of_its_own():
    with pytest.raises(ValueError, match="perturbation weighs backward Euler steps, got solver: rk4"):
        generator(solver="rk4", weights="perturbation")
