"""Kernels for molecules, on the shipped one."""

import math

import pytest
import torch

from boltzflow.simulation import ParallelTempering, molecule_blocks, molecule_kernels, single_bond_axes, soft_axes
from boltzflow.systems import load_system
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.rigid_move import RigidMove
from boltzflow.transitions.torsion_move import TorsionMove, rotatable_axes


def test_soft_axes_of_alanine_dipeptide_are_phi_and_psi():
    system = load_system("alanine_dipeptide")
    axes = rotatable_axes(system.bonds, n_atoms=system.n_atoms)
    assert len(axes) == 7
    soft = soft_axes(axes, system.bonds, system.elements)
    assert {frozenset(p) for p in soft.pairs.tolist()} == {frozenset((6, 8)), frozenset((8, 14))}


def test_molecules_without_torsions_get_hmc_alone():
    kernels = molecule_kernels([(0, 1), (0, 2)], [8, 1, 1])
    assert [type(k) for k in kernels] == [HMC]


def test_ethane_gets_its_rotor_but_no_soft_axis():
    bonds = [(0, 1), *[(0, k) for k in (2, 3, 4)], *[(1, k) for k in (5, 6, 7)]]
    assert len(molecule_kernels(bonds, [6, 6] + 6 * [1])) == 2


def test_several_molecules_move_as_rigid_bodies_too():
    bonds = [(0, 1), *[(0, k) for k in (2, 3, 4)], *[(1, k) for k in (5, 6, 7)], (8, 9), (8, 10)]
    kernels = molecule_kernels(bonds, [6, 6] + 6 * [1] + [8, 1, 1])
    assert [type(k) for k in kernels] == [HMC, TorsionMove, RigidMove]


def test_torsion_moves_keep_labels_and_hands_of_the_molecule():
    system = load_system("alanine_dipeptide")
    simulation = ParallelTempering(
        system.target,
        system.target.state(system.positions[None]),
        temperatures=[300.0, 400.0],
        n_chains=24,
        kernels=molecule_kernels(system.bonds, system.elements),
        seed=1,
    )
    simulation.burn_in(30)
    result = simulation.run(10, records_per_frame=10)
    assert torch.isfinite(result.reduced_energies).all()
    assert system.sector.contains(result.samples["positions"].flatten(0, 1)).all()
    drift = result.samples["positions"].mean(-2) - system.positions.mean(0)
    assert drift.abs().max() < 1e-9
    hmc, soft, general = (torch.tensor(a) for a in result.diagnostics["acceptance"])
    assert (hmc > 0.5).all()
    assert (soft > 0.1).all()
    assert (general > 0.3).all()


@pytest.mark.parametrize(("length", "turns"), [(0.134, False), (0.147, True)])
def test_double_bonds_are_no_axes(length, turns):
    bonds = [(0, 1), (1, 2), (2, 3), (1, 4), (2, 5), (0, 6), (3, 7)]
    elements = [6, 6, 6, 6, 1, 1, 1, 1]
    half = length / 2
    right = [(half, 0.0), (half + 0.075, -0.13), (half + 0.05, 0.09), (half + 0.18, -0.13)]
    x = {atom: (*point, 0.0) for atom, point in zip((2, 3, 5, 7), right, strict=True)}
    x |= {atom: (-x[other][0], -x[other][1], 0.0) for atom, other in ((1, 2), (0, 3), (4, 5), (6, 7))}
    positions = torch.tensor([x[atom] for atom in range(8)])
    axes = single_bond_axes(rotatable_axes(bonds, n_atoms=8), bonds, elements, positions)
    assert axes.pairs.tolist() == [[0, 1], *([[1, 2]] if turns else []), [2, 3]]
    assert len(molecule_kernels(bonds, elements, positions=positions)) == (3 if turns else 2)


def test_ends_of_linear_groups_are_no_axes():
    bonds = [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5)]  # acetonitrile
    axes = rotatable_axes(bonds, n_atoms=6)
    assert axes.pairs.tolist() == [[0, 1]]
    h = [(-0.036, 0.103 * math.cos(t), 0.103 * math.sin(t)) for t in (0.0, 2.094, 4.189)]
    x = torch.tensor([(0.0, 0, 0), (0.147, 0, 0), (0.263, 0.001, 0), *h])
    elements = [6, 6, 7, 1, 1, 1]
    assert len(single_bond_axes(axes, bonds, elements, x)) == 0
    bent = x.clone()
    bent[2, 1] = 0.1
    assert len(single_bond_axes(axes, bonds, elements, bent)) == 1


def test_blocks_are_of_the_soft_axes():
    system = load_system("ace_aaa_nme")
    blocks = molecule_blocks(system.bonds, system.elements, positions=system.positions)
    soft = soft_axes(rotatable_axes(system.bonds, n_atoms=system.n_atoms), system.bonds, system.elements)
    assert blocks.atoms[:, 1:3].tolist() == soft.pairs.tolist()
    assert sorted(label.split(":")[0] for label in (blocks.labels[k] for k in blocks.kind.tolist())) == (
        ["pivot"] * 3 + ["side"] * 2
    )
    with pytest.raises(ValueError, match="has no block of"):
        molecule_blocks([(0, 1), (0, 2)], [8, 1, 1])
