"""The Cartesian block in the middle of a molecule: round trips, and its volume element with that of rigid motions."""

import math

import pytest
import torch

from boltzflow.coordinates import CartesianBlock, InternalCoordinateMap, InternalCoordinates, ZMatrix
from tests.coordinates.molecules import MOLECULES, alanine_dipeptide


def molecule_in_block(name, n=4):
    """A Z-matrix, its block, and the positions of a molecule, displaced and turned."""
    molecule = MOLECULES[name]()
    rng = torch.Generator().manual_seed(3)
    x = molecule.positions + 0.01 * torch.randn(n, *molecule.positions.shape, dtype=torch.float64, generator=rng)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=rng)).Q
    return molecule.zmatrix(), CartesianBlock(molecule.zmatrix()), x @ (turn * torch.linalg.det(turn)).T + 1.0


@pytest.mark.parametrize("name", ["alanine_dipeptide", "five_ring"])
def test_it_is_the_part_of_the_frame_that_the_seed_leaves_free(name):
    zmatrix, block, x = molecule_in_block(name)
    map_ = InternalCoordinateMap(zmatrix)
    q = torch.cat(map_(x)[0], 1)
    placed, _ = map_.inverse(map_(x)[0])
    positions, log_det = block.to_block(q[:, block.columns])
    i, j, k, *others = block.atoms
    assert placed[:, j].abs().max() == 0
    expected = torch.cat([placed[:, i, :1], placed[:, k, :2], placed[:, others].flatten(1)], 1)
    torch.testing.assert_close(positions, expected)
    internal, minus_log_det = block.to_internal(positions)
    turn = internal - q[:, block.columns]
    assert torch.remainder(turn + 1e-9, 2 * math.pi).max() < 1e-8
    torch.testing.assert_close(log_det, -minus_log_det)


def test_it_is_the_published_block_of_alanine_dipeptide():
    zmatrix = alanine_dipeptide().zmatrix()
    seed = ZMatrix.from_bonds(22, zmatrix.bonds, elements=zmatrix.elements, seed=(6, 8, 14))
    assert sorted(CartesianBlock(seed).atoms) == [6, 8, 9, 10, 14]


@pytest.mark.parametrize("name", ["alanine_dipeptide", "five_ring"])
def test_the_volume_element_with_rotations_and_translations_is_the_jacobian(name):
    """d^{3n}x = x_i² y_k |∂x/∂q| dq dω dt at every rotation ω (by vector, at 0) and translation t, by autograd."""
    zmatrix, block, x = molecule_in_block(name, n=2)
    map_ = InternalCoordinateMap(zmatrix)
    n = zmatrix.n_atoms
    sizes = [n - 1, n - 2, n - 3]
    q = torch.cat(map_(x)[0], 1)
    w, _ = block.to_block(q[:, block.columns])
    mixed = q.index_copy(1, block.columns, w)
    internal, log_block = block.to_internal(w)
    _, log_internal = map_.inverse(InternalCoordinates(*q.split(sizes, 1)))
    for row in range(len(x)):

        def positions(z):
            shift, turn, coordinates = z[:3], z[3:6], z[None, 6:]
            inside, _ = block.to_internal(coordinates[:, block.columns])
            whole = coordinates.index_copy(1, block.columns, inside)
            placed = map_.inverse(InternalCoordinates(*whole.split(sizes, 1)))[0][0]
            # to first order, which is all that the Jacobian at 0 sees
            return (placed + torch.linalg.cross(turn.expand_as(placed), placed) + shift).flatten()

        z = torch.cat([torch.zeros(6, dtype=torch.float64), mixed[row]])
        expected = torch.linalg.slogdet(torch.autograd.functional.jacobian(positions, z)).logabsdet
        found = log_internal[row] + log_block[row]
        assert found.item() == pytest.approx(expected.item(), abs=1e-8)
        if n == len(block.atoms):
            assert found.item() == pytest.approx((2 * w[row, 0].log() + w[row, 2].log()).item(), abs=1e-8)
    assert internal.shape == w.shape


def test_three_atoms_are_a_block():
    block = CartesianBlock(ZMatrix.from_bonds(3, [(0, 1), (1, 2)]))
    internal, _ = block.to_internal(torch.tensor([[0.1, 0.0, 0.1]]))
    torch.testing.assert_close(internal, torch.tensor([[0.1, 0.1, math.pi / 2]]))


def test_what_is_no_molecule_has_no_angle_or_bond():
    block = CartesianBlock(ZMatrix.from_bonds(3, [(0, 1), (1, 2)]))
    internal, _ = block.to_internal(torch.tensor([[-0.1, 0.0, 0.1], [0.1, 0.0, -0.1]]))
    assert internal[0, 0] < 0
    assert internal[1, 2] < 0
