"""Annealing in temperature from the frames of a file: exact weights, errors between chains, and what is refused."""

import math

import numpy as np
import pytest
import torch

from boltzflow import targets
from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.errors import CheckpointMismatchError, UnsupportedForceError
from boltzflow.generators import build_generator
from boltzflow.io import load_checkpoint, parse_config
from boltzflow.io.config import SimulationConfig
from boltzflow.pilot import pilot
from boltzflow.reference import simulate
from boltzflow.run import Ledger, make_rng
from boltzflow.simulation import ParallelTempering
from boltzflow.state import Space
from boltzflow.systems import load_system
from boltzflow.targets import Target
from boltzflow.transitions import swap_monte_carlo

GRID = torch.linspace(-3, 3, 20_001, dtype=torch.float64)


class Skewed(Target):
    """U(x)/T of two wells of different depths, which T tells apart."""

    def __init__(self, temperature=0.5):
        super().__init__({"x": Space("line", (1,))})
        self.temperature = temperature

    def reduced_energy(self, state, context=None):
        x = state["x"][:, 0].double()
        return (2 * (x**2 - 1) ** 2 + 0.7 * x) / (context or {}).get("temperature", self.temperature)


def density(temperature):
    """Its values on the grid, and log Z."""
    p = torch.exp(-Skewed().reduced_energy(Skewed().state(GRID[:, None]), {"temperature": temperature}))
    return p, float(torch.log(torch.trapezoid(p, GRID)))


@pytest.fixture
def skewed(tmp_path, monkeypatch):
    """A folder of the system, with hot.h5 of exact samples at temperature 2 as 50 chains."""
    monkeypatch.setattr(targets, "Skewed", Skewed, raising=False)
    monkeypatch.setattr(targets, "__all__", [*targets.__all__, "Skewed"])
    (tmp_path / "wells").mkdir()
    (tmp_path / "wells/system.yaml").write_text("name: wells\ndescription: two\ntarget: Skewed\n")
    cumulative = density(2.0)[0].cumsum(0)
    rows = torch.searchsorted(cumulative / cumulative[-1], torch.rand(5000, generator=make_rng(1), dtype=torch.float64))
    save_hot(tmp_path / "hot.h5", GRID[rows.clamp_max(len(GRID) - 1)])
    return tmp_path


def save_hot(path, x, *, temperature=2.0, energies=None, chains=50):
    target = Skewed()
    u = target.reduced_energy(target.state(x[:, None]), {"temperature": temperature}) if energies is None else energies
    Ensemble(
        samples={"x": x[:, None]},
        spaces=target.fields,
        log_weights=torch.zeros(len(x)).double(),
        reduced_energies=u,
        target="wells",
        chain=torch.arange(len(x)) % chains,
        provenance=Provenance(ledger={"energy": {"wells": 7}}, extra={"temperature": temperature}),
    ).save(path)


def config(folder, *, system=None, family="smc", base="hot.h5", **annealing):
    found = {"base": str(folder / base), "pilot_size": 200, "cess": 0.8} | annealing
    return parse_config(
        {
            "system": str(folder / "wells") if system is None else system,
            "generator": {"family": family, "annealing": found},
            "training": {"seed": 1, "dtype": "float64"},
        }
    )


@pytest.mark.parametrize("family", ["smc", "annealed_importance"])
def test_weights_are_relative_to_the_hot_system_and_exact(family, skewed):
    generator = pilot(config(skewed, family=family, step_size=0.3), skewed / "run")
    system = load_system(skewed / "wells")
    ensemble = generator.sample(5000, system.target, seed=2, batch_size=100)
    (p, log_z), (_, hot) = density(0.5), density(2.0)
    found = ensemble.log_z()
    assert "relative to frames of wells at 2" in str(found)
    assert found.error < 0.1
    assert abs(found.z_score(log_z - hot)) < 4
    left = float(torch.trapezoid(p * (GRID < 0), GRID)) / math.exp(log_z)
    assert abs(ensemble.expectation(lambda s: s["x"][:, 0] < 0).z_score(left)) < 4
    assert ensemble.groups.max() < 50  # rows of one chain are one group
    assert "between 50 groups" in found.method


