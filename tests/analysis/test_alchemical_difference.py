"""Free energies along λ: a pair of ions against an integral, names that give λ, what is refused."""

import shutil

import numpy as np
import openmm
import pytest
import torch
import yaml
from typer.testing import CliRunner

from boltzflow.analysis.path_states import PathStates, RecordedPath
from boltzflow.analysis.system_difference import system_difference
from boltzflow.analysis.system_pair import alchemical_path, paired_targets
from boltzflow.cli import free_energy  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.errors import FormatError
from boltzflow.forcefield import alchemical, from_openmm, lambda_schedule
from boltzflow.systems import load_system
from boltzflow.targets import MoleculeTarget
from boltzflow.targets.molecule import kT
from boltzflow.transitions.hmc import HMC

TEMPERATURE = 300.0
PAIR_SET = "index 10 to 13"


@pytest.fixture(scope="module")
def ions():
    """Two ions on a soft spring, whose density depends on their distance alone."""
    system = openmm.System()
    spring, force = openmm.HarmonicBondForce(), openmm.NonbondedForce()
    for charge in (0.3, -0.3):
        system.addParticle(12.0)
        force.addParticle(charge, 0.3, 1.5)
    spring.addBond(0, 1, 0.25, 150.0)
    system.addForce(spring)
    system.addForce(force)
    return from_openmm(system)


def _path(forcefield, *, backwards=False):
    def at(position):
        sterics, electrostatics = lambda_schedule(position if backwards else 1 - position)
        soft = alchemical(forcefield, [0], lambda_sterics=sterics, lambda_electrostatics=electrostatics)
        return MoleculeTarget(soft.compiled(), n_atoms=2, temperature=TEMPERATURE, name=f"ions at {position:g}")

    return at


def _log_z(forcefield, position):
    """ln of the integral of r^2 exp(-u(r)), for positions on the path."""
    r = torch.linspace(1e-4, 1.6, 40_001, dtype=torch.float64)
    x = torch.stack([torch.zeros(len(r), 3, dtype=r.dtype), torch.nn.functional.pad(r[:, None], (0, 2))], 1)
    u = _path(forcefield)(position).potential(x) / kT(TEMPERATURE)
    return float(torch.logsumexp(2 * r.log() - u, 0))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("method", "options", "n_states"),
    [("auto", {}, 2), ("mbar", {}, 3), ("mbar", {"lambdas": [0.0, 0.25, 0.5, 1.0]}, 4)],
)
def test_a_pair_of_ions_against_an_integral(ions, backwards, method, options, n_states):
    path = _path(ions, backwards=backwards)
    a = path(0.0)
    start = a.state(torch.tensor([[[0.0, 0.0, 0.0], [0.33, 0.0, 0.0]]], dtype=torch.float64))
    arguments = {"n": 1600, "n_chains": 200, "n_burn_in": 20, "sweeps_per_record": 1, "max_temperature": 1.0, "seed": 3}
    found = system_difference(
        a, path(1.0), path=path, start=start, kernels=[HMC(0.01, n_leapfrog=2)], method=method, **arguments, **options
    )
    exact = (_log_z(ions, 0.0) - _log_z(ions, 1.0)) * (-1 if backwards else 1)
    assert abs(exact) > 1
    assert abs(found.estimate.z_score(exact)) < 4
    assert found.estimate.error < 0.06
    assert len(found.states) == n_states


def test_a_linear_mix_would_not_do(ions):
    """Where the cores are gone atoms overlap, and the original energy of such samples is beyond any weight."""
    path = _path(ions)
    x = torch.tensor([[[0.0, 0.0, 0.0], [0.02, 0.0, 0.0]]], dtype=torch.float64)
    u = [float(path(position).reduced_energy(path(0.0).state(x))) for position in (0.0, 0.5, 0.75, 1.0)]
    assert u[0] > 1e10
    assert u[1] > 1e10
    assert abs(u[2]) < 100
    assert abs(u[3]) < 100


