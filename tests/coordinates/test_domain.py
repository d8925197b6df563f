"""Tests of the centres and widths that the force field gives to internal coordinates."""

import math

import numpy as np
import openmm
import pytest
import torch

from boltzflow.coordinates import InternalCoordinateMap, InternalDomain, LabelSector, ZMatrix
from tests.coordinates.molecules import MOLECULES, SYSTEMS, Molecule, joined

KT = 2.494


def bonded_terms(molecule: Molecule) -> dict[str, list[tuple]]:
    """A bonded model at equilibrium in the molecule's positions: all bonds, all angles, torsions of curvature > 0."""
    x = molecule.positions.numpy()
    around: dict[int, list[int]] = {}
    for i, j in molecule.bonds:
        around.setdefault(i, []).append(j)
        around.setdefault(j, []).append(i)
    bonds = [(i, j, float(np.linalg.norm(x[i] - x[j])), 2.5e5 + 1e3 * i) for i, j in molecule.bonds]
    angles, torsions = [], []
    for j, ends in around.items():
        for n, i in enumerate(ends):
            for k in ends[:n]:
                u, v = x[i] - x[j], x[k] - x[j]
                theta = math.acos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
                angles.append((i, j, k, theta, 400.0 + 5 * i + 3 * k))
    for j, k in molecule.bonds:
        for i in around[j]:
            for m in around[k]:
                if len({i, j, k, m}) == 4:
                    n1, n2 = np.cross(x[j] - x[i], x[k] - x[j]), np.cross(x[k] - x[j], x[m] - x[k])
                    phi = math.atan2(np.linalg.norm(x[k] - x[j]) * (x[j] - x[i]) @ n2, n1 @ n2)
                    torsions.append((i, j, k, m, 2, 2 * phi - math.pi, 8.0 + i))
    return {"bonds": bonds, "angles": angles, "torsions": torsions}


def bonded_energy(terms: dict[str, list[tuple]], x: torch.Tensor) -> torch.Tensor:
    """The energy of the terms for one frame, through arc cosines and signs (another route than the package's)."""
    energy = x.new_zeros(())
    for i, j, r0, k in terms["bonds"]:
        energy = energy + 0.5 * k * ((x[i] - x[j]).norm() - r0) ** 2
    for i, j, k, theta0, stiffness in terms["angles"]:
        u, v = x[i] - x[j], x[k] - x[j]
        energy = energy + 0.5 * stiffness * (torch.acos(u @ v / u.norm() / v.norm()) - theta0) ** 2
    for i, j, k, m, n, phase, stiffness in terms["torsions"]:
        n1 = torch.linalg.cross(x[j] - x[i], x[k] - x[j])
        n2 = torch.linalg.cross(x[k] - x[j], x[m] - x[k])
        phi = torch.atan2((x[k] - x[j]).norm() * ((x[j] - x[i]) @ n2), n1 @ n2)
        energy = energy + stiffness * (1 + torch.cos(n * phi - phase))
    return energy


def domain_of(molecule: Molecule, terms: dict[str, list[tuple]]) -> InternalDomain:
    sector = LabelSector(molecule.zmatrix(), molecule.positions)
    return InternalDomain.from_force_field(sector, molecule.positions, **terms, kT=KT)


def test_widths_of_uncoupled_coordinates_are_those_of_their_springs() -> None:
    molecule = MOLECULES["water"]()
    terms = {"bonds": [(0, 1, 0.096, 3e5), (2, 0, 0.096, 2e5)], "angles": [(2, 0, 1, 1.9, 400.0)]}
    domain = domain_of(molecule, terms)
    expected = {frozenset((0, 1)): math.sqrt(KT / 3e5), frozenset((0, 2)): math.sqrt(KT / 2e5)}
    bonds = [expected[frozenset(atoms)] for atoms in molecule.zmatrix().bond_atoms.tolist()]
    assert domain.bond_std.tolist() == pytest.approx(bonds, rel=1e-9)
    assert domain.angle_std.tolist() == pytest.approx([math.sqrt(KT / 400)], rel=1e-9)


def test_widths_are_those_of_the_exact_hessian_at_equilibrium() -> None:
    molecule = MOLECULES["five_ring"]()
    terms = bonded_terms(molecule)
    domain = domain_of(molecule, terms)
    q_map = InternalCoordinateMap(molecule.zmatrix())
    q, _ = q_map(molecule.positions[None])
    sizes = [part.shape[1] for part in q]

    def energy(flat: torch.Tensor) -> torch.Tensor:
        x, _ = q_map.to_cartesian(*(part[None] for part in flat.split(sizes)))
        return bonded_energy(terms, x[0])

    hessian = torch.autograd.functional.hessian(energy, torch.cat([part[0] for part in q]))
    hessian.diagonal()[sizes[0] + sizes[1] :] += KT / math.pi**2
    expected = (KT * hessian.inverse().diagonal()).sqrt()
    # Bonded terms that share all four atoms of a ring are at their minimum here, so Gauss-Newton is exact.
    found = torch.cat([domain.bond_std, domain.angle_std, domain.torsion_std])
    in_ring = torch.zeros(len(found), dtype=torch.bool)
    in_ring[sizes[0] + sizes[1] :] = torch.as_tensor(q_map.zmatrix.proper) & ~domain.soft
    assert torch.allclose(found[~in_ring], expected[~in_ring], rtol=1e-6)
    assert (found[in_ring] >= expected[in_ring] * (1 - 1e-6)).all()


