"""Categories of atoms and pairs: of both kinds of topology, and which atoms are alike."""

from pathlib import Path

import mdtraj
import pytest
import torch
from openmm.app import PDBFile

import boltzflow as bf
from boltzflow.networks import AtomFeatures

INPUTS = Path(__file__).parents[1] / "inputs"


@pytest.fixture(scope="module")
def alanine():
    return AtomFeatures.of_topology(bf.load_system("alanine_dipeptide").topology)


def test_hydrogens_of_one_methyl_are_alike(alanine):
    # HH31, CH3, HH32, HH33, C, O, N, H, CA, HA, CB, HB1, HB2, HB3, C, O, N, H, C, H1, H2, H3
    groups = [[k for k, kind in enumerate(alanine.types) if kind == one] for one in sorted(set(alanine.types))]
    assert [group for group in groups if len(group) > 1] == [[0, 2, 3], [11, 12, 13], [19, 20, 21]]


def test_pairs_are_bonds_apart(alanine):
    assert alanine.pairs[0, :8].tolist() == [0, 1, 2, 2, 2, 3, 3, 4]
    assert torch.equal(alanine.pairs, alanine.pairs.t())


def test_both_kinds_of_topology_say_the_same():
    path = str(INPUTS / "alanylglycine.pdb")
    one = AtomFeatures.of_topology(mdtraj.load(path).topology)
    other = AtomFeatures.of_topology(PDBFile(path).topology)
    assert torch.equal(one.categories, other.categories)
    assert torch.equal(one.pairs, other.pairs)


def test_all_molecules_have_the_same_categories(alanine):
    other = AtomFeatures.of_topology(mdtraj.load(str(INPUTS / "alanylglycine.pdb")).topology)
    assert (alanine.sizes, alanine.n_pairs) == (other.sizes, other.n_pairs)


def test_atoms_of_peptides_are_all_known():
    for name in ("alanine_dipeptide", "chignolin", "trp_cage"):
        features = AtomFeatures.of_topology(bf.load_system(name).topology)
        assert (features.categories > 0).all(), name


def test_without_bonds_it_is_no_molecule():
    topology = mdtraj.Topology()
    residue = topology.add_residue("XXX", topology.add_chain())
    for _ in range(2):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    with pytest.raises(ValueError, match="bonds"):
        AtomFeatures.of_topology(topology)


@pytest.mark.parametrize(
    ("categories", "pairs", "message"),
    [
        ([[0], [2]], [[0, 0], [0, 0]], "below"),
        ([[-1], [1]], [[0, 0], [0, 0]], "from 0"),
    ],
)
def test_refused(categories, pairs, message):
    with pytest.raises(ValueError, match=message):
        AtomFeatures(torch.tensor(categories), (2,), torch.tensor(pairs), 1)


def test_as_many_sizes_as_kinds():
    with pytest.raises(ValueError, match=r"categories \(N, 2\)"):
        AtomFeatures(torch.zeros(3, 1, dtype=torch.long), (2, 2), torch.zeros(3, 3, dtype=torch.long), 1)