def test_every_walker_has_the_energy_of_its_rung(ions):
    ladder = PathStates(
        _path(ions),
        _path(ions)(0.0).state(torch.tensor([[[0.0, 0.0, 0.0], [0.33, 0.0, 0.0]]], dtype=torch.float64)),
        kernels=[HMC(0.01, n_leapfrog=4)],
        n_chains=3,
        max_temperature=1.5,
        seed=5,
    )
    ladder.set_states([0.0, 0.3, 0.6, 1.0])
    ladder.burn_in(20)
    found = ladder.record(6, sweeps_per_record=1)
    assert isinstance(found, RecordedPath)
    walkers, n_hot = ladder.simulation.walkers(), len(ladder.hot)
    for k, position in enumerate(ladder.lambdas):
        u = _path(ions)(position).reduced_energy(walkers).reshape(-1, 3)[n_hot:]
        np.testing.assert_allclose(found.u[-1, k], u.detach().numpy(), rtol=1e-11, atol=1e-11)
    np.testing.assert_array_equal(found.u_a, found.u[:, 0])
    np.testing.assert_array_equal(found.u_b, found.u[:, -1])
    joined = found.joined(found)
    assert joined.u.shape == (12, 4, 4, 3)
    assert joined.u_kn().shape == (4, 4 * 12 * 3)
    rates = ladder.simulation.diagnostics()["swap_rates"]
    assert all(0 < rate <= 1 for rate in rates)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Alanine dipeptide whose side chain is alchemical."""
    folder = tmp_path_factory.mktemp("alchemical") / "dipeptide"
    shutil.copytree(load_system("alanine_dipeptide").folder, folder)
    values = yaml.safe_load((folder / "system.yaml").read_text())
    values |= {"name": "dipeptide", "alchemical": {"atoms": PAIR_SET}, "data": "data"}
    (folder / "system.yaml").write_text(yaml.safe_dump(values))
    return folder


def invoke(*words):
    return CliRunner().invoke(app, ["free-energy", *(str(word) for word in words)])


def test_names_are_read_back(folder):
    for text, name in (
        ("", "dipeptide"),
        ("@lambda=0.25", "dipeptide@lambda=0.25"),
        ("@350", "dipeptide@350"),
        ("@350,lambda=0", "dipeptide@350,lambda=0"),
        ("@lambda=1", "dipeptide"),
    ):
        system = load_system(f"{folder}{text}")
        assert system.name == system.target.name == name
        again = load_system(system.source)
        assert (again.lam, again.temperature) == (system.lam, system.temperature)
    assert system.alchemical_atoms == (10, 11, 12, 13)
    system, whole = load_system(f"{folder}@lambda=0.6"), load_system(folder)
    x = whole.positions[None]
    expected = alchemical(whole.openmm_system, range(10, 14), lambda_sterics=1.0, lambda_electrostatics=0.2)
    torch.testing.assert_close(system.potential(x), expected(x), rtol=1e-11, atol=1e-9)
    other = load_system(folder).at_lambda(0.6)
    assert torch.equal(other.potential(x), system.potential(x))
    assert load_system(folder, dtype=torch.float32).at_lambda(0.3).potential.dtype == torch.float32


def test_the_path_goes_from_one_end_to_the_other(folder):
    a, b = load_system(folder), load_system(f"{folder}@350,lambda=0")
    *ends, _ = paired_targets(a, b)
    path = alchemical_path(a, b, ends)
    x = a.target.state(a.positions[None])
    assert path(0.0) is ends[0]
    assert path(1.0) is ends[1]
    middle = load_system(f"{folder}@lambda=0.5").potential(a.positions[None])
    beta = 0.5 / kT(300.0) + 0.5 / kT(350.0)
    torch.testing.assert_close(path(0.5).reduced_energy(x), middle * beta, rtol=1e-11, atol=0)
    assert alchemical_path(a, load_system(f"{folder}@350"), ends) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{folder}@lambda=1.5", "expected λ from 0"),
        ("{folder}@lambda=half", "expected NAME@TEMPERATURE in kelvin, NAME@lambda=VALUE"),
        ("{folder}@mu=0.5", "got 'mu=0.5'"),
        ("alanine_dipeptide@lambda=0.5", "has no alchemical atoms; add"),
    ],
)
def test_unfit_names_are_explained(folder, name, message):
    name = name.format(folder=folder)
    with pytest.raises(FormatError, match=message):
        load_system(name)
    result = invoke("--from", folder, "--to", name)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        ("resname WAT", "are 0 of 22"),
        ("all", "are 22 of 22"),
        ("nonsense 3", "is no selection of atoms in MDTraj's language"),
        ([4, 22], "expected some of the atoms 0 to 21"),
    ],
)
def test_unfit_selections_are_explained(folder, tmp_path, atoms, message):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    values = yaml.safe_load((other / "system.yaml").read_text()) | {"alchemical": {"atoms": atoms}}
    (other / "system.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(FormatError, match=message):
        load_system(f"{other}@lambda=0.5").potential  # noqa: B018
