"""Every system that ships: sizes, energies against OpenMM, agreement of its files, README and recipes."""

import openmm
import pytest
import torch
from openmm import app

from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import read_serialized
from boltzflow.io.config import load_config
from boltzflow.preparation.prepare import reference_energies
from boltzflow.systems import list_systems, load_system, probe_positions

# atoms, dimension and temperature, as published or by design
SHIPPED = {
    "ace_aaa_nme": (42, 120, 300.0),
    "ace_aaaaa_nme": (62, 180, 300.0),
    "alanine_dipeptide": (22, 60, 300.0),
    "alanine_dipeptide_ff14sb": (22, 60, 310.0),
    "alanine_dipeptide_ff99sbildn": (22, 60, 300.0),
    "alanine_dipeptide_vacuum": (22, 60, 1000.0),
    "chignolin": (138, 408, 310.0),
    "hexaalanine": (63, 183, 310.0),
    "tip3p_box": (648, 1293, 298.15),
    "tip4pew_box": (864, 1293, 298.15),
    "trialanine": (33, 93, 310.0),
    "trp_cage": (304, 906, 300.0),
}
# dimension and log Z, where it is known, of energies in closed form
ANALYTIC = {
    "gmm40": (2, 0.0),
    "image_chart": (2, 0.0),
    "image_face": (2, 0.0),
    "image_spiral": (2, 0.0),
    "dw4": (6, None),
    "ka2_2d_43": (86, None),
    "lj13": (36, None),
    "lj55": (162, None),
    "lj55_shallow": (162, None),
    "many_well_32": (32, 164.695675),
    "snf_double_well": (2, 10.293480),
}
BOXES = [name for name in SHIPPED if name.endswith("_box")]


def test_all_are_listed():
    assert list_systems() == sorted([*SHIPPED, *ANALYTIC])


@pytest.mark.parametrize("name", ANALYTIC)
def test_analytic_systems_have_their_size_and_log_z(name):
    system = load_system(name)
    assert (system.dimension, pytest.approx(system.target.log_z, abs=1e-6)) == ANALYTIC[name]
    for recipe in system.recipes:
        assert system.recipe(recipe).system == name
    assert (system.folder / "README.md").is_file()


@pytest.fixture(scope="module", params=sorted(SHIPPED))
def system(request):
    return load_system(request.param)


def test_size(system):
    assert (system.n_atoms, system.dimension, system.temperature) == SHIPPED[system.name]
    u = system.target.reduced_energy(system.target.state(system.positions[None]))
    assert torch.isfinite(u).all()
    assert system.target.measure == (
        "cartesian modulo rigid motions"
        if system.box is None
        else "cartesian modulo translations on 648 constraints (mass-metric)"
    )


def test_energies_are_those_of_openmm(system):
    """The record, OpenMM now, and the torch force field, which refuses to load otherwise."""
    x = probe_positions(system.positions, 4)
    expected = torch.tensor(reference_energies(system.openmm_system, x), dtype=torch.float64)
    # a box is evaluated by the converged Ewald sum, which PME at its tolerance is near
    rtol = 1e-9 if system.box is None else 1e-6
    torch.testing.assert_close(system.potential(x), expected, rtol=rtol, atol=1e-9)
    recorded = torch.tensor(system.definition.energies, dtype=torch.float64)
    torch.testing.assert_close(recorded, expected, rtol=1e-9, atol=1e-9)


def test_structure_is_relaxed(system):
    """Thermal motion raises the energy by about kT/2 for each degree of freedom: the structure is a minimum."""
    forces = system.potential.energy_and_force(system.positions[None])[1]
    if system.box is None:  # constraints take up forces
        assert float(forces.norm(dim=-1).max()) < 200.0  # of rounding to 0.1 pm and 3·10⁵ kJ/mol/nm²
    mean = system.dimension / 2 * 0.00831446 * system.temperature
    shaken = system.potential(probe_positions(system.positions, 2)[1:]) - system.potential(system.positions[None])
    assert 0 < float(shaken) < 40 * mean


