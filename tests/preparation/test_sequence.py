"""Peptides from sequences: what is read, and geometry, hands, peptide bonds and contacts of what is built."""

import itertools
import time

import numpy as np
import pytest

from boltzflow.errors import FormatError, UnknownNameError
from boltzflow.preparation.geometry import wrong_hands
from boltzflow.preparation.sequence import from_sequence, read_sequence

AMINO_ACIDS = "ARNDCQEGHILKMFPSTWYV"
TRP_CAGE = "NLYIQWLKDGGPSSGRPPPS"


@pytest.fixture(scope="module")
def forcefields():
    from openmm.app import ForceField

    made = {}

    def get(*names):
        if names not in made:
            made[names] = ForceField(*names)
        return made[names]

    return get


def dihedral(p):
    """Torsion in degrees of four points."""
    b0, b1, b2 = p[0] - p[1], p[2] - p[1], p[3] - p[2]
    b1 = b1 / np.linalg.norm(b1)
    v, w = b0 - b0 @ b1 * b1, b2 - b2 @ b1 * b1
    return float(np.degrees(np.arctan2(np.cross(b1, v) @ w, v @ w)))


def complaints(topology, positions, field):
    """Everything that is wrong with the geometry of a peptide."""
    import openmm
    from openmm import unit

    found = [f"{name}: wrong hand" for name in wrong_hands(topology, positions)]
    system = field.createSystem(topology, constraints=None, rigidWater=False)
    bonds = {frozenset((a.index, b.index)) for a, b in topology.bonds()}
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for k in range(force.getNumBonds()):
                i, j, r0, _ = force.getBondParameters(k)
                r = np.linalg.norm(positions[i] - positions[j])
                if frozenset((i, j)) in bonds and abs(r - r0.value_in_unit(unit.nanometer)) > 0.01:
                    found.append(f"bond {i}-{j}: {r:.3f} nm, r0 {r0}")
    residues = list(topology.residues())
    for one, two in itertools.pairwise(residues):
        first = {atom.name: atom.index for atom in one.atoms()}
        second = {atom.name: atom.index for atom in two.atoms()}
        ends = first.get("CA", first.get("CH3")), second.get("CA", second.get("C"))
        if one.chain is two.chain and None not in ends and two.name != "NH2":
            omega = dihedral(positions[[ends[0], first["C"], second["N"], ends[1]]])
            if abs(omega) < 165:
                found.append(f"{one.name}{one.id}-{two.name}{two.id}: omega {omega:.0f}")
    near = np.zeros((len(positions), len(positions)), dtype=bool)
    for pair in bonds:
        i, j = pair
        near[i, j] = near[j, i] = True
    separated = ~(near | (near.astype(int) @ near.astype(int) > 0) | np.eye(len(positions), dtype=bool))
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    # hydrogens of N-H and O-H have no radius of their own in these force fields: 0.18 nm is a hydrogen bond
    atoms = list(topology.atoms())
    polar = np.zeros(len(atoms), dtype=bool)
    for one, two in topology.bonds():
        for a, b in ((one, two), (two, one)):
            polar[a.index] |= a.element.symbol == "H" and b.element.symbol in "NO"
    nearest = np.where(polar[:, None] | polar[None], 0.15, 0.19)
    for i, j in np.argwhere(separated & (distance < nearest)):
        found.append(f"{atoms[i]} and {atoms[j]} at {distance[i, j]:.3f} nm")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    if not energy < 10 * len(positions):
        found.append(f"energy {energy:.0f} kJ/mol")
    return found


@pytest.mark.parametrize("names", [("amber14-all.xml",), ("amber99sbildn.xml",), ("amber96.xml",)])
def test_every_amino_acid_in_good_geometry(forcefields, names):
    field = forcefields(*names)
    for letter in AMINO_ACIDS:
        for text in (f"ACE {letter} NME", f"{letter}G{letter}"):
            assert (text, complaints(*from_sequence(text, forcefield=field), field)) == (text, [])


def test_charmm_with_charged_ends(forcefields):
    field = forcefields("charmm36.xml")
    assert complaints(*from_sequence("HAPTW", forcefield=field), field) == []


