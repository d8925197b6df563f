"""Round trips and build times on proteins of hundreds and thousands of atoms, alone and with ions and waters."""

import time

import numpy as np
import pytest
import torch

from boltzflow.coordinates import InternalCoordinateMap, InternalCoordinates, LabelSector, ZMatrix, fragment_links
from boltzflow.transitions.torsion_move import rotatable_axes
from tests.coordinates.molecules import Molecule, protein


def distances(x: torch.Tensor) -> torch.Tensor:
    return (x[:, :, None] - x[:, None]).norm(dim=-1)


def polyalanine(n_residues: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Elements and bonds of N H CA HA CB HB1 HB2 HB3 C O, repeated."""
    residue = [(0, 1), (0, 2), (2, 3), (2, 4), (4, 5), (4, 6), (4, 7), (2, 8), (8, 9)]
    bonds = [(i + 10 * r, j + 10 * r) for r in range(n_residues) for i, j in residue]
    return n_residues * [7, 1, 6, 1, 6, 1, 1, 1, 6, 8], bonds + [(10 * r - 2, 10 * r) for r in range(1, n_residues)]


def random_coil(zmatrix: ZMatrix) -> InternalCoordinates:
    n, rng = zmatrix.n_atoms, torch.Generator().manual_seed(1)
    bonds = 0.13 + 0.01 * torch.randn(2, n - 1, generator=rng, dtype=torch.float64)
    angles = 1.95 + 0.05 * torch.randn(2, n - 2, generator=rng, dtype=torch.float64)
    torsions = torch.pi * (2 * torch.rand(2, n - 3, generator=rng, dtype=torch.float64) - 1)
    return InternalCoordinates(bonds, angles, torsions)


@pytest.mark.parametrize("n_residues", [72, 300])
def test_chain_of_hundreds_of_residues_is_built_fast_and_inverted(n_residues: int) -> None:
    elements, bonds = polyalanine(n_residues)
    start = time.process_time()
    z = ZMatrix.from_bonds(len(elements), bonds, elements=elements)
    assert time.process_time() - start < 2
    assert sorted(z.order.tolist()) == list(range(len(elements)))
    q_map = InternalCoordinateMap(z)
    x, log_det = q_map.inverse(random_coil(z))
    y, _ = q_map.inverse(q_map(x)[0])
    assert (distances(x) - distances(y)).abs().max() < 1e-9
    assert (q_map(x)[1] + log_det).abs().max() < 1e-8
    assert (
        len(rotatable_axes(bonds, n_atoms=len(elements))) == 4 * n_residues - 1
    )  # phi, psi and omega but the last, and CA-CB


def test_sector_of_hundreds_of_residues_is_found_fast() -> None:
    elements, bonds = polyalanine(300)
    z = ZMatrix.from_bonds(len(elements), bonds, elements=elements)
    q = random_coil(z)
    # the siblings of each atom go to either side of the first one
    torsions = q.torsions.clone()
    siblings: dict[int, int] = {}
    for row in np.flatnonzero(~z.proper):
        centre = int(z.torsion_atoms[row, 1])
        siblings[centre] = siblings.get(centre, 0) + 1
        torsions[:, row] = 2.09 * (-1) ** siblings[centre]
    x = InternalCoordinateMap(z).inverse(InternalCoordinates(q.bonds, q.angles, torsions))[0]
    start = time.process_time()
    sector = LabelSector(z, x[0])
    assert time.process_time() - start < 2
    # CH3 and the NH2 of the first residue are doubled; CA is a stereo-centre
    assert sector.stereo_centres == tuple(range(2, 3000, 10))
    assert set(sector.doubled_centres) >= set(range(4, 3000, 10))
    assert sector.contains(x).all()


@pytest.fixture(scope="module")
def solvated() -> Molecule:
    """A 35-residue protein with two ions and 48 waters: 728 atoms in 51 molecules."""
    return protein(85)


def test_protein_with_ions_and_waters_is_inverted(solvated: Molecule) -> None:
    z = solvated.zmatrix()
    assert (z.n_atoms, len(z.links)) == (728, 50)
    assert len(np.unique(z.fragments)) == 51
    q_map = InternalCoordinateMap(z)
    x = solvated.positions[None]
    q, log_det = q_map(x)
    y, back = q_map.inverse(q)
    assert (distances(x) - distances(y)).abs().max() < 1e-9
    assert (log_det + back).abs().max() < 1e-8
    # the mirror image has the same distances, so compare a frame as well
    i, j, k = z.seed
    arms = [r[0, [i, k]] - r[0, j] for r in (x, y)]
    frames = [torch.stack([*arm, torch.linalg.cross(*arm)]) for arm in arms]
    local = [torch.linalg.solve(frame.T, (r[0] - r[0, j]).T) for frame, r in zip(frames, (x, y), strict=True)]
    assert torch.allclose(*local, rtol=0, atol=1e-8)


def test_waters_and_ions_change_nothing_in_the_sector_of_the_protein(solvated: Molecule) -> None:
    alone = protein(35)
    sectors = [LabelSector(part.zmatrix(), part.positions) for part in (alone, solvated)]
    assert sectors[0].stereo_centres == sectors[1].stereo_centres
    assert sectors[0].kept_centres == sectors[1].kept_centres
    assert sectors[0].n_copies == sectors[1].n_copies
    rng = torch.Generator().manual_seed(2)
    x = solvated.positions + 0.012 * torch.randn(60, 728, 3, generator=rng, dtype=torch.float64)
    inside = sectors[1].contains(x)
    assert torch.equal(inside, sectors[0].contains(x[:, : len(alone.elements)]))
    assert 0 < int(inside.sum()) < 60


def test_links_of_a_thousand_molecules_are_found_fast() -> None:
    grid = torch.cartesian_prod(*[torch.arange(10, dtype=torch.float64)] * 3) * 0.31
    water = torch.tensor([[0.0, 0.0, 0.0], [0.096, 0.0, 0.0], [-0.024, 0.093, 0.0]], dtype=torch.float64)
    x = (grid[:, None] + water).reshape(-1, 3)
    bonds = [(3 * n, 3 * n + k) for n in range(1000) for k in (1, 2)]
    start = time.process_time()
    links = fragment_links(3000, bonds, elements=1000 * [8, 1, 1], positions=x)
    z = ZMatrix.from_bonds(3000, bonds, elements=1000 * [8, 1, 1], links=links, reference=x)
    assert time.process_time() - start < 4
    assert len(links) == 999
    assert all(p % 3 == 0 and q % 3 == 0 for p, q in links)
    assert sorted(z.order.tolist()) == list(range(3000))
