"""Annealing on top of a trained flow: exact weights in either coordinates, by Python and by run files."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from boltzflow import cite
from boltzflow.cli import analyze, sample, train  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.ensemble import Ensemble
from boltzflow.errors import CheckpointMismatchError, UnsupportedForceError
from boltzflow.generators import Generator, GeneratorBase, anneal_from, annealed_importance, build_generator, smc
from boltzflow.io import load_checkpoint, load_config, parse_config
from boltzflow.io.provenance import file_sha256
from boltzflow.pilot import pilot
from boltzflow.run import Ledger, make_rng
from boltzflow.systems import load_system
from boltzflow.targets import Gaussian, Target
from boltzflow.testing import assert_crooks, assert_unbiased
from boltzflow.transitions import HMC, MALA, AutoregressiveFlow, DropPlacement
from boltzflow.workflow import train as train_in_folder
from tests.generators.conftest import flow, stochastic
from tests.transitions.test_autoregressive import randomised
from tests.transitions.test_placement import by_quadrature, molecule


@pytest.fixture(autouse=True)
def _same_initial_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


LEVELS = [0.25, 0.5, 0.75, 1.0]


class Wide(Target):
    """What a flow was trained for: the target at three times its temperature."""

    def __init__(self, target):
        super().__init__(target.fields, name="wide")
        self._target = (target,)

    def reduced_energy(self, state, context=None):
        return self._target[0].reduced_energy(state, context) / 3


@pytest.mark.parametrize("by_energy", [False, True])
@pytest.mark.parametrize("latent", [False, True])
def test_weights_of_annealed_paths_are_exact_in_both_directions(latent, by_energy, pair):
    base, path, last = anneal_from(flow(pair[0]), latent=latent, start=Wide(pair[1]) if by_energy else None)
    generator = annealed_importance(base, MALA(0.1), LEVELS, path=path, last=last).double()
    assert_unbiased(generator, pair[1], n=10_000, rng=make_rng(1))
    assert_crooks(generator, pair[1], n=3_000, rng=make_rng(2))


@pytest.mark.parametrize("latent", [False, True])
def test_populations_have_exact_weights_and_errors_of_lineages(latent, wells):
    base, path, last = anneal_from(flow(wells[0]), latent=latent)
    generator = smc(base, HMC(0.1, n_leapfrog=2), LEVELS, path=path, last=last).double()
    ensemble = generator.sample(1600, wells[1], seed=1, batch_size=80)
    assert abs(ensemble.log_z().z_score(wells[1].log_z)) < 4
    assert ensemble.log_z().error < 0.1
    few = generator.sample(300, wells[1], seed=2, batch_size=300)
    assert "lineage error" in few.provenance.methods
    assert few.provenance.extra["populations"][0]["rho_t"] > 1


@pytest.mark.parametrize("by_energy", [False, True])
@pytest.mark.parametrize("latent", [False, True])
def test_a_molecule_keeps_its_place_and_its_log_z(latent, by_energy):
    target = molecule()
    blocks = [AutoregressiveFlow([0, 1, 2], 3, backwards=b, width=8, n_layers=1, head_width=8) for b in (False, True)]
    proposal = Generator(
        Gaussian((3, 3), scale=0.17, name="positions"),
        [*(randomised(block.double(), scale=0.02) for block in blocks), DropPlacement(0.17 * 3**-0.5)],
    ).double()
    alone = proposal.sample(3000, target, seed=1)
    base, path, last = anneal_from(proposal, latent=latent, start=Wide(target) if by_energy else None)
    generator = smc(base, HMC(0.05, n_leapfrog=2), LEVELS, path=path, last=last).double()
    ensemble = generator.sample(1600, target, seed=1, batch_size=80)
    assert abs(ensemble.log_z().z_score(by_quadrature(target))) < 4
    assert ensemble.log_z().error < 0.15
    assert ensemble.ess_fraction() > 2 * alone.ess_fraction()
    assert ensemble.provenance.ledger["energy"].keys() == {"springs", *(["wide"] if by_energy else [])}


def test_the_density_of_the_flow_is_evaluated_at_its_own_samples_alone(wells):
    """Elsewhere it takes an inverse and its derivative, which moves between energies do without."""
    base, path, last = anneal_from(flow(wells[0]), start=Wide(wells[1]))
    asked = []
    base.reduced_energy = lambda state, context=None: asked.append(len(state))
    generator = annealed_importance(base, HMC(0.1, n_leapfrog=2), LEVELS, path=path, last=last).double()
    ensemble = generator.sample(2000, wells[1], seed=1)
    assert not asked
    assert abs(ensemble.log_z().z_score(wells[1].log_z)) < 4


def test_samples_come_with_the_density_that_is_known_of_them(wells):
    base = GeneratorBase(flow(wells[0]))
    state = base.sample(5, make_rng(1))
    kept = state.evaluations[base].energy
    torch.testing.assert_close(kept, base.reduced_energy(state), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(-kept, base.log_prob(state))
    assert base.to(torch.float32).sample(2, make_rng(1))["x"].dtype == torch.float32


def test_a_generator_without_a_density_is_refused(wells):
    with pytest.raises(TypeError, match="MALA"):
        anneal_from(stochastic(wells[0]))


TRAINED = {
    "system": "snf_double_well",
    "generator": {
        "family": "autoregressive_flow",
        "autoregressive": {"n_blocks": 2, "n_layers": 1, "width": 8, "head_width": 8, "length": 1.7},
    },
    "training": {"steps": 40, "batch_size": 64, "warmup_steps": 5, "learning_rate": 0.01, "seed": 1, "threads": 1},
}
RUN = """
system: snf_double_well
generator:
  family: smc
  annealing: {base: flow, coordinates: COORDINATES, n_leapfrog: 3, pilot_size: 200, cess: 0.7}
