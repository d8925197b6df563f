"""Notes on hands, cis peptide bonds and double bonds."""

import numpy as np
import pytest
import torch
from openmm import app

from boltzflow.preparation.sequence import from_sequence
from boltzflow.preparation.stereo import cis_peptide_bonds, stereo_notes
from boltzflow.transitions.torsion_move import rotatable_axes, rotate_about_bond


@pytest.fixture(scope="module")
def peptide():
    return from_sequence("ACE ALA GLY PRO VAL NME", forcefield=app.ForceField("amber14-all.xml"))


def turned(topology, positions, first, second, degrees):
    """Turned about the bond from one atom to another."""
    index = {f"{a.residue.name}-{a.name}": a.index for a in topology.atoms()}
    bonds = [(a.index, b.index) for a, b in topology.bonds()]
    axis = rotatable_axes(bonds, n_atoms=len(positions)).select([(index[first], index[second])])
    angle = torch.tensor([np.deg2rad(degrees)])
    return rotate_about_bond(torch.from_numpy(positions)[None], axis.pairs, axis.moving, angle)[0].numpy()


def test_nothing_is_said_about_a_common_peptide(peptide):
    assert stereo_notes(*peptide) == []


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("ACE-C", "ALA-N", "ACE1-ALA2"),
        ("GLY-C", "PRO-N", "GLY3-PRO4"),
        ("VAL-C", "NME-N", "VAL5-NME6"),
    ],
)
def test_cis_peptide_bonds_are_named(peptide, first, second, name):
    topology, positions = peptide
    cis = turned(topology, positions, first, second, 160.0)
    assert cis_peptide_bonds(topology, cis) == [name]
    (note,) = stereo_notes(topology, cis)
    assert note.startswith(f"1 cis peptide bonds ({name}), the others are trans")
    assert cis_peptide_bonds(topology, turned(topology, positions, first, second, 60.0)) == []


def test_mirror_image_is_of_d_amino_acids(peptide):
    topology, positions = peptide
    (note,) = stereo_notes(topology, positions * [1.0, 1.0, -1.0])
    assert note == "3 D-amino acids (ALA2, PRO4, VAL5); every sample keeps their hand"


def test_double_bonds_are_named():
    topology = app.Topology()
    residue = topology.addResidue("ETE", topology.addChain())
    symbols = ["C", "C", "Cl", "Cl", "H", "H"]
    atoms = [topology.addAtom(f"{s}{k}", app.Element.getBySymbol(s), residue) for k, s in enumerate(symbols, 1)]
    for a, b in [(0, 1), (0, 2), (1, 3), (0, 4), (1, 5)]:
        topology.addBond(atoms[a], atoms[b])
    x = np.array([(0, 0, 0), (0.134, 0, 0), (-0.09, 0.15, 0), (0.224, -0.15, 0), (-0.05, -0.09, 0), (0.18, 0.09, 0)])
    assert stereo_notes(topology, x) == ["1 double bonds (ETE1-C1=C2); simulations keep their E or Z"]
    x[[1, 3, 5], 0] += 0.013
    assert stereo_notes(topology, x) == []
