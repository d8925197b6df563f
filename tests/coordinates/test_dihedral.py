"""Dihedral angles: against mdtraj, and by rows."""

import mdtraj
import numpy as np
import torch

from boltzflow.coordinates import dihedral_angles
from boltzflow.run import make_rng


def test_angles_are_those_of_mdtraj_whether_by_rows_or_not():
    x = torch.randn(5, 6, 3, generator=make_rng(1), dtype=torch.float64)
    atoms = torch.tensor([[0, 1, 2, 3], [4, 2, 5, 0], [3, 2, 1, 0]])
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(6):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    expected = mdtraj.compute_dihedrals(mdtraj.Trajectory(x.numpy(), topology), atoms.numpy(), periodic=False)
    found = dihedral_angles(x, atoms)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)  # mdtraj keeps float32
    torch.testing.assert_close(found[:, 2], found[:, 0])  # a torsion read backwards is the same
    order = torch.tensor([[0, 1], [1, 0], [2, 1], [2, 2], [0, 0]])
    torch.testing.assert_close(dihedral_angles(x, atoms[order]), found.gather(1, order))
