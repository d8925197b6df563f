"""Topology files from which mdtraj reads exactly the atoms and bonds that were written."""

import mdtraj
import numpy as np
import pytest
import torch
from openmm import app

from boltzflow.errors import FormatError
from boltzflow.preparation.folder import new_folder, topology_text, verify_topology

C, H, N, S = (app.Element.getBySymbol(symbol) for symbol in "CHNS")


def build(*chains):
    """A topology from residues (name, id, {atom: element}); bonds are added by the tests."""
    topology = app.Topology()
    for index, residues in enumerate(chains):
        chain = topology.addChain("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index % 26])
        for name, number, atoms in residues:
            residue = topology.addResidue(name, chain, number)
            for atom, element in atoms.items():
                topology.addAtom(atom, element, residue)
    return topology


def bond(topology, *pairs):
    atoms = list(topology.atoms())
    for a, b in pairs:
        topology.addBond(atoms[a], atoms[b])


def read_back(topology, path, *, spread=1.0):
    rng = torch.Generator().manual_seed(1)
    positions = spread * torch.rand((topology.getNumAtoms(), 3), generator=rng, dtype=torch.float64).numpy()
    path.write_text(topology_text(topology, positions))
    found = mdtraj.load_pdb(str(path))
    np.testing.assert_allclose(found.xyz[0], positions, atol=6e-5)
    verify_topology(topology, found.topology)
    return found.topology


def test_ligand_with_many_bonds_at_one_atom(tmp_path):
    # more than the four partners of a CONECT record
    atoms = {"S1": S, **{f"F{k}": app.element.fluorine for k in range(6)}}
    topology = build([("SF6", "1", atoms)])
    bond(topology, *((0, k) for k in range(1, 7)))
    assert read_back(topology, tmp_path / "a.pdb").n_bonds == 6


def test_disulphide_in_amber_names(tmp_path):
    cys = {"N": N, "CA": C, "CB": C, "SG": S, "C": C}
    topology = build([("CYX", "1", cys), ("CYX", "2", cys)])
    inner = [(0, 1), (1, 2), (2, 3), (1, 4)]
    bond(topology, *inner, *((a + 5, b + 5) for a, b in inner), (4, 5), (3, 8))
    assert read_back(topology, tmp_path / "a.pdb", spread=2.0).n_bonds == 10


def test_molecules_of_one_chain_are_not_joined(tmp_path):
    # as Amber writes two chains, and as a chain that is cut
    gly = {"N": N, "CA": C, "C": C, "O": app.element.oxygen}
    topology = build([("GLY", "1", gly), ("GLY", "2", gly), ("GLY", "3", gly)])
    inner = [(0, 1), (1, 2), (2, 3)]
    bond(topology, *((a + 4 * k, b + 4 * k) for k in range(3) for a, b in inner), (2, 4))
    found = read_back(topology, tmp_path / "a.pdb")
    assert [chain.n_residues for chain in found.chains] == [2, 1]


def test_equal_atom_names_and_equal_residue_numbers(tmp_path):
    topology = build([("LIG", "7", {"C": C, "H": H}), ("LIG", "7", {"C": C, "H": H})])
    bond(topology, (0, 1), (2, 3))
    assert read_back(topology, tmp_path / "a.pdb").n_residues == 2
    twice = app.Topology()
    residue = twice.addResidue("LIG", twice.addChain("A"), "1")
    for element in (C, H, H, H, H):
        twice.addAtom("X", element, residue)
    bond(twice, *((0, k) for k in range(1, 5)))
    assert len({atom.name for atom in read_back(twice, tmp_path / "b.pdb").atoms}) == 5


def test_residue_numbers_are_kept_where_pdb_can_hold_them(tmp_path):
    atoms = {"C1": C, "C2": C}
    kept = read_back(build([("XX", "-3", atoms), ("XY", "512", atoms)]), tmp_path / "a.pdb")
    assert [residue.resSeq for residue in kept.residues] == [-3, 512]
    changed = read_back(build([("XX", "12345", atoms), ("XY", "B7", atoms)]), tmp_path / "b.pdb")
    assert [residue.resSeq for residue in changed.residues] == [1, 2]


def test_more_chains_than_letters(tmp_path):
    topology = build(*([("NA", "1", {"NA": app.element.sodium})] for _ in range(60)))
    assert read_back(topology, tmp_path / "a.pdb").n_residues == 60


def test_names_that_readers_misunderstand_are_refused(tmp_path):
    # a molecule that is called GLY and has its names, but not its bonds
    topology = build([("GLY", "1", {"N": N, "CA": C, "C": C, "O": app.element.oxygen})])
    bond(topology, (0, 1), (1, 3))
    with pytest.raises(FormatError, match=r"topology.pdb: 4 atoms and 2 bonds were written, 4 and \d are read back"):
        read_back(topology, tmp_path / "a.pdb")


def test_folder_appears_complete_or_not_at_all(tmp_path):
    def half():
        with new_folder(tmp_path / "deep" / "x") as folder:
            (folder / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert list((tmp_path / "deep").iterdir()) == []
    with new_folder(tmp_path / "deep" / "x") as folder:
        assert folder.name == "x"
        assert not (tmp_path / "deep" / "x").exists()
        (folder / "all").write_text("")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]
    assert (tmp_path / "deep" / "x" / "all").is_file()