def test_torsions_of_small_rings_are_stiff_and_reach_the_inverted_ring() -> None:
    molecule = MOLECULES["five_ring"]()
    domain = domain_of(molecule, bonded_terms(molecule))
    z = molecule.zmatrix()
    about = {tuple(sorted((b, c))): row for row, (_, b, c, _) in enumerate(z.torsion_atoms.tolist()) if z.proper[row]}
    ring = {pair for pair in about if max(pair) < 5}
    assert {pair for pair, row in about.items() if not domain.soft[row]} == ring
    assert len(ring) >= 2
    x, puckered = molecule.positions, []
    for b, c in ring:
        # the ring is 0-1-2-3-4; its torsion about b-c runs over the neighbours of both
        before, after = ((b - 1) % 5, (c + 1) % 5) if (c - b) % 5 == 1 else ((b + 1) % 5, (c - 1) % 5)
        q = InternalCoordinateMap(ZMatrix.from_bonds(4, [(0, 1), (1, 2), (2, 3)], seed=(0, 1, 2)))
        torsion = q(x[None, [before, b, c, after]])[0].torsions.abs().item()
        puckered.append(torsion)
        assert 4 * domain.torsion_std[about[tuple(sorted((b, c)))]] >= 2 * torsion - 1e-9
    assert max(puckered) > 0.1


def test_widths_match_molecular_dynamics_constants_on_alanine_dipeptide() -> None:
    """Widths of the stiff coordinates agree with those seen in Langevin dynamics of the shipped system at 300 K."""
    molecule = MOLECULES["alanine_dipeptide"]()
    system = openmm.XmlSerializer.deserialize((SYSTEMS / "alanine_dipeptide" / "system.xml").read_text())
    terms: dict[str, list[tuple]] = {"bonds": [], "angles": [], "torsions": []}
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            every = [force.getBondParameters(n) for n in range(force.getNumBonds())]
            terms["bonds"] = [(i, j, r._value, k._value) for i, j, r, k in every]
        elif isinstance(force, openmm.HarmonicAngleForce):
            every = [force.getAngleParameters(n) for n in range(force.getNumAngles())]
            terms["angles"] = [(i, j, k, theta._value, s._value) for i, j, k, theta, s in every]
        elif isinstance(force, openmm.PeriodicTorsionForce):
            every = [force.getTorsionParameters(n) for n in range(force.getNumTorsions())]
            terms["torsions"] = [(*t[:5], t[5]._value, t[6]._value) for t in every]
    domain = domain_of(molecule, terms)
    z = molecule.zmatrix()
    name = [tuple(molecule.names[a] for a in atoms) for atoms in z.torsion_atoms]
    # Observed widths (6000 frames over 300 ps), rad: chiral centre, carbonyl, amide hydrogen, methyl.
    for four, observed in {
        ("CB", "CA", "N", "C"): 0.078,
        ("HA", "CA", "N", "C"): 0.081,
        ("O", "C", "CA", "N"): 0.105,
        ("H", "N", "CA", "C"): 0.210,
        ("HB2", "CB", "CA", "HB1"): 0.100,
    }.items():
        assert domain.torsion_std[name.index(four)].item() == pytest.approx(observed, rel=0.15)
    assert domain.bond_std.min() > 0.002
    assert domain.bond_std.max() < 0.004
    assert torch.equal(domain.soft, torch.as_tensor(z.proper))
    assert domain.torsion_std[~domain.soft].max() < 0.3
    assert (domain.torsion_mean * domain.hand >= 0).all()


def test_coordinates_without_a_term_have_the_stated_widths() -> None:
    molecule = MOLECULES["water"]()
    domain = domain_of(molecule, {"bonds": [(0, 1, 0.1, 1e5)], "angles": []})
    assert sorted(domain.bond_std.tolist()) == pytest.approx([math.sqrt(KT / 1e5), 0.005], rel=1e-9)
    assert domain.angle_std.tolist() == pytest.approx([0.2], rel=1e-9)


def test_links_have_the_stated_widths_and_fragments_those_they_have_alone() -> None:
    parts = [MOLECULES["five_ring"](), MOLECULES["water"](), MOLECULES["butyne"]()]
    whole = joined(*parts, apart=1.0)
    domain = domain_of(whole, bonded_terms(whole))
    z = whole.zmatrix()
    assert domain.bond_std[z.linked_bonds].tolist() == pytest.approx([0.1] * 2, rel=1e-9)
    assert domain.angle_std[z.linked_angles].tolist() == pytest.approx([0.5] * 4, rel=1e-9)
    start = 0
    for part in parts:
        alone = domain_of(part, bonded_terms(part))
        single = part.zmatrix()
        lengths = {frozenset(pair): s for pair, s in zip(single.bond_atoms.tolist(), alone.bond_std, strict=True)}
        for pair, std in zip((z.bond_atoms - start).tolist(), domain.bond_std, strict=True):
            if frozenset(pair) in lengths:
                # the springs of a fragment's atom depend on its index, see bonded_terms
                assert std.item() == pytest.approx(lengths[frozenset(pair)].item(), rel=0.1)
        start += len(part.elements)


def test_widths_beside_a_linear_group_are_those_of_its_bends() -> None:
    """N of CH3-C#N has only the bend C-C-N; a quarter turn of its torsion axis sees the same width."""
    molecule = MOLECULES["butyne"]()
    domain = domain_of(molecule, bonded_terms(molecule))
    z = molecule.zmatrix()
    beside = [row for row, (_, b, c, _) in enumerate(z.torsion_atoms.tolist()) if tuple(sorted((b, c))) not in z.bonds]
    assert len(beside) == 2
    assert 0.03 < domain.torsion_std[beside].min() <= domain.torsion_std[beside].max() < 0.6
    angles = [row for row, (_, b, c) in enumerate(z.angle_atoms.tolist()) if tuple(sorted((b, c))) not in z.bonds]
    assert 0.01 < domain.angle_std[angles].min() <= domain.angle_std[angles].max() < 0.2
    assert (domain.bond_std < 0.004).all()