def test_files_agree(system):
    topology = app.PDBFile(str(system.folder / system.definition.topology)).topology
    omm = system.openmm_system
    assert topology.getNumAtoms() == omm.getNumParticles() == system.n_atoms
    for k, atom in enumerate(topology.atoms()):
        mass = omm.getParticleMass(k)._value
        expected = 0.0 if omm.isVirtualSite(k) else atom.element.mass._value
        assert mass == pytest.approx(expected, abs=0.02), atom
    bonded = {tuple(sorted((a.index, b.index))) for a, b in topology.bonds()}
    assert bonded == set(system.bonds)
    held = {tuple(sorted(omm.getConstraintParameters(k)[:2])) for k in range(omm.getNumConstraints())}
    for force in omm.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            held |= {tuple(sorted(force.getBondParameters(k)[:2])) for k in range(force.getNumBonds())}
    assert bonded <= held


def test_what_the_xml_says_without_openmm(system):
    found, omm = read_serialized((system.folder / "system.xml").read_bytes()), system.openmm_system
    assert found.n_particles == omm.getNumParticles()
    assert found.n_constraints == omm.getNumConstraints()
    assert found.n_sites == sum(omm.isVirtualSite(k) for k in range(omm.getNumParticles()))
    assert (found.box is not None) == omm.usesPeriodicBoundaryConditions()
    assert (found.box is not None) == system.potential.periodic
    if found.box is not None:
        torch.testing.assert_close(found.box, system.potential.box, rtol=0, atol=0)
        width = torch.from_numpy(system._structure.unitcell_lengths[0]).double()
        torch.testing.assert_close(width, found.box.diagonal(), rtol=0, atol=1e-4)


def test_readme_and_recipes(system):
    text = (system.folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"{system.n_atoms} " in text
    assert f"{system.temperature:g} K" in text
    assert "## References" in text
    assert system.definition.recipe in system.recipes
    for name in system.recipes:
        assert f"recipes/{name}.yaml" in text
        config = load_config(system.folder / "recipes" / f"{name}.yaml")
        assert config.system == system.name
    if system.box is None:
        assert f"{system.sector.n_copies:,} " in text or system.name == "alanine_dipeptide"


def test_trained_recipes_are_those_of_the_size(system):
    trains = {"likelihood"} <= set(system.recipes)
    assert trains == (system.dimension <= 250)
    assert ("parallel_tempering" in system.recipes) == (system.box is None and system.name != "alanine_dipeptide")


def test_folder_is_small(system):
    size = sum(path.stat().st_size for path in system.folder.rglob("*") if path.is_file())
    assert size < 500_000


@pytest.mark.parametrize("name", BOXES)
def test_box_has_no_internal_coordinates(name):
    system = load_system(name)
    for attribute in ("zmatrix", "sector"):
        with pytest.raises(UnsupportedForceError, match=f"{name} is in a periodic box.*--method md"):
            getattr(system, attribute)
    assert system.target.sector is None
    assert float(system.target.constraints.violation(system.positions[None])) < 1e-9
    moved = system.positions + torch.tensor([0.3, -0.2, 7 * float(system.box[0, 0])], dtype=torch.float64)
    u = system.target.reduced_energy(system.target.state(torch.stack([system.positions, moved])))
    torch.testing.assert_close(u[0], u[1], rtol=1e-10, atol=0)


def test_vacuum_is_the_shipped_molecule_without_solvent():
    vacuum, solvated = load_system("alanine_dipeptide_vacuum"), load_system("alanine_dipeptide")
    omm = solvated.openmm_system.__copy__()
    for index in reversed(range(omm.getNumForces())):
        if isinstance(omm.getForce(index), openmm.CustomGBForce):
            omm.removeForce(index)
    x = probe_positions(vacuum.positions, 4)
    torch.testing.assert_close(
        vacuum.potential(x), torch.tensor(reference_energies(omm, x), dtype=torch.float64), rtol=1e-9, atol=1e-9
    )
