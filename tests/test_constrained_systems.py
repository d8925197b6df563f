"""Systems with constraints: names, dynamics, flows, and what is refused."""

import re
import shutil

import numpy as np
import openmm
import pytest
import torch

from boltzflow.analysis import reweight, system_difference
from boltzflow.errors import FormatError, UnsupportedForceError
from boltzflow.generators.families import build_generator
from boltzflow.io.config import GeneratorConfig, RunConfig, SimulationConfig
from boltzflow.systems import load_system
from boltzflow.workflow import simulate, train, training_data

SMALL = GeneratorConfig(n_couplings=2, hidden=(32,))


@pytest.fixture(scope="module")
def shipped():
    return load_system("alanine_dipeptide")


@pytest.fixture(scope="module")
def folder(shipped, tmp_path_factory):
    """Alanine dipeptide with the bonds of its 12 hydrogens fixed."""
    folder = tmp_path_factory.mktemp("constrained") / "fixed"
    shutil.copytree(shipped.folder, folder)
    shutil.rmtree(folder / "recipes")
    system = openmm.XmlSerializer.clone(shipped.openmm_system)
    bonds = next(force for force in system.getForces() if isinstance(force, openmm.HarmonicBondForce))
    for k in range(bonds.getNumBonds()):
        i, j, length, _ = bonds.getBondParameters(k)
        if 1 in (shipped.elements[i], shipped.elements[j]):
            system.addConstraint(i, j, length)
            bonds.setBondParameters(k, i, j, length, 0.0)
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    text = re.sub(r"\nenergies: .*|\nrecipe: .*", "", (folder / "system.yaml").read_text())
    (folder / "system.yaml").write_text(text.replace("name: alanine_dipeptide", "name: fixed"))
    return folder


@pytest.fixture(scope="module")
def stiff_folder(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("stiff") / "fixed"
    shutil.copytree(folder, copy)
    with (copy / "system.yaml").open("a") as file:
        file.write("constraint_measure: stiff\n")
    return copy


@pytest.fixture(scope="module")
def dynamics(stiff_folder):
    """A few frames of MD of a system whose density is meant to be the stiff limit."""
    settings = SimulationConfig(method="md", n=60, chains=2, stride=20, burn_in=50, seed=1)
    return simulate(load_system(stiff_folder), settings, progress=False)


def test_the_target_states_its_measure_and_lacks_the_fixed_dimensions(folder, stiff_folder, shipped):
    system = load_system(folder)
    assert (system.n_constraints, shipped.n_constraints) == (12, 0)
    assert system.dimension == system.target.dimension == 60 - 12
    assert system.target.measure == "cartesian modulo rigid motions on 12 constraints (mass-metric)"
    assert load_system(stiff_folder).target.constraint_measure == "stiff"


def test_a_measure_is_part_of_the_name_and_is_read_back(folder):
    system = load_system(f"{folder}:stiff@350")
    assert (system.name, system.temperature) == ("fixed:stiff@350", 350.0)
    assert system.target.name == system.name
    assert system.target.constraint_measure == load_system(system.source).target.constraint_measure == "stiff"
    assert system.with_measure("mass-metric").name == "fixed@350"


def test_measures_are_for_constraints(folder, shipped):
    with pytest.raises(FormatError, match="has no constraints"):
        shipped.with_measure("stiff")
    with pytest.raises(FormatError, match="mass-metric, stiff, rigid, got 'soft'"):
        load_system(folder).with_measure("soft")


def test_dynamics_is_of_the_mass_metric_measure_whatever_is_wanted(dynamics, stiff_folder):
    assert dynamics.target == "fixed:mass-metric"
    assert dynamics.provenance.extra["measure"].endswith("(mass-metric)")
    assert np.isfinite(dynamics.log_weights).all()
    assert dynamics.spaces["positions"].dimension == 48
    source = load_system(dynamics.provenance.extra["source"])
    x = torch.as_tensor(dynamics.samples["positions"]).double()
    u = source.target.reduced_energy(source.target.state(x))
    torch.testing.assert_close(u, torch.as_tensor(dynamics.reduced_energies), rtol=1e-6, atol=1e-6)
    wanted = load_system(stiff_folder)
    found = reweight(dynamics, wanted.target)
    assert found.target == "fixed"
    expected = source.target.metric_term(x).numpy()
    assert expected.std() > 1e-4
    assert np.abs(found.log_weights - expected).max() < 1e-8


def test_a_flow_samples_on_the_constraints_and_is_inverted(folder):
    system = load_system(folder)
    generator = build_generator(system, SMALL, dtype=torch.float64)
    ensemble = generator.sample(128, system.target, seed=1)
    assert np.isfinite(ensemble.log_weights).all()
    assert (system.target.constraints.violation(torch.as_tensor(ensemble.samples["positions"])) < 1e-10).all()
    rows = system.target.state(torch.as_tensor(ensemble.samples["positions"]))
    log_q = generator.log_prob(rows).detach().numpy()
    off = log_q + ensemble.reduced_energies + ensemble.log_weights
    assert np.abs(off - generator.base.log_z).max() < 1e-6
    single = build_generator(system, SMALL).sample(128, system.target, seed=1)
    assert np.isfinite(single.log_weights).all()


def test_a_flow_trains_on_frames_of_dynamics(dynamics, stiff_folder, tmp_path):
    dynamics.save(tmp_path / "md.h5")
    config = RunConfig(
        system=str(stiff_folder),
        generator=SMALL,
        objective={"likelihood": 1.0, "data": str(tmp_path / "md.h5")},
        training={"steps": 3, "batch_size": 16, "seed": 1},
    )
    generator = train(config, tmp_path / "run", progress=False)
    system = load_system(stiff_folder)
    assert np.isfinite(generator.sample(64, system.target, seed=1).log_weights).all()


def test_what_would_leave_the_constraints_is_refused(folder, shipped, dynamics):
    system = load_system(folder)
    with pytest.raises(UnsupportedForceError, match=r"12 constraints.*--method md"):
        simulate(system, SimulationConfig(n=10, chains=1), progress=False)
    with pytest.raises(UnsupportedForceError, match="12 constraints"):
        system_difference(system, load_system(f"{folder}:stiff"), method="mbar", n=100, seed=1)
    with pytest.raises(FormatError, match=r"0 constraints and .* has 12"):
        system_difference(shipped, system, n=100, seed=1)
    with pytest.raises(ValueError, match=r"48 dimensions .* 60"):
        reweight(dynamics, shipped.target)
    flexible = build_generator(shipped, SMALL, dtype=torch.float64).sample(20, shipped.target, seed=1)
    with pytest.raises(ValueError, match=r"none of 20 frames .* on 12 constraints"):
        training_data(flexible, system, dtype=torch.float64)


def test_constraints_that_internal_coordinates_cannot_hold_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "more")
    system = openmm.XmlSerializer.deserialize((folder / "system.xml").read_text())
    system.addConstraint(0, 21, 1.0)
    (tmp_path / "more" / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    with pytest.raises(UnsupportedForceError, match=r"system fixed: .*\[\(0, 21\)\].*molecular dynamics"):
        build_generator(load_system(tmp_path / "more"), SMALL)
