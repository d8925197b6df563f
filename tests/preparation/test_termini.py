"""Terminal oxygens: added where a chain ends in the open, and nowhere else."""

import numpy as np
from openmm import app

from boltzflow.preparation.readers import Source
from boltzflow.preparation.sequence import from_sequence
from boltzflow.preparation.termini import add_terminal_oxygens


def source_of(sequence, without=()):
    field = app.ForceField("amber14-all.xml")
    topology, positions = from_sequence(sequence, forcefield=field)
    model = app.Modeller(topology, positions)
    removed = [atom for atom in topology.atoms() if atom.name in without]
    kept = [atom.index for atom in topology.atoms() if atom not in removed]
    model.delete(removed)
    return Source(model.topology, positions[kept]), positions


def test_oxygen_comes_back_where_it_was():
    source, before = source_of("ALA GLY SER | GLY ALA", without=("OXT",))
    n_atoms = len(source.positions)
    add_terminal_oxygens(source)
    assert len(source.positions) == source.topology.getNumAtoms() == n_atoms + 2 == len(before)
    added = [atom for atom in source.topology.atoms() if atom.name == "OXT"]
    assert [f"{a.residue.name}{a.residue.id}" for a in added] == ["SER3", "ALA5"]
    for atom in added:
        here = {a.name: source.positions[a.index] for a in atom.residue.atoms()}
        distances = [np.linalg.norm(here["OXT"] - here[name]) for name in ("C", "CA", "O")]
        assert np.all(np.abs(np.array(distances) - [0.125, 0.238, 0.22]) < 0.015)
        bonded = [{a.name, b.name} for a, b in atom.residue.bonds() if atom in (a, b)]
        assert bonded == [{"C", "OXT"}]
    assert source.notes == ["added the terminal oxygen OXT to SER3, ALA5"]


def test_closed_ends_stay():
    for sequence in ("ACE ALA NME", "ALA ALA"):
        source, before = source_of(sequence)
        topology = source.topology
        add_terminal_oxygens(source)
        assert source.topology is topology
        assert len(source.positions) == len(before)
        assert source.notes == []
