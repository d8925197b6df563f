"""System folders from every kind of input, with the energies of the input."""

import hashlib
import logging
import os
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
import yaml
from openmm import app, unit

import boltzflow
from boltzflow.errors import FormatError, UnknownNameError, UnsupportedForceError
from boltzflow.preparation import prepare
from boltzflow.preparation.prepare import DEFAULT_FORCEFIELD
from boltzflow.preparation.sequence import from_sequence
from boltzflow.systems import load_system
from tests.preparation.conftest import DATA, atom, moved

FLEXIBLE = {"nonbondedMethod": app.NoCutoff, "constraints": None, "rigidWater": False, "removeCMMotion": False}


def reference_energy(system, positions):
    """kJ/mol on OpenMM's Reference platform."""
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(np.asarray(positions))
    return context.getState(energy=True).getPotentialEnergy()._value


def bonds_of(topology):
    return {frozenset((a.index, b.index)) for a, b in topology.bonds()}


def pdb_file(path, topology, positions):
    with open(path, "w") as file:
        app.PDBFile.writeFile(topology, np.asarray(positions) * unit.nanometer, file, keepIds=True)
    return str(path)


def test_pdb_gives_a_folder_that_loads_with_the_energies_of_the_force_field(write, dipeptide, tmp_path):
    system = prepare("ala", pdb=write("in.pdb", dipeptide))
    given = app.PDBFile("in.pdb")
    expected = app.ForceField(*DEFAULT_FORCEFIELD).createSystem(given.topology, **FLEXIBLE)
    energy = system.potential(system.positions[None])[0].item()
    assert energy == pytest.approx(reference_energy(expected, system.positions.numpy()), abs=1e-5)
    assert energy < reference_energy(expected, np.array(given.positions._value)) + 1e-3
    assert (system.name, system.temperature, system.n_atoms, system.dimension) == ("ala", 300.0, 22, 60)
    assert {frozenset(pair) for pair in system.bonds} == bonds_of(given.topology)
    assert system.data_folder == tmp_path / "ala" / "data"
    assert system.definition.recipe in system.recipes
    assert len(system.definition.energies) == 4
    assert sorted(os.listdir(tmp_path)) == ["ala", "in.pdb"]  # nothing temporary is left


def test_names_in_small_letters(write, records, caplog):
    caplog.set_level(logging.INFO)
    small = prepare("small", pdb=write("in.pdb", [line[:12] + line[12:20].lower() + line[20:] for line in records]))
    capital = prepare("capital", pdb=write("in.pdb", records))
    assert small.topology == capital.topology
    assert "the names of 22 atoms of standard residues are read in capital letters" in caplog.text


def test_structure_is_at_a_minimum(write, dipeptide):
    system = prepare("ala", pdb=write("in.pdb", dipeptide))
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system.openmm_system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(system.positions.numpy())
    before = context.getState(energy=True).getPotentialEnergy()._value
    openmm.LocalEnergyMinimizer.minimize(context, 0.1)
    # the rounding of the file moves some 60 coordinates, of force constants up to 5e5 kJ/mol/nm2, by 3e-5 nm
    assert before - context.getState(energy=True).getPotentialEnergy()._value < 0.1


def test_same_input_gives_the_same_folder(write, records):
    heavy = [line for line in records if line[76:78].strip() != "H"]
    write("in.pdb", heavy)
    one, two = (prepare(f"{name}/ala", pdb="in.pdb", add_hydrogens=True) for name in ("one", "two"))
    for file in ("system.xml", "topology.pdb", "system.yaml"):
        assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes()


def test_added_hydrogens_follow_the_ph(write, caplog):
    topology, positions = from_sequence("ACE ASP NME", forcefield=app.ForceField("amber14-all.xml"), ph=7.0)
    model = app.Modeller(topology, positions * unit.nanometer)
    model.delete([a for a in topology.atoms() if a.element.symbol == "H"])
    write("here", "")
    pdb_file("asp.pdb", model.topology, model.positions.value_in_unit(unit.nanometer))
    with caplog.at_level(logging.INFO, logger="boltzflow"):
        neutral = prepare("neutral", pdb="asp.pdb", add_hydrogens=True, ph=2.0)
    assert "added 12 hydrogens for pH 2" in caplog.text
    charged = prepare("charged", pdb="asp.pdb", add_hydrogens=True)
    assert neutral.n_atoms == charged.n_atoms + 1


