"""What is wrong with an input is said within seconds, with what to do; nothing is left behind."""

import os
import time
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from boltzflow.errors import BoltzflowError, FormatError, UnitError, UnknownNameError, UnsupportedForceError
from boltzflow.preparation import prepare
from boltzflow.preparation.checks import check_hands, check_relaxed, read_temperature
from boltzflow.preparation.sequence import from_sequence
from tests.preparation.conftest import DATA, atom, moved

FLEXIBLE = {"nonbondedMethod": app.NoCutoff, "constraints": None, "rigidWater": False}


@pytest.fixture(autouse=True)
def _quick_and_clean(tmp_path):
    start = time.process_time()  # of this process: other tests may use the machine
    yield
    assert time.process_time() - start < 10.0
    assert not [name for name in os.listdir(tmp_path) if "new" in name]


def refused(*expected, error=FormatError, **arguments):
    """The message of an error that contains everything expected."""
    with pytest.raises(error) as caught:
        prepare("new", **arguments)
    for text in expected:
        assert text in str(caught.value)
    return str(caught.value)


# --- files


def test_missing_file_names_the_nearest(write, dipeptide):
    write("topology.pdb", dipeptide)
    refused("topolgy.pdb: no such file; did you mean 'topology.pdb'?", pdb="topolgy.pdb", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("  \n\n", "is empty"),
        (bytes(range(256)), "is a binary file"),
        (b"\x1f\x8b\x08\x00abc", "gunzip"),
        ("<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
        ("<html>", "is a web page"),
        ("data_1ABC\nloop_\n", "no ATOM or HETATM record"),
    ],
)
def test_files_that_are_no_pdb(write, content, message):
    refused("in.pdb", message, pdb=write("in.pdb", content))


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("in.pdb", ">sp|P1\nMKTAYIAK\n", "FASTA: give its letters as --sequence"),
        ("in.sdf", "\n\n\n  1  0\n", "obabel in.sdf -O in.pdb"),
        ("in.mol2", "@<TRIPOS>MOLECULE\n", "obabel in.mol2 -O in.pdb"),
    ],
)
def test_other_formats_say_what_to_do(write, name, content, remedy):
    refused("no ATOM or HETATM record", remedy, pdb=write(name, content))


def test_folder_in_place_of_a_file(tmp_path, write):
    write("in.txt", "")
    (tmp_path / "in.pdb").mkdir()
    refused("in.pdb: is a folder", pdb="in.pdb")


@pytest.mark.parametrize("ph", [70.0, -1.0, float("nan")])
def test_impossible_ph(write, dipeptide, ph):
    refused("ph: expected a number from 0 to 14", pdb=write("in.pdb", dipeptide), ph=ph)
    refused("ph: expected a number from 0 to 14", sequence="GG", ph=ph)


def test_nanometres_in_a_pdb_file(write, records):
    small = [moved(line, *(float(line[k : k + 8]) / 10 for k in (30, 38, 46))) for line in records]
    refused("these are bonded: lengths may not be in the unit", pdb=write("in.pdb", small))


def test_ion_alone(write):
    ion = "HETATM    1 NA    NA A   1       0.000   0.000   0.000  1.00  0.00          NA"
    files = ["amber14-all.xml", "amber14/tip3p.xml"]
    refused("1 atoms; internal coordinates need at least 3", pdb=write("in.pdb", [ion]), forcefield=files)


def test_tabs_are_named(write, records):
    refused("in.pdb, line 2: has tabs", pdb=write("in.pdb", [records[0], "\t".join(records[1].split())]))


def test_deuterium_is_named(write, records):
    deuterated = [f"{line[:76]} D{line[78:]}" if atom(line) == "HA" else line for line in records]
    refused("1 atoms are deuterium", pdb=write("in.pdb", deuterated))


