"""Collective variables against plain geometry; names, indices and refusals."""

import mdtraj
import numpy as np
import pytest

from boltzflow.analysis.observables import (
    collective_variable,
    distance,
    radius_of_gyration,
    rmsd,
    torsion,
    torsion_atoms,
)
from boltzflow.ensemble import Ensemble
from boltzflow.errors import UnknownNameError
from boltzflow.state import Space


def plain_torsion(x, i, j, k, m):
    """Torsion from the components of both arms in the plane normal to the axis."""
    axis = (x[:, k] - x[:, j]) / np.linalg.norm(x[:, k] - x[:, j], axis=1, keepdims=True)
    first, last = x[:, i] - x[:, j], x[:, m] - x[:, k]
    first = first - np.sum(first * axis, axis=1, keepdims=True) * axis
    last = last - np.sum(last * axis, axis=1, keepdims=True) * axis
    return np.arctan2(np.sum(np.cross(axis, first) * last, axis=1), np.sum(first * last, axis=1))


@pytest.mark.parametrize(("name", "atoms"), [("phi", (4, 6, 8, 14)), ("psi", (6, 8, 14, 16))])
def test_named_torsions_of_alanine_dipeptide(dipeptide, name, atoms):
    assert torsion_atoms(dipeptide.topology, name) == atoms
    found = torsion(dipeptide, name)
    x = dipeptide.samples["positions"].astype(np.float64)
    difference = (found - plain_torsion(x, *atoms) + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(difference).max() < 1e-4
    assert found.dtype == np.float64
    assert np.all((found >= -np.pi) & (found < np.pi))
    assert np.array_equal(torsion(dipeptide, atoms), found)


def test_torsions_are_numbered_where_there_are_several():
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for _ in range(3):
        residue = topology.add_residue("GLY", chain)
        for name in ("N", "CA", "C"):
            topology.add_atom(name, mdtraj.element.get_by_symbol(name[0]), residue)
    assert torsion_atoms(topology, "phi:1") == (2, 3, 4, 5)
    assert torsion_atoms(topology, "phi:2") == (5, 6, 7, 8)
    assert torsion_atoms(topology, "omega:2") == (4, 5, 6, 7)
    with pytest.raises(ValueError, match="there are 2; pick 'omega:1'"):
        torsion_atoms(topology, "omega")
    with pytest.raises(ValueError, match="expected 'omega:1'"):
        torsion_atoms(topology, "omega:3")
    with pytest.raises(UnknownNameError, match="has no chi1"):
        torsion_atoms(topology, "chi1")
    with pytest.raises(UnknownNameError, match="did you mean 'phi'"):
        torsion_atoms(topology, "pphi")


def test_lengths_are_in_nm(dipeptide):
    x = dipeptide.samples["positions"].astype(np.float64)
    assert distance(dipeptide, [0, 5]) == pytest.approx(np.linalg.norm(x[:, 0] - x[:, 5], axis=1), abs=1e-5)
    masses = np.array([a.element.mass for a in dipeptide.topology.atoms])
    centred = x - np.average(x, axis=1, weights=masses)[:, None]
    expected = np.sqrt(np.average(np.sum(centred**2, axis=2), axis=1, weights=masses))
    assert radius_of_gyration(dipeptide) == pytest.approx(expected, abs=1e-5)


def test_rmsd_superposes_and_leaves_hydrogens_out(dipeptide):
    x = dipeptide.samples["positions"]
    angle = 0.7
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    moved = x[0] @ rotation + 3.0
    hydrogens = dipeptide.topology.select("element == H")
    moved[hydrogens] += 1.0
    found = rmsd(dipeptide, moved)
    assert found[0] < 1e-3
    assert found[1:].min() > 0.01
    assert rmsd(dipeptide, moved, atoms=range(22))[0] > 0.1
    with pytest.raises(ValueError, match=r"shape \(22, 3\)"):
        rmsd(dipeptide, moved[:3])


@pytest.mark.parametrize("atoms", [[0, 0], [0], [0, 22], [-1, 3], [0, 1, 2]])
def test_wrong_atoms_are_named(dipeptide, atoms):
    with pytest.raises(ValueError, match=r"2 different atom indices in 0 … 21"):
        distance(dipeptide, atoms)


def test_collective_variables_from_text(dipeptide):
    for spec, values, unit, periodic in [
        ("phi", torsion(dipeptide, "phi"), "rad", True),
        ("psi:1", torsion(dipeptide, "psi"), "rad", True),
        ("torsion:4,6,8,14", torsion(dipeptide, "phi"), "rad", True),
        ("torsion:ACE1-C,ALA2-N,ALA2-CA,14", torsion(dipeptide, "phi"), "rad", True),
        ("distance:0,5", distance(dipeptide, [0, 5]), "nm", False),
        ("distance:ACE1-CH3,ACE1-O", distance(dipeptide, [1, 5]), "nm", False),
        ("rg", radius_of_gyration(dipeptide), "nm", False),
        ("reduced_energy", dipeptide.reduced_energies, "kT", False),
        ("positions:4", dipeptide.samples["positions"].reshape(200, -1)[:, 4], "", False),
    ]:
        cv = collective_variable(dipeptide, spec)
        assert np.array_equal(cv.values, values), spec
        assert (cv.name, cv.unit, cv.periodic) == (spec, unit, periodic)
        assert cv.values.dtype == np.float64


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("phii", UnknownNameError, "did you mean 'phi'"),
        ("torsion:1,2,x,4", ValueError, "separated by commas"),
        ("distance:", ValueError, "separated by commas"),
        ("distance:ACE1-C,", ValueError, "separated by commas"),
        ("distance:ACE1-C,ALA2-CZ", UnknownNameError, "no atom 'ALA2-CZ'; did you mean 'ALA2-C"),
        ("positions", ValueError, "name one entry"),
        ("positions:66", ValueError, "name one entry"),
    ],
)
def test_wrong_collective_variables_are_named(dipeptide, spec, error, match):
    with pytest.raises(error, match=match):
        collective_variable(dipeptide, spec)


def test_atoms_of_the_same_name_in_two_chains_need_an_index(dipeptide):
    frame = dipeptide.to_mdtraj()[0]
    both = frame.topology.join(frame.topology)
    twice = Ensemble(
        samples={"positions": np.concatenate([frame.xyz, frame.xyz + 1], axis=1)},
        log_weights=np.zeros(1),
        reduced_energies=np.zeros(1),
        target="two",
        topology=both,
    )
    with pytest.raises(
        ValueError, match=r"there are 2 atoms 'ALA2-CA' \(several chains\); name one by its index, 8 or 30"
    ):
        collective_variable(twice, "distance:ALA2-CA,4")


def test_circular_fields_are_wrapped():
    angles = np.array([[0.0], [4.0], [-4.0], [np.pi]])
    e = Ensemble(
        samples={"a": angles},
        spaces={"a": Space("circle", (1,))},
        log_weights=np.zeros(4),
        reduced_energies=np.zeros(4),
        target="t",
    )
    cv = collective_variable(e, "a")
    assert cv.periodic
    assert cv.values == pytest.approx([0.0, 4.0 - 2 * np.pi, 2 * np.pi - 4.0, -np.pi])