def test_sequence_and_temperature_and_provenance(write):
    write("here", "")
    system = boltzflow.init_system("gly", sequence="ACE GLY NME", temperature="25C")
    assert system.temperature == pytest.approx(298.15)
    readme = (system.folder / "README.md").read_text()
    for text in (
        "boltzflow init gly --sequence 'ACE GLY NME' --temperature 25C",
        "amber14-all.xml",
        "energy-minimised",
    ):
        assert text in readme
    assert f"openmm {openmm.__version__}" in readme
    assert system.description.startswith("ACE-GLY-NME, ")


def test_readme_has_checksums_of_inputs_and_local_force_fields(write):
    for file in ("methanol.pdb", "methanol.xml"):
        write(file, (DATA / file).read_bytes())
    system = prepare("moh", pdb="methanol.pdb", forcefield="methanol.xml")
    readme = (system.folder / "README.md").read_text()
    for file in ("methanol.pdb", "methanol.xml"):
        assert hashlib.sha256(Path(file).read_bytes()).hexdigest() in readme


def test_ligand_without_conect_takes_the_bonds_of_its_template(write, caplog):
    write("here", "")
    with caplog.at_level(logging.INFO, logger="boltzflow"):
        system = prepare("moh", pdb=DATA / "methanol.pdb", forcefield=DATA / "methanol.xml")
    assert system.bonds == ((0, 1), (0, 3), (0, 4), (0, 5), (1, 2))
    assert "those of the template are taken" in caplog.text
    assert "vacuum" in caplog.text


def test_amber_files(write):
    write("here", "")
    files = {"prmtop": DATA / "alanine_dipeptide.prmtop", "inpcrd": DATA / "alanine_dipeptide.inpcrd"}
    system = prepare("amber", **files)
    expected = app.AmberPrmtopFile(str(files["prmtop"])).createSystem(implicitSolvent=app.OBC2, **FLEXIBLE)
    energy = system.potential(system.positions[None])[0].item()
    assert energy == pytest.approx(reference_energy(expected, system.positions.numpy()), abs=1e-5)
    vacuum = prepare("vacuum", **files, implicit_solvent="none")
    assert [type(f).__name__ for f in vacuum.openmm_system.getForces()].count("GBSAOBCForce") == 0


def test_charmm_files_with_urey_bradley_terms(write):
    write("here", "")
    files = {"psf": DATA / "methanol.psf", "parameters": [DATA / "methanol.prm"], "coordinates": DATA / "methanol.pdb"}
    system = prepare("charmm", **files, implicit_solvent="none")
    parameters = app.CharmmParameterSet(str(DATA / "methanol.prm"))
    expected = app.CharmmPsfFile(str(DATA / "methanol.psf")).createSystem(parameters, **FLEXIBLE)
    energy = system.potential(system.positions[None])[0].item()
    assert energy == pytest.approx(reference_energy(expected, system.positions.numpy()), abs=1e-6)
    names = [type(force).__name__ for force in system.openmm_system.getForces()]
    assert names.count("HarmonicBondForce") == 2
    assert "CMAPTorsionForce" not in names


def test_serialised_system(write, dipeptide):
    write("in.pdb", dipeptide)
    shipped = load_system("alanine_dipeptide")
    system = prepare("own", system=shipped.folder / "system.xml", pdb="in.pdb")
    torch.testing.assert_close(
        system.potential(system.positions[None]), shipped.potential(system.positions[None]), rtol=0, atol=1e-9
    )


def test_mmcif(write, dipeptide):
    write("in.pdb", dipeptide)
    given = app.PDBFile("in.pdb")
    with open("in.cif", "w") as file:
        app.PDBxFile.writeFile(given.topology, given.positions, file)
    assert prepare("cif", pdb="in.cif").bonds == prepare("pdb", pdb="in.pdb").bonds


def test_alternate_locations_and_models_are_counted(write, records, caplog):
    lines = []
    for line in records:
        if atom(line) == "CB":
            lines += [f"{line[:16]}A{line[17:]}", f"{moved(line, 0, 0, 9)[:16]}B{moved(line, 0, 0, 9)[17:]}"]
        else:
            lines.append(line)
    write("in.pdb", ["MODEL        1", *lines, "ENDMDL", "MODEL        2", *lines, "ENDMDL"])
    with caplog.at_level(logging.INFO, logger="boltzflow"):
        system = prepare("ala", pdb="in.pdb")
    assert "2 models, the first is taken" in caplog.text
    assert "1 atoms in alternate locations, of each the first is taken" in caplog.text
    assert system.n_atoms == 22


