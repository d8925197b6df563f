"""Tests of the hand of stereo-centres and of the labelling sector of identical hydrogens."""

import itertools
import math

import pytest
import torch

from boltzflow.coordinates import InternalCoordinateMap, LabelSector, ZMatrix
from tests.coordinates.molecules import MOLECULES, Molecule, tetrahedral


def sector_of(molecule: Molecule) -> LabelSector:
    return LabelSector(molecule.zmatrix(), molecule.positions)


def permuted(molecule: Molecule, order: dict[int, int]) -> torch.Tensor:
    index = torch.tensor([order.get(a, a) for a in range(len(molecule.elements))])
    return molecule.positions[None, index]


def test_alanine_dipeptide_keeps_ca_and_three_methyls() -> None:
    molecule = MOLECULES["alanine_dipeptide"]()
    sector = sector_of(molecule)
    assert [molecule.names[a] for a in sector.stereo_centres] == ["CA"]
    assert sorted(molecule.names[a] for a in sector.kept_centres) == ["C", "CA", "CB", "CH3"]
    assert sector.n_copies == 8
    assert int((sector.hand != 0).sum()) == 8
    assert sector.contains(molecule.positions[None]).all()
    assert "8 Z(sector), log 8 = 2.079442" in sector.describe(molecule.names)


def test_three_cyclic_permutations_of_a_methyl_stay_and_three_odd_ones_leave() -> None:
    molecule = MOLECULES["alanine_dipeptide"]()
    sector = sector_of(molecule)
    hydrogens = {b: [] for b in sector.doubled_centres}
    for a, b in [*molecule.bonds, *[bond[::-1] for bond in molecule.bonds]]:
        if b in hydrogens and molecule.elements[a] == 1:
            hydrogens[b].append(a)
    assert [len(atoms) for atoms in hydrogens.values()] == [3, 3, 3]
    for atoms in hydrogens.values():
        for order in itertools.permutations(range(3)):
            x = permuted(molecule, dict(zip(atoms, [atoms[k] for k in order], strict=True)))
            even = sum(order[p] > order[q] for p, q in itertools.combinations(range(3), 2)) % 2 == 0
            assert bool(sector.contains(x)) == even


def test_number_of_copies_is_the_size_of_the_group_over_that_of_its_stabiliser() -> None:
    """All 3!^3 permutations within the methyls: |G| / |those that keep the sector| = n_copies."""
    molecule = MOLECULES["alanine_dipeptide"]()
    sector = sector_of(molecule)
    groups = [[a for a in range(22) if molecule.elements[a] == 1 and tuple(sorted((a, b))) in sector.zmatrix.bonds]
              for b in sector.doubled_centres]  # fmt: skip
    frames = []
    for orders in itertools.product(itertools.permutations(range(3)), repeat=3):
        order = {g[k]: g[o[k]] for g, o in zip(groups, orders, strict=True) for k in range(3)}
        frames.append(permuted(molecule, order))
    kept = int(sector.contains(torch.cat(frames)).sum())
    assert len(frames) / kept == sector.n_copies == 8


def test_mirror_image_and_changed_hand_are_outside() -> None:
    molecule = MOLECULES["alanine_dipeptide"]()
    sector = sector_of(molecule)
    mirror = molecule.positions[None] * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert not sector.contains(mirror)
    # Relabelling repairs the methyls but never the stereo-centre.
    assert not sector.contains(sector.relabel(mirror)[0])
    not_finite = molecule.positions[None].clone()
    not_finite[0, sector.stereo_centres[0]] = math.nan
    assert not sector.contains(not_finite)


@pytest.mark.parametrize(("name", "noise"), [("alanine_dipeptide", 0.05), ("five_ring", 0.05), ("protein", 0.02)])
def test_sector_is_the_half_circles_of_the_kept_torsions(name: str, noise: float) -> None:
    molecule = MOLECULES[name]()
    sector = sector_of(molecule)
    rng = torch.Generator().manual_seed(3)
    shape = (400, *molecule.positions.shape)
    x = molecule.positions + noise * torch.randn(shape, generator=rng, dtype=torch.float64)
    torsions = InternalCoordinateMap(sector.zmatrix)(x)[0].torsions
    inside = sector.contains(x)
    by_torsions = ((torsions * sector.hand > 0) | (sector.hand == 0)).all(1)
    assert 0 < int(by_torsions.sum()) < 400
    assert not (inside & ~by_torsions).any()
    # Without rings the two are the same set; ring closure adds checks of volumes.
    if name == "alanine_dipeptide":
        assert torch.equal(inside, by_torsions)


