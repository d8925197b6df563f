"""Tests of the Z-matrix and of the maps between positions and internal coordinates."""

import math
import pickle

import mdtraj
import numpy as np
import pytest
import torch

from boltzflow.coordinates import InternalCoordinateMap, InternalCoordinates, ZMatrix
from tests.coordinates.molecules import MOLECULES, Molecule


@pytest.fixture(params=MOLECULES, ids=list(MOLECULES))
def molecule(request: pytest.FixtureRequest) -> Molecule:
    return MOLECULES[request.param]()


def noisy(molecule: Molecule, n: int, *, noise: float = 0.01, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rng = torch.Generator().manual_seed(7)
    shape = (n, *molecule.positions.shape)
    return (molecule.positions + noise * torch.randn(shape, generator=rng, dtype=torch.float64)).to(dtype)


def distances(x: torch.Tensor) -> torch.Tensor:
    return (x[:, :, None] - x[:, None]).norm(dim=-1)


def test_every_atom_is_placed_once_after_its_references(molecule: Molecule) -> None:
    z = molecule.zmatrix()
    assert sorted(z.order.tolist()) == list(range(z.n_atoms))
    assert sum(z.level_sizes) == z.n_atoms - 3
    level = dict.fromkeys(z.seed, 0)
    start = 0
    for number, count in enumerate(z.level_sizes, start=1):
        level.update(dict.fromkeys(z.torsion_atoms[start : start + count, 0].tolist(), number))
        start += count
    for a, b, c, _ in z.torsion_atoms.tolist():
        assert level[a] > level[b] or (level[b] == 0 and level[a] == 1)
        assert level[c] < level[a] or level[c] == 0
        assert tuple(sorted((a, b))) in (*z.bonds, *z.links)
        assert c in z.order[: list(z.order).index(a)]


def test_one_proper_torsion_per_axis_and_heavy_first(molecule: Molecule) -> None:
    z = molecule.zmatrix()
    axes: dict[tuple[int, int], list[int]] = {}
    for row, (_, b, c, _) in enumerate(z.torsion_atoms.tolist()):
        axes.setdefault((b, c), []).append(row)
    i, j, _ = z.seed
    bonded = {pair for a, b in z.bonds for pair in ((a, b), (b, a))}
    for (b, c), rows in axes.items():
        if (b, c) not in bonded:  # beside a linear group, or along a link
            continue
        if all({tuple(z.torsion_atoms[row, :2].tolist())} - bonded for row in rows):  # only links hang on the axis
            continue
        proper = [row for row in rows if z.proper[row]]
        assert len(proper) == (0 if (b, c) == (j, i) else 1)
        if proper and z.elements[z.torsion_atoms[proper[0], 0]] == 1:
            assert all(z.elements[z.torsion_atoms[row, 0]] == 1 for row in rows)


def test_round_trip_preserves_all_distances(molecule: Molecule) -> None:
    q_map = InternalCoordinateMap(molecule.zmatrix())
    x = noisy(molecule, 16)
    q, log_det = q_map(x)
    y, log_det_back = q_map.inverse(q)
    assert (distances(x) - distances(y)).abs().max() < 1e-9
    assert (log_det + log_det_back).abs().max() < 1e-8
    again, _ = q_map(y)
    for one, two in zip(q, again, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-9)


def test_handedness_is_preserved(molecule: Molecule) -> None:
    q_map = InternalCoordinateMap(molecule.zmatrix())
    x = noisy(molecule, 4)
    y, _ = q_map.inverse(q_map(x)[0])
    for four in q_map.zmatrix.torsion_atoms[:10]:
        volumes = [torch.linalg.det(r[:, four[1:]] - r[:, four[:1]]) for r in (x, y)]
        assert torch.allclose(*volumes, atol=1e-12)


def test_canonical_frame(molecule: Molecule) -> None:
    q_map = InternalCoordinateMap(molecule.zmatrix())
    y, _ = q_map.inverse(q_map(noisy(molecule, 4))[0])
    i, j, k = q_map.zmatrix.seed
    assert y[:, j].abs().max() == 0
    assert y[:, i, 1:].abs().max() == 0
    assert (y[:, i, 0] > 0).all()
    assert y[:, k, 2].abs().max() == 0
    assert (y[:, k, 1] > 0).all()


def test_torsions_and_angles_agree_with_mdtraj(molecule: Molecule) -> None:
    z = molecule.zmatrix()
    x = noisy(molecule, 5, dtype=torch.float32)
    q, _ = InternalCoordinateMap(z)(x.double())
    n = z.n_atoms
    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for _ in range(n):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    frames = mdtraj.Trajectory(x.numpy(), topology)
    torsions = mdtraj.compute_dihedrals(frames, z.torsion_atoms)
    assert np.all(np.abs(np.angle(np.exp(1j * (torsions - q.torsions.numpy())))) < 1e-3)
    assert np.abs(mdtraj.compute_angles(frames, z.angle_atoms) - q.angles.numpy()).max() < 1e-3
    assert np.abs(mdtraj.compute_distances(frames, z.bond_atoms) - q.bonds.numpy()).max() < 1e-5


@pytest.mark.parametrize("name", ["alanine_dipeptide", "five_ring", "water", "butyne", "salty_water"])
def test_log_det_is_that_of_the_whole_map_with_rigid_motions(name: str) -> None:
    molecule = MOLECULES[name]()
    q_map = InternalCoordinateMap(molecule.zmatrix())
    n = q_map.zmatrix.n_atoms
    q, log_det = q_map(noisy(molecule, 1, noise=0.02))
    flat = torch.cat([torch.zeros(6, dtype=torch.float64), *[part[0] for part in q]])

    def whole(parameters: torch.Tensor) -> torch.Tensor:
        shift, spin = parameters[:3], parameters[3:6]
        b, theta, phi = parameters[6:].split([n - 1, n - 2, n - 3])
        x, _ = q_map.to_cartesian(b[None], theta[None], phi[None])
        zero = torch.zeros((), dtype=torch.float64)
        generator = torch.stack([zero, -spin[2], spin[1], spin[2], zero, -spin[0], -spin[1], spin[0], zero])
        return (x[0] @ torch.linalg.matrix_exp(generator.view(3, 3)).T + shift).flatten()

    _, expected = torch.linalg.slogdet(torch.autograd.functional.jacobian(whole, flat))
    # At the identity the rotation vector has the density of the measure on SO(3) whose volume is 8 pi^2.
    assert abs(expected - q_map.inverse(q)[1][0]) < 1e-8
    assert abs(expected + log_det[0]) < 1e-8


def test_partition_function_of_three_springs_has_the_stated_constant() -> None:
    """Quadrature over (b1, b2, theta) times 8 pi^2 equals the Gaussian integral over the two bond vectors."""
    k = 30.0
    b = torch.linspace(1e-6, 3.0, 400, dtype=torch.float64)
    theta = torch.linspace(1e-6, math.pi - 1e-6, 400, dtype=torch.float64)
    q_map = InternalCoordinateMap(ZMatrix.from_bonds(3, [(0, 1), (1, 2)]))

    def marginal(bonds: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        _, log_det = q_map.to_cartesian(bonds, angles, torch.zeros(len(bonds), 0, dtype=torch.float64))
        return log_det

    one = torch.ones_like(b)
    # The density factorises, so three one-dimensional quadratures suffice.
    radial = torch.trapezoid((marginal(torch.stack([b, one], 1), one[:, None]) - 0.5 * k * b**2).exp(), b)
    angular = torch.trapezoid(marginal(torch.ones(400, 2, dtype=torch.float64), theta[:, None]).exp(), theta)
    total = 8 * math.pi**2 * (radial / math.sin(1.0)) ** 2 * angular
    assert total == pytest.approx((2 * math.pi / k) ** 3, rel=1e-4)


@pytest.mark.parametrize("name", ["alanine_dipeptide", "five_ring", "water", "butyne", "salty_water"])
def test_gradients_match_finite_differences(name: str) -> None:
    molecule = MOLECULES[name]()
    q_map = InternalCoordinateMap(molecule.zmatrix())
    x = noisy(molecule, 1, noise=0.02).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: (*q_map(y)[0], q_map(y)[1]), (x,), fast_mode=True)
    q = tuple(part.detach().requires_grad_() for part in q_map(x)[0])
    assert torch.autograd.gradcheck(q_map.to_cartesian, q, fast_mode=True)


def test_gradients_are_finite_at_planar_and_trans_geometries() -> None:
    x = torch.tensor([[[0.0, 1, 0], [0, 0, 0], [1, 0, 0], [1, -1, 0]]], dtype=torch.float64, requires_grad=True)
    q, log_det = InternalCoordinateMap(ZMatrix.from_bonds(4, [(0, 1), (1, 2), (2, 3)]))(x)
    gradient = torch.autograd.grad(q.torsions.sum() + q.angles.sum() + log_det.sum(), x)[0]
    assert q.torsions[0, 0].item() == pytest.approx(math.pi)
    assert gradient.isfinite().all()


def test_sibling_torsions_move_with_the_first(molecule: Molecule) -> None:
    z = molecule.zmatrix()
    rows = np.flatnonzero(z.first_sibling >= 0)
    q_map = InternalCoordinateMap(z)
    q, _ = q_map(noisy(molecule, 1))
    if rows.size == 0:
        assert max(np.bincount(np.array(z.bonds).ravel())) < 3
        return
    first = z.first_sibling[rows[0]]
    turned = q.torsions.clone()
    turned[:, first] += 1.0
    x, _ = q_map.to_cartesian(q.bonds, q.angles, turned)
    torsions = q_map(x)[0].torsions
    assert (torch.remainder(torsions - turned + 1, 2 * math.pi) - 1).abs().max() < 1e-9


def test_float32_agrees_with_float64(molecule: Molecule) -> None:
    q_map = InternalCoordinateMap(molecule.zmatrix())
    x = noisy(molecule, 8)
    q, log_det = q_map(x.float())
    y, log_det_back = q_map.inverse(q)
    assert y.dtype == q.bonds.dtype == torch.float32
    assert log_det.dtype == log_det_back.dtype == torch.float64
    assert (distances(x) - distances(y)).abs().max() < 1e-4
    assert (log_det - q_map(x)[1]).abs().max() < 1e-5 * molecule.positions.shape[0]


def test_values_outside_the_domain_give_nan_not_a_number_that_looks_right() -> None:
    q_map = InternalCoordinateMap(MOLECULES["water"]().zmatrix())
    torsions = torch.zeros(1, 0)
    for bonds, angles in ([[-0.1, 0.1]], [[1.8]]), ([[0.1, 0.1]], [[-1.8]]):
        assert q_map.inverse(InternalCoordinates(torch.tensor(bonds), torch.tensor(angles), torsions))[1].isnan()


def test_backbone_hint_makes_the_proper_torsions_phi_psi_and_omega() -> None:
    molecule = MOLECULES["protein"]()
    backbone = [a for a, name in enumerate(molecule.names) if name in ("N", "CA", "C")]
    z = ZMatrix.from_bonds(len(molecule.names), molecule.bonds, elements=molecule.elements, backbone=backbone)
    quadruples = [[molecule.names[a] for a in four] for four in z.torsion_atoms[z.proper]]
    for chain in (["C", "N", "CA", "C"], ["N", "CA", "C", "N"], ["CA", "C", "N", "CA"]):
        assert sum(four in (chain, chain[::-1]) for four in quadruples) == 11


def test_pickled_map_gives_the_same_numbers() -> None:
    molecule = MOLECULES["alanine_dipeptide"]()
    q_map = InternalCoordinateMap(molecule.zmatrix())
    x = noisy(molecule, 2)
    again = pickle.loads(pickle.dumps(q_map))
    assert torch.equal(again(x)[0].torsions, q_map(x)[0].torsions)
    assert not q_map.state_dict()


def test_alanine_dipeptide_takes_three_levels() -> None:
    z = MOLECULES["alanine_dipeptide"]().zmatrix()
    assert z.level_sizes == (6, 7, 6)
    assert int(z.proper.sum()) == 7
    assert "3 levels" in z.describe()
    assert "seed N-CA-C" in z.describe(MOLECULES["alanine_dipeptide"]().names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, [(0, 1), (1, 2), (3, 4)]), r"3 components.*\{3, 4\}; \{5\}"),
        ((2, [(0, 1)]), "at least 3 atoms, got 2"),
        ((3, [(0, 1), (1, 3)]), r"bond \(1, 3\).*0\.\.2"),
    ],
)
def test_impossible_molecules_raise(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZMatrix.from_bonds(*arguments)


def test_wrong_shapes_raise() -> None:
    q_map = InternalCoordinateMap(ZMatrix.from_bonds(4, [(0, 1), (1, 2), (2, 3)]))
    with pytest.raises(ValueError, match="columns"):
        q_map.to_cartesian(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 1))
    with pytest.raises(ValueError, match="pass all atoms of the Z-matrix"):
        q_map(torch.zeros(1, 5, 3))
    with pytest.raises(ValueError, match="seed"):
        ZMatrix.from_bonds(4, [(0, 1), (1, 2), (2, 3)], seed=(0, 1, 3))