def test_the_checkpoint_knows_its_frames_and_what_they_cost(skewed, monkeypatch):
    monkeypatch.chdir(skewed)
    pilot(config(skewed, base="hot.h5"), skewed / "run")
    checkpoint = load_checkpoint(skewed / "run/checkpoint.pt")
    frozen = checkpoint.config.generator.annealing
    assert frozen.base == str((skewed / "hot.h5").resolve())
    assert checkpoint.cost["data"] == [frozen.base_sha256]
    again = pilot(config(skewed), skewed / "again")
    assert len(again.transitions) > 2
    ledger = Ledger.from_dict(checkpoint.cost["ledger"])
    pilots = ledger.n_energy("wells") - 7
    assert pilots % 200 == 0
    assert pilots > 0
    system = load_system(skewed / "wells")
    system.load_generator(checkpoint=skewed / "run/checkpoint.pt")
    save_hot(skewed / "hot.h5", GRID[::7])
    with pytest.raises(CheckpointMismatchError, match="not the file from which the pilot"):
        system.load_generator(checkpoint=skewed / "run/checkpoint.pt")
    (skewed / "hot.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"annealing.base .*no such file; make it by `boltzflow simulate"):
        system.load_generator(checkpoint=skewed / "run/checkpoint.pt")


def test_a_single_chain_is_cut_into_blocks(skewed):
    save_hot(skewed / "hot.h5", torch.randn(600, generator=make_rng(3), dtype=torch.float64), chains=1)
    generator = pilot(config(skewed), skewed / "run")
    assert 50 < len(generator.base.groups.unique()) < 300


def test_frames_that_do_not_fit_are_refused(skewed):
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)

    def refused(match, **settings):
        with pytest.raises((CheckpointMismatchError, UnsupportedForceError), match=match):
            pilot(config(skewed, **settings), skewed / "run")
        assert not (skewed / "run").exists()

    save_hot(skewed / "cold.h5", x, temperature=0.4)
    refused(r"cold.h5: is at 0.4, which is colder, and wells is at 0.5", base="cold.h5")
    save_hot(skewed / "other.h5", x, energies=x)
    refused(r"records u = .* kT at 2 where wells has .*another system or force field", base="other.h5")
    refused("has no temperature, so it has no frames at a higher one", system="snf_double_well")
    refused(r"expected the fields and shapes .*'positions': \(22, 3\)", system="alanine_dipeptide@1.5")


def test_the_liquid_cools_by_swap_monte_carlo(tmp_path):
    liquid = load_system("ka2_2d_43").target
    start = liquid.start(20, make_rng(1))
    chains = ParallelTempering(
        liquid, start, temperatures=[0.3, 1.0], n_chains=10, kernels=swap_monte_carlo(liquid.species), seed=1
    )
    chains.burn_in(6)
    x = chains.run(1, keep="all").samples["positions"][0, 10:]
    u = liquid.reduced_energy(liquid.state(x), {"temperature": 1.0})
    Ensemble(
        samples={"positions": x},
        spaces=liquid.fields,
        log_weights=torch.zeros(10).double(),
        reduced_energies=u,
        target="ka2_2d_43",
        provenance=Provenance(extra={"temperature": 1.0}),
    ).save(tmp_path / "hot.h5")
    described = {"kernel": "swap", "cess": 0.2, "pilot_size": 20, "pilot_rounds": 1}
    generator = pilot(config(tmp_path, system="ka2_2d_43", **described), tmp_path / "run")
    names = {type(t).__name__ for t in generator.transitions}
    assert names == {"SystematicResampling", "ParticleDisplacement", "SpeciesSwap"}
    ensemble = generator.sample(20, liquid, seed=1, batch_size=20)
    assert ensemble.normalisation == "relative to frames of ka2_2d_43 at 1"
    assert np.isfinite(ensemble.log_weights).all()
    # it fell from T = 1 on the way, by far more than its spread
    assert ensemble.reduced_energies.mean() < liquid.reduced_energy(liquid.state(x)).mean() - 20
    settings = parse_config({"system": "gmm40", "generator": {"family": "smc", "annealing": {"kernel": "swap"}}})
    with pytest.raises(UnsupportedForceError, match="no particles with species to swap"):
        build_generator(load_system("gmm40"), settings.generator)


def test_a_molecule_cools_to_the_distribution_of_parallel_tempering(tmp_path):
    settings = SimulationConfig(chains=16, burn_in=50, stride=3, seed=3, n=640)
    cold = load_system("alanine_dipeptide_vacuum@400")
    tempered = settings.model_copy(update={"n": 960, "max_temperature": 1.25, "keep": "all"})
    reference = simulate(cold, tempered, progress=False)
    hot = settings.model_copy(update={"max_temperature": 1.0})
    simulate(load_system("alanine_dipeptide_vacuum@500"), hot, path=tmp_path / "hot.h5", progress=False)
    described = {"kernel": "molecule", "cess": 0.5, "pilot_rounds": 4, "pilot_size": 100}
    run = config(tmp_path, system="alanine_dipeptide_vacuum@400", **described)
    generator = pilot(run, tmp_path / "run")
    ensemble = generator.sample(600, cold.target, seed=1, batch_size=100)
    found = reference.provenance.extra["simulation"]["mbar"]
    error = np.hypot(ensemble.log_z().error, found["errors"][0])
    assert error < 0.3
    assert abs(ensemble.log_z().value + found["free_energies"][0]) < 4 * error
    mine, theirs = ensemble.mean_reduced_energy(), reference.mean_reduced_energy()
    assert abs(mine.value - theirs.value) < 4 * np.hypot(mine.error, theirs.error)