@pytest.mark.parametrize("name", ["alanine_dipeptide", "five_ring", "protein"])
def test_relabelling_undoes_every_exchange_of_hydrogens_and_counts_frames(name: str) -> None:
    molecule = MOLECULES[name]()
    sector = sector_of(molecule)
    x = molecule.positions.expand(3, -1, -1).clone()
    pairs = 0
    for b in sector.doubled_centres:
        atoms = [a for a in range(len(molecule.elements))
                 if molecule.elements[a] == 1 and tuple(sorted((a, b))) in sector.zmatrix.bonds]  # fmt: skip
        if len(atoms) >= 2:
            one, two = atoms[:2]
            x[1, one], x[1, two] = x[0, two], x[0, one]
            pairs += 1
    assert pairs >= 3
    assert sector.contains(x).tolist() == [True, False, True]
    relabelled, n_changed = sector.relabel(x)
    assert n_changed == 1
    assert sector.contains(relabelled).all()
    assert torch.equal(relabelled[[0, 2]], x[[0, 2]])
    assert sector.relabel(relabelled)[1] == 0
    # The same set of points, so that the energy is unchanged.
    assert torch.equal(relabelled[1].sort(dim=0).values, x[1].sort(dim=0).values)


def test_stereo_centre_made_of_heavy_atoms_only_and_prochiral_centre() -> None:
    chiral = tetrahedral([9, 17, 35, 1])
    sector = sector_of(chiral)
    assert sector.stereo_centres == (0,)
    assert (sector.n_copies, sector.kept_centres) == (1, (0,))
    exchanged = chiral.positions[None, [0, 2, 1, 3, 4]]
    assert not sector.contains(exchanged)
    assert sector.relabel(exchanged)[1] == 0

    prochiral = tetrahedral([9, 17, 1, 1])
    sector = sector_of(prochiral)
    assert (sector.stereo_centres, sector.n_copies) == ((), 2)
    exchanged = prochiral.positions[None, [0, 1, 2, 4, 3]]
    assert not sector.contains(exchanged)
    assert torch.equal(sector.relabel(exchanged)[0][0], prochiral.positions)


def test_methane_has_twelve_even_permutations_inside() -> None:
    methane = tetrahedral([1, 1, 1, 1])
    sector = sector_of(methane)
    frames = torch.stack([methane.positions[[0, *order]] for order in itertools.permutations(range(1, 5))])
    assert int(sector.contains(frames).sum()) == 12
    assert sector.n_copies == 2
    assert sector.contains(sector.relabel(frames)[0]).all()


def test_protein_has_an_l_amino_acid_in_every_residue_and_both_labels_of_planar_groups() -> None:
    molecule = MOLECULES["protein"]()
    sector = sector_of(molecule)
    ca = {a for a, name in enumerate(molecule.names) if name == "CA"}
    stereo = set(sector.stereo_centres)
    glycines = {a for a in ca if sum(molecule.elements[b] == 1 for b in range(len(molecule.names))
                                     if tuple(sorted((a, b))) in sector.zmatrix.bonds) == 2}  # fmt: skip
    assert ca - glycines <= stereo
    by_name = [molecule.names[a] for a in sector.kept_centres]
    assert "N" in by_name
    assert by_name.count("N") == 1  # only the NH3+ end; amides are planar
    for atom in sector.kept_centres:
        assert sum(atom in bond for bond in sector.zmatrix.bonds) == 4


def test_pyramidal_nh2_keeps_its_hand_and_planar_nh2_does_not() -> None:
    for height, copies in ((0.04, 2), (0.001, 1)):
        nitrogen = torch.tensor([0.0, 0.0, height])
        angle = torch.arange(3) * 2 * torch.pi / 3
        around = torch.stack([0.1 * angle.cos(), 0.1 * angle.sin(), torch.zeros(3)], dim=1)
        x = torch.cat([nitrogen[None], around, torch.tensor([[0.2, 0.1, 0.0]])]).double()
        z = ZMatrix.from_bonds(5, [(0, 1), (0, 2), (0, 3), (1, 4)], elements=[7, 8, 1, 1, 17])
        sector = LabelSector(z, x)
        assert sector.n_copies == copies
        assert bool(sector.contains(x[None, [0, 1, 3, 2, 4]])) == (copies == 1)


def test_bad_arguments_raise() -> None:
    molecule = tetrahedral([1, 1, 1, 1])
    with pytest.raises(ValueError, match="elements="):
        LabelSector(ZMatrix.from_bonds(5, molecule.bonds), molecule.positions)
    with pytest.raises(ValueError, match=r"\(5, 3\), got \(4, 3\)"):
        LabelSector(molecule.zmatrix(), molecule.positions[:4])
    flat = molecule.positions.clone()
    flat[4] = -flat[1]
    flat[3] = -flat[2]
    with pytest.raises(ValueError, match=r"carbon 0 .* not tetrahedral"):
        LabelSector(molecule.zmatrix(), flat)