def test_water_alone_names_the_xml_of_water(write, records):
    names = ("O", "H1", "H2")
    places = ((0, 0, 0), (0.957, 0, 0), (-0.24, 0.927, 0))
    line = "HETATM    1  {:<3} HOH A   1" + 52 * " " + "{:>2}"
    water = [moved(line.format(name, name[0]), *place) for name, place in zip(names, places, strict=True)]
    refused("HOH1", "--remove-solvent", "amber14/tip3p.xml", pdb=write("in.pdb", water))


def test_truncated_line_is_named(write, records):
    text = "\n".join(records[:10])[:-40]
    refused("in.pdb, line 10: no coordinates in columns 31-54", "truncated", pdb=write("in.pdb", text))


def test_overflowed_coordinates_are_named(write, records):
    line = f"{records[3][:30]}********{records[3][38:]}"
    refused("line 4: no coordinates", pdb=write("in.pdb", [*records[:3], line, *records[4:]]))


def test_damaged_mmcif(write):
    refused("in.cif: cannot be read as mmCIF", pdb=write("in.cif", "data_x\nloop_\n_atom_site.group_PDB\nATOM\n"))
    refused("no atom_site table", pdb=write("in.cif", "data_x\n_cell.length_a 10.0\n"))


def test_damaged_amber_and_charmm_files(write, dipeptide):
    prmtop, inpcrd = DATA / "alanine_dipeptide.prmtop", DATA / "alanine_dipeptide.inpcrd"
    write("in.pdb", dipeptide)
    refused("in.pdb: cannot be read as an Amber prmtop", prmtop="in.pdb", inpcrd=inpcrd)
    refused("cannot be read as Amber coordinates", prmtop=prmtop, inpcrd="in.pdb")
    write("short.inpcrd", "\n".join(inpcrd.read_text().splitlines()[:6]) + "\n")
    refused("short.inpcrd", prmtop=prmtop, inpcrd="short.inpcrd")
    lacking = (DATA / "methanol.prm").read_text().replace("OH1  H    545.0  0.960\n", "")
    charmm = {"psf": DATA / "methanol.psf", "coordinates": DATA / "methanol.pdb"}
    refused("Missing bond type", "every parameter file", **charmm, parameters=[write("in.prm", lacking)])