training: {seed: 1, dtype: float64}
sampling: {n: 2000, batch_size: 100, dtype: float64}
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("annealed")
    train_in_folder(parse_config(TRAINED), folder / "flow")
    return folder


def config(here, **annealing):
    settings = {"base": str(here / "flow"), "n_leapfrog": 3, "pilot_size": 200, "cess": 0.7} | annealing
    generator = {"family": "smc", "annealing": settings}
    return parse_config(
        {"system": "snf_double_well", "generator": generator, "training": {"seed": 1, "dtype": "float64"}}
    )


HOT = """
name: hot
description: Barrier lower than that of snf_double_well
target: DoubleWell
arguments: {b: -4.0}
"""


def test_a_run_file_anneals_from_the_energy_that_a_flow_was_trained_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hot").mkdir()
    (tmp_path / "hot" / "system.yaml").write_text(HOT)
    train_in_folder(parse_config(TRAINED | {"system": "./hot"}), tmp_path / "flow")
    (tmp_path / "run.yaml").write_text(RUN.replace("coordinates: COORDINATES", "path: energy"))
    found = CliRunner().invoke(app, ["sample", "run.yaml", "-o", "e.h5", "--seed", "3"])
    assert found.exit_code == 0, found.output
    assert abs(Ensemble.load("e.h5").log_z().z_score(load_system("snf_double_well").target.log_z)) < 4
    # of its density there is no path, since it is not that of this system
    (tmp_path / "density.yaml").write_text(RUN.replace("coordinates: COORDINATES", "path: density"))
    found = CliRunner().invoke(app, ["sample", "density.yaml", "-o", "e.h5"])
    assert "trained for system 'hot'" in found.output


def test_the_flow_that_ships_for_a_system_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dw4").mkdir()
    (tmp_path / "run.yaml").write_text(RUN.replace("snf_double_well", "dw4").replace("base: flow", "base: dw4"))
    settings = load_config(tmp_path / "run.yaml", overrides=["generator.annealing.coordinates=samples"])
    generator = pilot(settings, tmp_path / "run")
    frozen = load_checkpoint(tmp_path / "run" / "checkpoint.pt").config.generator.annealing
    shipped = load_system("dw4").find_checkpoint()
    assert (frozen.base, frozen.base_sha256) == ("dw4", file_sha256(shipped))
    assert generator.sample(200, load_system("dw4").target, seed=1).ess_fraction() > 0.8
    lacking = parse_config(settings.model_dump() | {"system": "lj13"})
    with pytest.raises(CheckpointMismatchError, match="dw4"):
        build_generator(load_system("lj13"), lacking.generator)


