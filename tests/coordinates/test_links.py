"""Tests of links between molecules and of the placement of fragments and of linear groups."""

import numpy as np
import pytest
import torch

from boltzflow.coordinates import InternalCoordinateMap, LabelSector, ZMatrix, fragment_links
from tests.coordinates.molecules import MOLECULES, Molecule, joined, water


def distances(x: torch.Tensor) -> torch.Tensor:
    return (x[:, :, None] - x[:, None]).norm(dim=-1)


def noisy(molecule: Molecule, n: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(7)
    return molecule.positions + 0.01 * torch.randn(n, *molecule.positions.shape, generator=rng, dtype=torch.float64)


def ions(*places: tuple[float, float, float]) -> Molecule:
    return Molecule([11] * len(places), ["NA"] * len(places), [], torch.tensor(places, dtype=torch.float64))


def links_of(molecule: Molecule) -> tuple[tuple[int, int], ...]:
    return fragment_links(
        len(molecule.elements), molecule.bonds, elements=molecule.elements, positions=molecule.positions
    )


def test_links_join_the_nearest_anchors_into_a_tree_from_the_largest_fragment() -> None:
    molecule = joined(ions((0.0, 0.0, 0.6)), water(), ions((0.0, 0.0, 0.3)), MOLECULES["alanine_dipeptide"](), apart=0)
    shifted = molecule.positions.clone()
    shifted[5:] += torch.tensor([0.0, 0.0, -0.8], dtype=torch.float64) - shifted[5:].mean(0)
    molecule = Molecule(molecule.elements, molecule.names, molecule.bonds, shifted)
    links = links_of(molecule)
    assert links == links_of(molecule)
    assert len(links) == 3
    # From the peptide to the water's oxygen, then from ion to ion.
    assert links[0][0] >= 5
    assert molecule.elements[links[0][0]] != 1
    assert [q for _, q in links] == [1, 4, 0]
    assert links[2] == (4, 0)
    assert links_of(MOLECULES["alanine_dipeptide"]()) == ()


def test_every_further_coordinate_of_a_fragment_is_its_own() -> None:
    molecule = joined(MOLECULES["alanine_dipeptide"](), MOLECULES["five_ring"](), water(), ions((0, 0, 0)), apart=1.5)
    z = molecule.zmatrix()
    assert z.links == tuple(sorted(tuple(sorted(pair)) for pair in links_of(molecule)))
    fragment = np.repeat([0, 1, 2, 3], [22, 17, 3, 1])
    mixed = {
        kind: sum(len(set(fragment[list(atoms)])) > 1 for atoms in rows.tolist())
        for kind, rows in {"bonds": z.bond_atoms, "angles": z.angle_atoms, "torsions": z.torsion_atoms}.items()
    }
    # Three fragments: 3 lengths; 2 angles and 3 torsions each, but 1 and 1 for the ion.
    assert mixed == {"bonds": 3, "angles": 2 + 2 + 1, "torsions": 3 + 3 + 1}
    crossing = [len(set(fragment[list(atoms)])) > 1 for atoms in z.torsion_atoms.tolist()]
    assert z.proper[crossing].all()
    sector = LabelSector(z, molecule.positions)
    alone = [MOLECULES[name]() for name in ("alanine_dipeptide", "five_ring")]
    single = [LabelSector(part.zmatrix(), part.positions) for part in alone]
    assert sector.n_copies == single[0].n_copies * single[1].n_copies
    assert sector.kept_centres == (*single[0].kept_centres, *(22 + b for b in single[1].kept_centres))


def test_linear_groups_are_placed_beside_the_line() -> None:
    molecule = MOLECULES["butyne"]()
    plain = ZMatrix.from_bonds(len(molecule.elements), molecule.bonds, elements=molecule.elements)
    z = molecule.zmatrix()
    angles = {z_: InternalCoordinateMap(z_)(molecule.positions[None])[0].angles for z_ in (plain, z)}
    assert angles[plain].sin().min() < 1e-6
    assert angles[z].sin().min() > 0.15
    assert int(z.proper.sum()) == 1  # one methyl against the other
    # Moving an atom across the line changes its coordinates by as little.
    q_map = InternalCoordinateMap(z)
    nudged = molecule.positions[None].repeat(2, 1, 1)
    nudged[:, 5, 2] += torch.tensor([1e-4, -1e-4], dtype=torch.float64)
    for part in q_map(nudged)[0]:
        assert (torch.remainder(part[0] - part[1] + 1, 2 * torch.pi) - 1).abs().max() < 0.02


@pytest.mark.parametrize("count", [3, 4])
def test_ions_alone_are_placed(count: int) -> None:
    molecule = ions(*[(0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.3, 0.4, 0.0), (0.3, 0.4, 0.5)][:count])
    q_map = InternalCoordinateMap(molecule.zmatrix())
    x = noisy(molecule, 4)
    assert (distances(x) - distances(q_map.inverse(q_map(x)[0])[0])).abs().max() < 1e-12


def test_missing_bonds_are_told_from_further_molecules() -> None:
    molecule = MOLECULES["alanine_dipeptide"]()
    without = [bond for bond in molecule.bonds if 7 not in bond]
    with pytest.raises(
        ValueError, match=rf"1 pairs .*{molecule.names[6]} and {molecule.names[7]} \(0\.10. nm\).*CONECT"
    ):
        fragment_links(22, without, elements=molecule.elements, positions=molecule.positions, names=molecule.names)


def test_impossible_links_and_lines_raise() -> None:
    chain = [(0, 1), (1, 2), (3, 4), (4, 5)]
    with pytest.raises(ValueError, match="need 1 links"):
        ZMatrix.from_bonds(6, chain, links=[(0, 3), (2, 5)])
    with pytest.raises(ValueError, match="2 components"):
        ZMatrix.from_bonds(6, chain, links=[(0, 2)])
    with pytest.raises(ValueError, match=r"0\.\.5"):
        ZMatrix.from_bonds(6, chain, links=[(0, 6)])
    carbon_dioxide = torch.tensor([[0.0, 0, 0], [0.116, 0, 0], [-0.116, 0, 0]])
    with pytest.raises(ValueError, match=r"on one line .* C, O1, O2\. A linear molecule"):
        ZMatrix.from_bonds(3, [(0, 1), (0, 2)], reference=carbon_dioxide, names=["C", "O1", "O2"])
    with pytest.raises(ValueError, match="on one line"):
        ZMatrix.from_bonds(3, [(0, 1), (0, 2)], reference=carbon_dioxide, seed=(1, 0, 2))
    with pytest.raises(ValueError, match=r"\(3, 3\), got \(2, 3\)"):
        ZMatrix.from_bonds(3, [(0, 1), (0, 2)], reference=carbon_dioxide[:2])
    with pytest.raises(ValueError, match="3 and \\(2, 3\\)"):
        fragment_links(3, [], elements=[8, 1, 1], positions=carbon_dioxide[:2])