def test_prmtop_without_born_radii(write):
    text = (DATA / "alanine_dipeptide.prmtop").read_text()
    start = text.index("%FLAG RADII")
    end = text.index("%FLAG", start + 5)
    lines = text[start:end].splitlines()
    zeros = ["".join(f"{0.0:16.8E}" for _ in range(len(line) // 16)) for line in lines[2:]]
    write("in.prmtop", text[:start] + "\n".join([*lines[:2], *zeros, ""]) + text[end:])
    refused("changeRadii mbondi2", prmtop="in.prmtop", inpcrd=DATA / "alanine_dipeptide.inpcrd")


# --- atoms of a structure


def test_missing_heavy_atoms_are_named(write, records):
    lines = [line for line in records if atom(line) not in {"CB", "HB1", "HB2", "HB3"}]
    for hydrogens in (True, False):
        refused("ALA2 lacks CB of template ALA", "pdbfixer", pdb=write("in.pdb", lines), add_hydrogens=hydrogens)


def test_missing_oxygen_of_the_end_is_named(write):
    topology, positions = from_sequence("ACE ALA ALA NME", forcefield=app.ForceField("amber14-all.xml"), ph=7.0)
    model = app.Modeller(topology, positions * unit.nanometer)
    model.delete([residue for residue in topology.residues() if residue.name in {"ACE", "NME"}])
    write("here", "")
    with open("in.pdb", "w") as file:
        app.PDBFile.writeFile(model.topology, model.positions, file)
    refused("ALA2 lacks OXT of template CALA", "let --add-hydrogens add OXT", pdb="in.pdb")


def test_missing_hydrogens_have_a_remedy(write, records):
    heavy = [line for line in records if line[76:78].strip() != "H"]
    refused(
        "missing hydrogens in 3 residues", "ACE1 lacks HH31, HH32, HH33", "--add-hydrogens", pdb=write("a.pdb", heavy)
    )


def test_residue_without_template_names_the_closest(write, records):
    lines = [line.replace("ALA", "XYZ") for line in records]
    last = max(k for k, line in enumerate(lines) if "XYZ" in line)
    boron = moved(lines[last], 9.0, 9.0, 9.0)
    lines.insert(last + 1, f"{boron[:12]} B1  {boron[17:76]} B")
    message = refused("no template in the force field", "XYZ2: closest template", pdb=write("in.pdb", lines))
    assert "closest template ALA, has in excess B1" in message
    assert "--forcefield" in message


def test_residue_of_wrong_bonds_names_them(write, dipeptide):
    lines = [line.replace("ALA", "XYZ") for line in dipeptide.splitlines() if not line.startswith("CONECT")]
    refused(
        "XYZ2: closest template ALA, has no bonds", "CONECT", pdb=write("in.pdb", [li for li in lines if li != "END"])
    )


def test_residue_unlike_all_templates(write, records):
    line = "HETATM   30 ZN    ZN B   9      20.000  20.000  20.000  1.00  0.00          ZN"
    refused("B:ZN9: no template is similar", "--remove-solvent", pdb=write("in.pdb", [*records, line]))


def test_virtual_sites_of_a_water_model(write, records):
    water = [
        f"HETATM   {30 + k}  {name:<3} HOH B   9    {x:8.3f}{y:8.3f}{20.0:8.3f}  1.00  0.00           {name[0]}"
        for k, (name, x, y) in enumerate((("O", 20.0, 20.0), ("H1", 20.957, 20.0), ("H2", 19.76, 20.927)))
    ]
    files = ["amber14-all.xml", "amber14/tip4pew.xml"]
    refused("HOH9", "virtual sites", "three-site", pdb=write("in.pdb", [*records, *water]), forcefield=files)


def test_explicit_solvent_counts_the_waters(write):
    write("here", "")
    lines = (Path(app.__file__).parent / "data" / "test.pdb").read_text().splitlines()[:3000]
    refused("water molecules: explicit solvent", "--remove-solvent", "implicit/obc2.xml",
            pdb=write("in.pdb", lines), error=UnsupportedForceError)  # fmt: skip


def test_only_water(write):
    line = "HETATM   30  O   HOH B   9      20.000  20.000  20.000  1.00  0.00           O"
    refused("nothing is left", pdb=write("in.pdb", [line]), remove_solvent=True)


# --- positions


def test_atoms_at_the_same_place_are_named(write, records):
    lines = list(records)
    lines[8] = f"{lines[8][:30]}{lines[5][30:54]}{lines[8][54:]}"
    message = refused("1 pairs of atoms at the same place", pdb=write("in.pdb", lines))
    assert f"-{atom(lines[5])} and " in message
    assert f"-{atom(lines[8])};" in message


def test_positions_that_are_none(write, records):
    refused("all atoms are at the origin", pdb=write("in.pdb", [moved(line, 0, 0, 0) for line in records]))
    lines = [f"{records[0][:30]}     nan{records[0][38:]}", *records[1:]]
    refused("1 of 22 atoms have no finite position (ACE1-", pdb=write("in.pdb", lines))


def test_gap_in_a_chain_is_named(write):
    topology, positions = from_sequence("ACE ALA ALA ALA NME", forcefield=app.ForceField("amber14-all.xml"), ph=7.0)
    model = app.Modeller(topology, positions * unit.nanometer)
    model.delete([list(topology.residues())[2]])
    write("here", "")
    with open("in.pdb", "w") as file:
        app.PDBFile.writeFile(model.topology, model.positions, file)
    refused("1 bonds longer than 0.3 nm: ALA2-C to ALA3-N", "pdbfixer", pdb="in.pdb")


def test_structure_that_minimisation_cannot_relax():
    topology = app.Topology()
    residue = topology.addResidue("XX", topology.addChain("A"))
    a, b = (topology.addAtom(name, app.element.carbon, residue) for name in ("C1", "C2"))
    topology.addBond(a, b)
    system = openmm.System()
    bonds = openmm.HarmonicBondForce()
    bonds.addBond(0, 1, 0.15, 3e5)
    system.addForce(bonds)
    good, bad = np.array([[0.0, 0, 0], [0.15, 0, 0]]), np.array([[0.0, 0, 0], [0.25, 0, 0]])
    check_relaxed(topology, system, good, 0.0, np.zeros((2, 3)))
    with pytest.raises(FormatError, match=r"1 bonds stay strained: XX1-C1 to XX1-C2 \(0.250 for 0.150 nm\)"):
        check_relaxed(topology, system, bad, 0.0, np.zeros((2, 3)))
    with pytest.raises(FormatError, match="the force on XX1-C2 is still 2000"):
        check_relaxed(topology, system, good, 0.0, np.array([[0.0, 0, 0], [2000.0, 0, 0]]))
    with pytest.raises(FormatError, match="the energy is nan"):
        check_relaxed(topology, system, good, float("nan"), np.zeros((2, 3)))


def test_inverted_stereo_centre_is_named(write, dipeptide):
    write("in.pdb", dipeptide)
    given = app.PDBFile("in.pdb")
    positions = np.array(given.positions._value)
    check_hands(given.topology, positions, positions @ np.diag([-1.0, -1.0, 1.0]))  # a rotation
    with pytest.raises(FormatError, match="inverts the stereo-centres ALA2-CA"):
        check_hands(given.topology, positions, positions @ np.diag([1.0, 1.0, -1.0]))


# --- force fields


def test_unknown_force_field_names_the_nearest(write, dipeptide):
    write("in.pdb", dipeptide)
    refused("did you mean 'amber14-all.xml'", pdb="in.pdb", forcefield="amber14-al.xml", error=UnknownNameError)


def test_force_field_that_is_none(write, dipeptide):
    write("in.pdb", dipeptide)
    refused("bad.xml: OpenMM cannot load it", pdb="in.pdb", forcefield=write("bad.xml", "<ForceField><AtomTypes>"))
    refused("define no residues", pdb="in.pdb", forcefield=write("other.xml", "<System/>"))


def test_rival_templates(write):
    text = (DATA / "methanol.xml").read_text()
    start, end = text.index("<Residue "), text.index("</Residues>")
    rival = text[start:end].replace('"MOH"', '"MEO"').replace('"HO" type="HO"', '"HO" type="HC"')
    files = [write("rival.xml", text[:end] + rival + text[end:])]
    structure = app.PDBFile(str(DATA / "methanol.pdb"))
    template = app.ForceField(str(DATA / "methanol.xml"))._templates["MOH"]
    atoms = {atom.name: atom for atom in structure.topology.atoms()}
    for a, b in template.bonds:
        structure.topology.addBond(atoms[template.atoms[a].name], atoms[template.atoms[b].name])
    next(structure.topology.residues()).name = "XXX"
    with open(write("in.pdb", ""), "w") as unnamed:
        app.PDBFile.writeFile(structure.topology, structure.positions, unnamed)
    refused("rival templates", "MEO", pdb="in.pdb", forcefield=files)
    prepare("of_its_name", pdb=DATA / "methanol.pdb", forcefield=files)


# --- temperatures


@pytest.mark.parametrize(
    ("given", "kelvin"),
    [(300, 300.0), ("300", 300.0), ("310.5 K", 310.5), ("25C", 298.15), (" 25 °C ", 298.15), ("3e2", 300.0),
     (300 * unit.kelvin, 300.0)],
)  # fmt: skip
def test_temperatures(given, kelvin):
    assert read_temperature(given) == pytest.approx(kelvin)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (0.3, "in units of 1000 K it would be 300 K"),
        ("0.596", "as kT in kcal/mol it would be 300 K"),
        (2.494, "as kT in kJ/mol it would be 300 K"),
        (25, "as degrees Celsius it would be 298.15 K: write 25C"),
        (30000, "is 300 K meant?"),
        (-5, "outside 50 to 3000 K"),
        (0, "outside 50 to 3000 K"),
        ("77F", "expected kelvin"),
        ("warm", "expected kelvin"),
        ("300 kJ/mol", "expected kelvin"),
        (float("nan"), "expected a number of kelvin"),
        (True, "expected a number of kelvin"),
        (None, "expected a number of kelvin"),
        (25 * unit.nanometer, "expected a positive number of kelvin"),
    ],
)
def test_temperatures_that_are_not_believable(given, meant):
    with pytest.raises(UnitError) as caught:
        read_temperature(given)
    assert meant in str(caught.value)


# --- serialised Systems


@pytest.fixture
def topology(write, dipeptide):
    write("in.pdb", dipeptide)
    return app.PDBFile("in.pdb").topology


def serialised(write, system):
    return write("own.xml", openmm.XmlSerializer.serialize(system))


def made(topology, *, files=("amber14-all.xml", "implicit/obc2.xml"), **options):
    return app.ForceField(*files).createSystem(topology, **{**FLEXIBLE, **options})


def test_constraints(write, topology):
    system = serialised(write, made(topology, constraints=app.HBonds))
    refused("12 constraints", "constraints=None, rigidWater=False", system=system, pdb="in.pdb", error=BoltzflowError)


def test_virtual_sites(write, topology):
    system = made(topology)
    system.setVirtualSite(5, openmm.TwoParticleAverageSite(1, 4, 0.5, 0.5))
    name = list(topology.atoms())[5].name
    refused(
        f"1 virtual sites (ACE1-{name})", system=serialised(write, system), pdb="in.pdb", error=UnsupportedForceError
    )


def test_periodic_system_without_and_with_box(write, topology, dipeptide):
    topology.setUnitCellDimensions((3, 3, 3) * unit.nanometer)
    system = serialised(write, made(topology, files=["amber14-all.xml"], nonbondedMethod=app.PME))
    words = {"system": system, "error": UnsupportedForceError}
    refused("periodic boundary conditions (and the topology has no box)", "NoCutoff", pdb="in.pdb", **words)
    write("box.pdb", f"CRYST1{30:9.3f}{30:9.3f}{30:9.3f}{90:7.2f}{90:7.2f}{90:7.2f} P 1           1\n" + dipeptide)
    assert "no box" not in refused("periodic boundary conditions", pdb="box.pdb", **words)


def test_system_and_topology_of_different_size(write, topology, records):
    write("heavy.pdb", [line for line in records if line[76:78].strip() != "H"])
    refused("22 particles, but the topology has 10 atoms", system=serialised(write, made(topology)), pdb="heavy.pdb")


def test_masses_that_are_of_other_elements(write, topology):
    system = made(topology)
    system.setParticleMass(4, 40.0)
    name = list(topology.atoms())[4].name
    refused(f"ACE1-{name} with 40.000 instead of 12.011 Da", system=serialised(write, system), pdb="in.pdb")


def test_repartitioned_hydrogen_masses_are_allowed(write, topology, tmp_path):
    system = serialised(write, made(topology, hydrogenMass=3 * unit.dalton))
    made_system = prepare("heavy_hydrogens", system=system, pdb="in.pdb")
    assert "repartitioned" in (made_system.folder / "README.md").read_text()


def test_atoms_in_another_order(write, topology, records):
    lines = list(records)
    one, two = (k for k, line in enumerate(lines) if atom(line) in {"HA", "HB1"})
    lines[one], lines[two] = lines[two], lines[one]
    write("order.pdb", lines)
    refused("no bond term", "order", system=serialised(write, made(topology)), pdb="order.pdb")


def test_topology_without_the_bonds_of_the_system(write, topology, records):
    write("bare.pdb", [line.replace("ALA", "XYZ") for line in records])
    refused("bonds that the topology does not have", "CONECT", system=serialised(write, made(topology)), pdb="bare.pdb")


def test_serialised_things_that_are_no_system(write, topology):
    integrator = write("integrator.xml", openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.001)))
    refused("holds a serialised VerletIntegrator, expected a System", system=integrator, pdb="in.pdb")
    refused("cannot be read as a serialised openmm.System", system=write("any.xml", "<a/>"), pdb="in.pdb")
