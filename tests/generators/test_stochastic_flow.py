"""Stochastic normalizing flows: exact weights in Cartesian, mixed and internal coordinates, levels, training."""

from types import SimpleNamespace

import pytest
import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators import BLOCKS, Generator, build_generator
from boltzflow.generators.stochastic_flow import block_levels
from boltzflow.io.config import GeneratorConfig, StochasticConfig, parse_config
from boltzflow.objectives import PathLikelihood, ReverseKL, build_objective
from boltzflow.run import make_rng
from boltzflow.systems import load_system
from boltzflow.targets import ImageDensity
from boltzflow.targets.bases import Gaussian, MeanFreeGaussian
from boltzflow.testing import assert_crooks, assert_unbiased, run_at
from boltzflow.training import Trainer
from boltzflow.transitions import BlockToInternal, DrawVelocities, InternalToCartesian, RandomWalkMetropolis
from boltzflow.transitions.affine import Affine
from boltzflow.transitions.compiled import uncompiled
from boltzflow.workflow import training_data

torch.set_num_threads(1)


def config(*, couplings=4, coupling="affine", coordinates="internal", **stochastic):
    stochastic = {"n_transforms": 2, "coupling": coupling, "n_steps": 2, "step_size": 0.1, **stochastic}
    return GeneratorConfig(
        family="stochastic_flow",
        coordinates=coordinates,
        n_couplings=couplings,
        hidden=(8,),
        n_bins=4,
        n_marginal_bins=4,
        stochastic=stochastic,
    )