def test_alternate_locations_of_mmcif_are_counted(write, dipeptide, caplog):
    write("in.pdb", dipeptide)
    given = app.PDBFile("in.pdb")
    with open("in.cif", "w") as file:
        app.PDBxFile.writeFile(given.topology, given.positions, file)
    lines = []
    for line in Path("in.cif").read_text().splitlines():
        words = line.split()
        if words[:1] in (["ATOM"], ["HETATM"]) and words[3] == "CB":
            assert words[4] == "."
            for label in "AB":
                lines.append(" ".join([*words[:4], label, *words[5:]]))
        else:
            lines.append(line)
    write("alternate.cif", "\n".join(lines) + "\n")
    with caplog.at_level(logging.INFO, logger="boltzflow"):
        system = prepare("ala", pdb="alternate.cif")
    assert "alternate.cif: 1 atoms in alternate locations, of each the first is taken" in caplog.text
    assert system.n_atoms == 22


@pytest.fixture
def solvated(write, dipeptide):
    """Alanine dipeptide with a sodium and a water in a PDB file."""
    write("in.pdb", dipeptide)
    given = app.PDBFile("in.pdb")
    solvent = app.Topology()
    chain = solvent.addChain("W")
    solvent.addAtom("NA", app.element.sodium, solvent.addResidue("NA", chain, "1"))
    water = solvent.addResidue("HOH", chain, "2")
    oxygen, *hydrogens = (
        solvent.addAtom(name, element, water)
        for name, element in (("O", app.element.oxygen), ("H1", app.element.hydrogen), ("H2", app.element.hydrogen))
    )
    for hydrogen in hydrogens:
        solvent.addBond(oxygen, hydrogen)
    model = app.Modeller(given.topology, given.positions)
    centre = np.array(given.positions._value).mean(0)
    places = centre + np.array([[0, 0, 0.5], [0, 0.6, 0], [0.0957, 0.6, 0], [-0.024, 0.693, 0]])
    model.add(solvent, places * unit.nanometer)
    return pdb_file("solvated.pdb", model.topology, model.positions.value_in_unit(unit.nanometer))


def test_solvent_is_removed_on_request_and_counted(solvated, caplog):
    with caplog.at_level(logging.INFO, logger="boltzflow"):
        system = prepare("dry", pdb=solvated, remove_solvent=True)
    assert "removed 1 Na, 1 water" in caplog.text
    assert system.n_atoms == 22


def test_several_molecules_are_held_together(solvated):
    system = prepare("wet", pdb=solvated, forcefield=["amber14-all.xml", "amber14/tip3p.xml"])
    assert (system.n_atoms, system.dimension) == (26, 72)
    (force,) = [f for f in system.openmm_system.getForces() if isinstance(f, openmm.CustomBondForce)]
    assert force.getNumBonds() == 2
    pairs = [force.getBondParameters(k) for k in range(2)]
    assert [tuple(values) for *_, values in pairs] == [(1000.0, 1.5)] * 2
    alone = openmm.System()
    for _ in range(system.n_atoms):
        alone.addParticle(1.0)
    alone.addForce(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(force)))
    positions = system.positions.numpy().copy()
    assert reference_energy(alone, positions) == 0.0
    positions[22] += [0.0, 0.0, 1.9]
    outside = [max(0.0, np.linalg.norm(positions[a] - positions[b]) - 1.5) for a, b, _ in pairs]
    assert max(outside) > 0.1
    assert reference_energy(alone, positions) == pytest.approx(sum(0.5 * 1000.0 * d**2 for d in outside))
    assert "flat-bottom restraint" in (system.folder / "README.md").read_text()
    # with the restraint the torch energy is that of OpenMM
    energy = system.potential(torch.from_numpy(positions)[None])[0].item()
    assert energy == pytest.approx(reference_energy(system.openmm_system, positions), rel=1e-9)


def test_restraint_radius(solvated):
    words = {"pdb": solvated, "forcefield": ["amber14-all.xml", "amber14/tip3p.xml"]}
    system = prepare("wet", **words, restraint_radius=2.5)
    (force,) = [f for f in system.openmm_system.getForces() if isinstance(f, openmm.CustomBondForce)]
    assert [force.getBondParameters(k)[2][1] for k in range(2)] == [2.5, 2.5]
    with pytest.raises(FormatError, match=r"restraint_radius: 0\.05 nm is less than the 0\.\d+ nm from"):
        prepare("tight", **words, restraint_radius=0.05)
    with pytest.raises(FormatError, match="positive distance"):
        prepare("negative", **words, restraint_radius=-1.0)
    # a System that holds its molecules together already is left as it is
    again = prepare("again", system="wet/system.xml", pdb="wet/topology.pdb")
    assert again.openmm_system.getNumForces() == system.openmm_system.getNumForces()
    with pytest.raises(FormatError, match="restraints between its molecules already"):
        prepare("twice", system="wet/system.xml", pdb="wet/topology.pdb", restraint_radius=2.0)