def test_a_path_of_energies_needs_a_flow_of_the_same_coordinates(tmp_path):
    alone = parse_config({"system": "snf_double_well", "generator": {"family": "smc", "annealing": {"path": "energy"}}})
    with pytest.raises(UnsupportedForceError, match="name its checkpoint"):
        pilot(alone, tmp_path / "alone")
    train_in_folder(parse_config(TRAINED | {"system": "many_well_32"}), tmp_path / "flow")
    settings = {"base": str(tmp_path / "flow"), "path": "energy"}
    other = {"system": "snf_double_well", "generator": {"family": "smc", "annealing": settings}}
    with pytest.raises(CheckpointMismatchError, match="other coordinates"):
        pilot(parse_config(other), tmp_path / "other")


@pytest.mark.parametrize("coordinates", ["samples", "latent"])
def test_a_run_file_anneals_from_the_run_folder_of_a_flow(here, coordinates, monkeypatch):
    monkeypatch.chdir(here)
    (here / f"{coordinates}.yaml").write_text(RUN.replace("COORDINATES", coordinates))
    found = CliRunner().invoke(app, ["sample", f"{coordinates}.yaml", "-o", f"{coordinates}.h5", "--seed", "3"])
    assert found.exit_code == 0, found.output
    ensemble, exact = Ensemble.load(f"{coordinates}.h5"), load_system("snf_double_well").target.log_z
    assert abs(ensemble.log_z().z_score(exact)) < 4
    checkpoint, trained = load_checkpoint(f"runs/{coordinates}/checkpoint.pt"), load_checkpoint("flow/checkpoint.pt")
    assert checkpoint.config.generator.annealing.base == str(here / "flow" / "checkpoint.pt")
    counted = Ledger.from_dict(checkpoint.cost["ledger"])
    assert counted.n_energy() > Ledger.from_dict(trained.cost["ledger"]).n_energy() + 200
    assert set(trained.methods) <= set(checkpoint.methods)
    text = cite(f"{coordinates}.h5")
    assert "tan2025" in text
    assert "zhai2024" in text
    summary = CliRunner().invoke(app, ["analyze", f"{coordinates}.h5", "--json"])
    assert math.isfinite(json.loads(summary.stdout)["log_z"])


def test_another_checkpoint_than_that_of_the_pilot_is_refused(here, tmp_path):
    pilot(config(here, levels=[1.0]), tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    settings = checkpoint.config.generator.annealing.model_copy(update={"base_sha256": "0"})
    changed = checkpoint.config.generator.model_copy(update={"annealing": settings})
    with pytest.raises(CheckpointMismatchError, match="not the checkpoint from which the pilot"):
        build_generator(load_system("snf_double_well"), changed)
    nested = config(here, base=str(tmp_path / "run")).generator
    with pytest.raises(UnsupportedForceError, match="of the family smc"):
        build_generator(load_system("snf_double_well"), nested)


def test_what_does_not_go_together_is_named(here):
    system = load_system("snf_double_well")
    with pytest.raises(UnsupportedForceError, match="those of a trained flow"):
        build_generator(system, config(here, base=None, coordinates="latent").generator)
    with pytest.raises(UnsupportedForceError, match="moves atoms"):
        build_generator(system, config(here, kernel="molecule", coordinates="latent").generator)
    with pytest.raises(CheckpointMismatchError, match="snf_double_well"):
        build_generator(load_system("gmm40"), config(here).generator)
    with pytest.raises(FileNotFoundError):
        build_generator(system, config(here, base="nowhere.pt").generator)