def perturbed(generator, scale=0.3):
    """The same flow away from the identity."""
    rng = make_rng(5)
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(scale * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return generator


@pytest.fixture(scope="module")
def well():
    return load_system("snf_double_well")


@pytest.fixture(scope="module")
def molecule():
    return load_system("alanine_dipeptide")


@pytest.mark.parametrize("kernel", ["none", *BLOCKS])
def test_weights_are_exact_both_ways_whatever_was_learned(well, kernel):
    learn = kernel != "none"
    flow = build_generator(
        well,
        config(kernel=kernel, step_size=0.05, n_leapfrog=2, learn_steps=learn, learn_levels=learn, prior_block=True),
        dtype=torch.float64,
    )
    assert_crooks(perturbed(flow), well.target, n=3000, rng=make_rng(1))
    assert flow.is_bijective is (kernel == "none")


def test_a_flow_that_covers_the_target_is_unbiased(well):
    flow = build_generator(well, config(couplings=0, n_transforms=5, n_steps=10, step_size=0.4), dtype=torch.float64)
    assert_unbiased(flow, well.target, n=4000, rng=make_rng(1))


def test_paths_that_leave_the_support_on_their_way_are_weighted_exactly():
    """At λ = ½ every path lies 2 to the right, some of them where the target and with it u_λ is infinite."""
    target, right = ImageDensity("face").double(), torch.tensor([2.0, 0.0]).double()
    there, back = (Affine(sign * right, torch.ones(2).double(), field="x") for sign in (1, -1))
    walks = [RandomWalkMetropolis(0.5, n_steps=5, level=level) for level in (0.5, 1.0)]
    flow = Generator(Gaussian(2, scale=2.0).double(), [there, walks[0], back, walks[1]]).double()
    with torch.no_grad():
        # paths traced back to where no path leads from would be 10 %, which forward weights lack
        assert flow.trace_back(target.sample(4000, make_rng(2)), target, make_rng(3)).finite.all()
        log_z = flow.sample(60_000, target, seed=1, batch_size=20_000).log_z()
    assert abs(log_z.z_score(0.0)) < 3.5
    assert log_z.error < 0.03


@pytest.mark.parametrize("coordinates", ["internal", "mixed"])
@pytest.mark.parametrize("coupling", ["spline", "affine"])
def test_blocks_see_the_target_pulled_back_to_the_coordinates_of_the_flow(molecule, coordinates, coupling):
    settings = config(couplings=2, coupling=coupling, coordinates=coordinates, n_transforms=1)
    flow = build_generator(molecule, settings, dtype=torch.float64)
    kinds = [InternalToCartesian] if coordinates == "internal" else [BlockToInternal, InternalToCartesian]
    block, *maps = flow.transitions[-1 - len(kinds) :]
    assert isinstance(block, RandomWalkMetropolis)
    assert [type(m) for m in maps] == kinds
    with torch.no_grad(), uncompiled():
        reference = molecule.reference().select(slice(0, 16)).to_state(dtype=torch.float64)
        trajectory = flow.trace_back(reference, molecule.target, make_rng(1))
        q, log_det = reference, 0.0
        for one in reversed(maps):
            q, minus_ratio = one.reverse(q, run_at(molecule.target, make_rng(0)))
            log_det = log_det - minus_ratio
        pulled = flow.path(flow.base, molecule.target).at(1.0).terms[0][1].reduced_energy(q)
        energy = molecule.target.reduced_energy(reference)
    assert torch.isfinite(trajectory.log_weights).all()
    assert (trajectory.log_ratios[-1 - len(maps)] != 0).any()
    torch.testing.assert_close(sum(trajectory.log_ratios[-len(maps) :]), log_det)
    torch.testing.assert_close(pulled, energy - log_det)


@pytest.mark.parametrize(
    ("coupling", "coordinates"), [("spline", "mixed"), ("affine", "internal"), ("affine", "mixed")]
)
def test_all_coordinates_give_normalised_densities_of_the_same_positions(molecule, coupling, coordinates):
    """E_p[q/p] = 1 for the density p of circles and internal coordinates, and q of lines or of a Cartesian block."""
    settings = {"kernel": "none", "n_transforms": 1}
    known = build_generator(molecule, config(couplings=0, coupling="spline", **settings), dtype=torch.float64)
    couplings = 2 if coupling == "affine" else 0
    other = config(couplings=couplings, coupling=coupling, coordinates=coordinates, **settings)
    flow = build_generator(molecule, other, dtype=torch.float64)
    with torch.no_grad(), uncompiled():
        state = known.as_target().sample(4000, make_rng(3))
        ratio = (flow.log_prob(state) - known.log_prob(state)).exp()
    ratio = torch.nan_to_num(ratio)
    error = ratio.std() / len(ratio) ** 0.5
    assert error < 0.1
    # normal densities of lines end at half a turn from the relaxed structure, where circles end nowhere
    cut = 1.0 if coupling == "spline" else torch.erf(torch.tensor(torch.pi / 2**0.5)).item() ** 7
    assert abs(ratio.mean() - cut) < 4 * error


def test_stochastic_steps_improve_what_a_molecule_flow_gives(molecule):
    """Energy of generated samples: twenty Metropolis steps at λ = 1 lower it."""
    energies = {}
    for kernel in ("none", "metropolis"):
        settings = config(couplings=0, coupling="spline", n_transforms=1, kernel=kernel, n_steps=20, step_size=0.1)
        flow = build_generator(molecule, settings, dtype=torch.float64)
        with torch.no_grad(), uncompiled():
            energies[kernel] = flow.rollout(64, molecule.target, make_rng(2)).target_energy.median()
    assert energies["metropolis"] < energies["none"] - 5


@pytest.mark.parametrize("learn", [False, True])
def test_training_on_both_objectives_lowers_them(well, learn):
    settings = config(couplings=2, n_transforms=1, step_size=0.2, learn_steps=learn)
    values = {
        "system": "snf_double_well",
        "generator": settings.model_dump(),
        "objective": {"likelihood": 0.5, "reverse_kl": 0.5},
        "training": {"steps": 40, "batch_size": 64, "reverse_batch_size": 64, "learning_rate": 1e-2, "seed": 1},
    }
    run = parse_config(values)
    flow = perturbed(build_generator(well, run.generator, dtype=torch.float64))
    before = [t.current_step_size().item() for t in flow.transitions if isinstance(t, RandomWalkMetropolis)]
    objective = build_objective(flow, well.target, run.objective)
    assert [type(term) for term in objective.terms] == [PathLikelihood, ReverseKL]
    assert "PathLikelihood" in run.methods
    trainer = Trainer(objective, run.training, data=training_data(well.reference(), well, dtype=torch.float64))
    losses = torch.stack([trainer.train_step()["loss"] for _ in range(40)])
    assert losses[-8:].mean() < losses[:8].mean() - 0.5
    assert trainer.ledger.n_energy("snf_double_well") > 0
    after = [t.current_step_size().item() for t in flow.transitions if isinstance(t, RandomWalkMetropolis)]
    assert (before != after) is learn


def test_levels_are_spaced_evenly_or_as_given():
    assert block_levels(StochasticConfig(n_transforms=4)) == (0.25, 0.5, 0.75, 1.0)
    assert block_levels(StochasticConfig(n_transforms=3, levels=(0.0, 0.5, 1.0))) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("levels", [(0.5, 0.9), (0.9, 0.5, 1.0), (0.5, 1.0)])
def test_a_schedule_that_does_not_end_at_the_target_is_refused(levels):
    with pytest.raises(ValueError, match=r"stochastic.levels: expected 3 ascending levels.*the last is 1"):
        block_levels(StochasticConfig(n_transforms=3, levels=levels))


def test_couplings_that_cannot_be_divided_are_refused(well):
    with pytest.raises(ValueError, match="divided evenly among 2 transforms"):
        build_generator(well, config(couplings=3))


@pytest.mark.parametrize("kernel", ["metropolis", "mala", "hmc", "baoab"])
def test_blocks_of_particles_stay_on_the_mean_free_subspace_with_exact_weights(kernel):
    trap = SimpleNamespace(name="trap", temperature=None, target=MeanFreeGaussian(4, 2, scale=1.4).double())
    settings = config(couplings=0, kernel=kernel, step_size=0.2, n_leapfrog=2, n_transforms=2)
    flow = build_generator(trap, settings, dtype=torch.float64)
    assert isinstance(flow.base, MeanFreeGaussian)
    assert_crooks(flow, trap.target, n=4000, rng=make_rng(1))
    end = flow.rollout(8, trap.target, make_rng(2)).end["positions"]
    assert end.mean(1).abs().max() < 1e-14


def test_four_particles_have_their_reference_energy(tmp_path):
    (tmp_path / "system.yaml").write_text("name: dw4\ndescription: four particles\ntarget: DoubleWellCluster\n")
    system = load_system(tmp_path)
    settings = config(couplings=0, kernel="hmc", n_transforms=40, n_steps=1, step_size=0.3)
    ensemble = build_generator(system, settings, dtype=torch.float64).sample(2000, system.target, seed=1)
    energy = ensemble.expectation(ensemble.reduced_energies)
    assert energy.error < 0.3
    assert abs(energy.value + 22.539) < 4 * energy.error


def test_couplings_of_particles_are_refused(tmp_path):
    (tmp_path / "system.yaml").write_text("name: dw4\ndescription: four particles\ntarget: DoubleWellCluster\n")
    with pytest.raises(UnsupportedForceError, match=r"positions of shape \(4, 2\). Set generator.n_couplings to 0"):
        build_generator(load_system(tmp_path), config())


def test_a_block_of_constrained_bonds_is_refused():
    held = SimpleNamespace(name="held", n_constraints=12, temperature=300.0)
    with pytest.raises(UnsupportedForceError, match=r"held has 12 constraints.*set generator.coordinates to internal"):
        build_generator(held, config(coordinates="mixed"))


def test_an_analytic_energy_has_no_internal_coordinates(well):
    with pytest.raises(AttributeError, match="analytic energy"):
        build_generator(well, GeneratorConfig())


def test_underdamped_blocks_come_with_their_velocities(well):
    flow = build_generator(well, config(kernel="baoab"))
    assert sum(isinstance(t, DrawVelocities) for t in flow.transitions) == 2