def test_unsupported_force_is_said_and_the_folder_is_for_openmm(write, dipeptide, caplog):
    write("in.pdb", dipeptide)
    shipped = load_system("alanine_dipeptide").openmm_system
    hbond = openmm.CustomHbondForce("0*distance(d1,a1)")
    hbond.addDonor(0, -1, -1, [])
    hbond.addAcceptor(5, -1, -1, [])
    shipped.addForce(hbond)
    write("own.xml", openmm.XmlSerializer.serialize(shipped))
    with caplog.at_level(logging.INFO, logger="boltzflow"):
        system = prepare("own", system="own.xml", pdb="in.pdb")
    assert "CustomHbondForce" in caplog.text
    assert system.definition.recipe == "molecular_dynamics"
    with pytest.raises(UnsupportedForceError):
        system.potential  # noqa: B018


def test_failure_leaves_nothing(write, dipeptide, tmp_path, monkeypatch):
    write("in.pdb", dipeptide)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(sys.modules["boltzflow.preparation.prepare"], "readme_text", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare("ala", pdb="in.pdb")
    assert os.listdir(tmp_path) == ["in.pdb"]


def test_empty_folder_is_used_and_a_full_one_refused(write, dipeptide, tmp_path):
    write("in.pdb", dipeptide)
    (tmp_path / "ala").mkdir()
    prepare("ala", pdb="in.pdb")
    before = (tmp_path / "ala" / "system.yaml").read_bytes()
    with pytest.raises(FileExistsError, match="ala: exists already; choose another name"):
        prepare("ala", pdb="in.pdb", temperature=350)
    assert (tmp_path / "ala" / "system.yaml").read_bytes() == before
    with pytest.raises(FileExistsError, match="exists already"):
        prepare("in.pdb", pdb="in.pdb")


@pytest.mark.parametrize("name", ["ala@300", "a b", "-x", ""])
def test_names_that_cannot_be_found_again_are_refused(write, dipeptide, name):
    with pytest.raises(FormatError, match="choose another name"):
        prepare(name, pdb=write("in.pdb", dipeptide))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("in.pdb/ala", "in.pdb is a file, expected a folder"),
        ("/proc/ala", r"no permission|cannot be made \(No such file"),
        (300 * "x", "has 300 letters, at most 100"),
    ],
)
def test_places_that_cannot_be_written_are_refused(write, dipeptide, name, message):
    with pytest.raises(FormatError, match=message):
        prepare(name, pdb=write("in.pdb", dipeptide))


def test_name_of_a_shipped_system_is_refused(write, dipeptide):
    with pytest.raises(FormatError, match="is a system that ships"):
        prepare("alanine_dipeptide", pdb=write("in.pdb", dipeptide))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "got none"),
        ({"pdb": "a.pdb", "sequence": "ALA"}, "got pdb and sequence"),
        ({"system": "a.xml"}, "system needs pdb"),
        ({"prmtop": "a.prmtop"}, "prmtop: needs inpcrd as well"),
        ({"psf": "a.psf", "coordinates": "a.pdb"}, "psf: needs parameters as well"),
        ({"psf": "a.psf", "parameters": ["a.prm"]}, "psf: needs coordinates as well"),
        ({"prmtop": "a", "inpcrd": "b", "forcefield": "c.xml"}, "forcefield: has no meaning with prmtop"),
        ({"prmtop": "a", "inpcrd": "b", "remove_solvent": True}, "strip the files"),
        ({"system": "a", "pdb": "b", "add_hydrogens": True}, "add_hydrogens: has no meaning with system"),
        ({"pdb": "a", "implicit_solvent": "OBC2"}, "implicit/obc2.xml"),
        ({"pdb": "a", "inpcrd": "b"}, "it belongs to prmtop"),
    ],
)
def test_inputs_that_do_not_belong_together(write, arguments, message):
    write("here", "")
    with pytest.raises(FormatError, match=message):
        prepare("ala", **arguments)


def test_unknown_implicit_solvent(write):
    write("here", "")
    files = {"prmtop": DATA / "alanine_dipeptide.prmtop", "inpcrd": DATA / "alanine_dipeptide.inpcrd"}
    with pytest.raises(UnknownNameError, match="did you mean 'OBC2'"):
        prepare("amber", **files, implicit_solvent="OBC")


def test_recipes_name_the_folder(write, dipeptide):
    system = prepare("ala", pdb=write("in.pdb", dipeptide))
    assert system.recipes
    for name in system.recipes:
        text = (system.folder / "recipes" / f"{name}.yaml").read_text()
        assert "ala" in text
        assert ".tmp" not in text
        assert load_system(system.recipe(name).system).folder == system.folder
    assert yaml.safe_load((system.folder / "system.yaml").read_text())["data"] == "data"