@pytest.mark.parametrize(
    ("text", "n_atoms"),
    [("ACE HID HIE HIP NME", 64), ("ACE ASH GLH LYN NME", 62), ("ACE A NHE", 19), ("ACE NME", 12), ("GG|AA", 40)],
)
def test_variants_caps_and_chains(forcefields, text, n_atoms):
    field = forcefields("amber14-all.xml")
    topology, positions = from_sequence(text, forcefield=field)
    assert positions.shape == (n_atoms, 3)
    assert complaints(topology, positions, field) == []


def test_chains_lie_apart(forcefields):
    topology, positions = from_sequence("AAA | GFG", forcefield=forcefields("amber14-all.xml"))
    first, second = ([atom.index for atom in chain.atoms()] for chain in topology.chains())
    distance = np.linalg.norm(positions[first][:, None] - positions[second][None], axis=-1).min()
    assert 0.8 < distance < 1.5


def test_a_mini_protein_with_implicit_solvent(forcefields):
    field = forcefields("amber14-all.xml", "implicit/obc2.xml")
    topology, positions = from_sequence(TRP_CAGE, forcefield=field)
    assert positions.shape == (304, 3)
    assert complaints(topology, positions, field) == []
    # charged ends
    assert {"H", "H2", "H3"} <= {atom.name for atom in next(topology.residues()).atoms()}
    assert "OXT" in {atom.name for atom in list(topology.residues())[-1].atoms()}


@pytest.mark.slow
def test_sixty_residues(forcefields):
    field = forcefields("amber14-all.xml")
    start = time.process_time()
    topology, positions = from_sequence(3 * TRP_CAGE, forcefield=field)
    assert time.process_time() - start < 30
    assert complaints(topology, positions, field) == []


def test_the_same_sequence_gives_the_same_structure(forcefields):
    field = forcefields("amber14-all.xml")
    first, second = (from_sequence("ACE W P K NME", forcefield=field)[1] for _ in range(2))
    assert np.array_equal(first, second)


def test_a_wrong_hand_is_noticed(forcefields):
    topology, positions = from_sequence("ACE T G I NME", forcefield=forcefields("amber14-all.xml"))
    assert wrong_hands(topology, -positions) == ["THR2-CA", "THR2-CB", "ILE4-CA", "ILE4-CB"]


@pytest.mark.parametrize(("ph", "hydrogens"), [(7.0, {"HE2"}), (5.0, {"HD1", "HE2"})])
def test_ph_decides_histidine(forcefields, ph, hydrogens):
    topology, _ = from_sequence("ACE HIS NME", forcefield=forcefields("amber14-all.xml"), ph=ph)
    assert {atom.name for atom in topology.atoms()} & {"HD1", "HE2"} == hydrogens


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ACE ALA ALA NME", [["ACE", "ALA", "ALA", "NME"]]),
        ("ace-ala-hsd-nhe", [["ACE", "ALA", "HID", "NH2"]]),
        ("GGF", [["GLY", "GLY", "PHE"]]),
        ("ALA", [["ALA"]]),
        ("A L A", [["ALA", "LEU", "ALA"]]),
        ("ACE GGFL NME|GG", [["ACE", "GLY", "GLY", "PHE", "LEU", "NME"], ["GLY", "GLY"]]),
    ],
)
def test_reading(text, names):
    assert read_sequence(text) == names


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("ACE ALX NME", UnknownNameError, "no residue 'ALX'; did you mean 'VAL' or 'ALA'. .* start from a PDB file"),
        ("ACE SEP NME", UnknownNameError, "no residue 'SEP'; .* as one-letter codes write 'S E P'"),
        ("", ValueError, "at least one amino acid"),
        ("ACE", ValueError, "at least one amino acid"),
        ("AA||GG", ValueError, "at least one amino acid"),
        ("ALA ACE", ValueError, "the cap ACE must be the first residue .* number 2 of 2"),
        ("NME ALA", ValueError, "the cap NME must be the last residue"),
        ("GLY", FormatError, "cap it, as in 'ACE ALA NME'"),
        ("CYX ALA CYX", FormatError, "disulphide bridge"),
    ],
)
def test_what_cannot_be_built(forcefields, text, error, message):
    with pytest.raises(error, match=message):
        from_sequence(text, forcefield=forcefields("amber14-all.xml"))
