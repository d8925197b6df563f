"""Simulations and annealing of a mixture of particles: exact averages, frames in the box, temperatures by name."""

import numpy as np
import pytest
import torch

from boltzflow.ensemble import Ensemble
from boltzflow.errors import FormatError
from boltzflow.generators.annealed_families import annealed_family, run_pilot
from boltzflow.io.config import GeneratorConfig, SimulationConfig
from boltzflow.reference import simulate
from boltzflow.run import make_rng
from boltzflow.simulation.settings import chains_of
from boltzflow.systems import load_system
from boltzflow.targets import TernaryLiquid
from boltzflow.transitions import HMC, SpeciesSwap

COUNTS = (2, 1, 1)


def folder(path, text):
    path.mkdir()
    (path / "system.yaml").write_text(f"name: {path.name}\ndescription: A test.\n{text}")
    return path


@pytest.fixture
def liquid(tmp_path):
    """Four particles in a box so large that uniform points weighted by exp(−u) give exact averages."""
    return folder(
        tmp_path / "gas", "target: TernaryLiquid\narguments: {counts: [2, 1, 1], length: 6.0, temperature: 0.6}\n"
    )


@pytest.fixture(scope="module")
def exact():
    """Energies of uniform points in the box, in units of ε, for averages and log Z at any temperature."""
    gas = TernaryLiquid(COUNTS, length=6.0).double()
    x = 6.0 * torch.rand(400_000, 4, 2, dtype=torch.float64, generator=make_rng(0))
    return gas.reduced_energy(gas.state(x)).numpy()


def averages(energies, temperature):
    """⟨E⟩ and log Z/V^4 at a temperature, with their errors."""
    w = np.exp(-energies / temperature)
    finite = np.where(w > 0, energies, 0.0)
    mean = (w * finite).sum() / w.sum()
    error = np.sqrt((w**2 * (finite - mean) ** 2).sum()) / w.sum()
    return mean, error, np.log(w.mean()), w.std() / w.mean() / np.sqrt(len(w))


def test_parallel_tempering_of_a_liquid_is_right_at_every_temperature_by_name(liquid, exact, tmp_path):
    for temperature in (0.6, 1.2):
        system = load_system(f"{liquid}@{temperature}")
        assert system.target.temperature == temperature
        assert system.fingerprint == load_system(liquid).fingerprint
        settings = SimulationConfig(n=1920, chains=64, stride=2, burn_in=40, max_temperature=2.0, seed=1)
        ensemble = simulate(system, settings, path=tmp_path / f"{temperature}.h5", progress=False)
        mean, error, *_ = averages(exact, temperature)
        found = ensemble.mean_reduced_energy()
        z = (found.value * temperature - mean) / np.hypot(found.error * temperature, error)
        assert found.error * temperature < 0.1
        assert abs(z) < 4
    loaded = Ensemble.load(tmp_path / "0.6.h5")
    x = loaded.samples["positions"]
    assert x.shape == (1920, 4, 2)
    assert 0 <= x.min() < x.max() < 6
    assert loaded.topology is None
    assert loaded.temperature is None
    again = system.target.reduced_energy(loaded.to_state(dtype=torch.float64), {"temperature": 0.6})
    np.testing.assert_allclose(again.numpy(), loaded.reduced_energies, rtol=1e-9)


def test_the_name_says_the_temperature_and_reads_back(liquid):
    system = load_system(liquid)
    assert system.name == load_system(f"{liquid}@0.6").name == "gas"
    other = load_system(f"{liquid}@0.9")
    assert other.name == other.target.name == "gas@0.9"
    assert load_system(other.source).target.temperature == 0.9
    assert load_system("ka2_2d_43@1").name == "ka2_2d_43@1"


def test_frames_of_all_temperatures_are_weighted(liquid, exact, tmp_path):
    settings = SimulationConfig(n=1920, chains=32, stride=2, burn_in=40, max_temperature=2.0, keep="all", seed=2)
    ensemble = simulate(load_system(liquid), settings, path=tmp_path / "all.h5", progress=False)
    mean, error, *_ = averages(exact, 0.6)
    found = ensemble.mean_reduced_energy()
    assert abs(found.value * 0.6 - mean) < 4 * np.hypot(found.error * 0.6, error)
    mbar = ensemble.provenance.extra["simulation"]["mbar"]
    assert mbar["temperatures"] == pytest.approx([1, 2])
    difference = averages(exact, 0.6)[2] - averages(exact, 1.2)[2]
    assert -mbar["free_energies"][0] == pytest.approx(difference, abs=5 * mbar["errors"][0] + 0.03)


def test_population_annealing_from_hot_frames_gives_energy_and_free_energy(liquid, exact, tmp_path):
    hot = load_system(f"{liquid}@2.0")
    settings = SimulationConfig(n=1920, chains=64, stride=2, burn_in=40, max_temperature=1.0, seed=4)
    simulate(hot, settings, path=tmp_path / "hot.h5", progress=False)
    annealing = {"base": str(tmp_path / "hot.h5"), "threshold": 1.0, "kernel": "swap", "n_steps": 10, "step_size": 0.2}
    config = GeneratorConfig(family="smc", annealing={**annealing, "pilot_size": 100, "pilot_rounds": 3})
    system = load_system(liquid)
    schedule = run_pilot(system, config, seed=5)
    generator = annealed_family(system, config, schedule=schedule)
    ensemble = generator.sample(4000, system.target, seed=6, batch_size=200)
    mean, error, log_z, log_z_error = averages(exact, 0.6)
    found = ensemble.mean_reduced_energy()
    assert abs(found.value * 0.6 - mean) < 4 * np.hypot(found.error * 0.6, error)
    _, _, hot_log_z, hot_error = averages(exact, 2.0)
    ratio = ensemble.log_z()
    # the base has an error of its own: ⟨w⟩ over 1920 frames
    own = np.exp(hot_log_z - log_z) ** 0.5 / np.sqrt(1920)
    assert abs(ratio.value - (log_z - hot_log_z)) < 4 * np.linalg.norm([ratio.error, log_z_error, hot_error, own])


def test_mixtures_swap_species_and_start_without_overlaps(liquid):
    settings = SimulationConfig(chains=4)
    chains = chains_of(load_system(liquid), settings, seed=1)
    assert [type(kernel) for kernel in chains.kernels] == [HMC, SpeciesSwap]
    assert chains.kernels[1].n_steps == 8
    assert [type(kernel) for kernel in chains_of(load_system("gmm40"), settings, seed=1).kernels] == [HMC]


def test_what_has_no_temperature_is_named():
    with pytest.raises(FormatError, match="no temperature"):
        load_system("many_well_32@0.5")
