"""An extended peptide structure from the equilibrium bonds and angles of its force field."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from boltzflow.coordinates.graph import connected_components, distances_from, neighbour_lists
from boltzflow.coordinates.internal import InternalCoordinateMap
from boltzflow.coordinates.zmatrix import ZMatrix

if TYPE_CHECKING:
    from openmm import System
    from openmm.app import Topology

__all__ = ["extended_positions", "wrong_hands"]

# Torsions in degrees. The backbone is that of a beta strand; the ring of proline needs another phi and a pucker.
_PHI, _PHI_PROLINE, _PSI = -120.0, -65.0, 135.0
_CHI_1, _CHI_1_OF = -62.0, {"PRO": 30.0, "VAL": 180.0}
_CHI_2_OF = {"HIS": 90.0, "PHE": 90.0, "PRO": 84.0, "TRP": 90.0, "TYR": 90.0}
_TRANS = 180.0

# Stereo-centres of L-amino acids: v1 . (v2 x v3) > 0 over the vectors to these neighbours. For valine and leucine the
# two methyl groups are equal, and it is their naming.
_HANDS = {
    ("ILE", "CB"): ("CA", "CG1", "CG2"),
    ("LEU", "CG"): ("CB", "CD2", "CD1"),
    ("THR", "CB"): ("CA", "OG1", "CG2"),
    ("VAL", "CB"): ("CA", "CG2", "CG1"),
}
_HAND_OF_CA = ("N", "C", "CB")
_TETRAHEDRAL = math.acos(-1 / 3)
_CHAIN_GAP = 1.0


def extended_positions(topology: "Topology", system: "System") -> np.ndarray:
    """Place the atoms of peptide chains, extended, and relax them to the nearest minimum.

    Bonds and angles are the equilibrium values of the force field, torsions those of a strand with trans peptide bonds
    and common rotamers. The angles between the branches of an atom fix their torsions up to the hand, which is that
    of the L-amino acids. Rings close in the minimisation, which first has the bonded terms alone.

    Args:
        topology: With hydrogens. Further chains lie beside the first, 1 nm apart.
        system: Its System without constraints.

    Returns:
        (n_atoms, 3) float64 in nm.

    Raises:
        ValueError: If the System has no harmonic bond for a bond of the topology.
    """
    atoms = list(topology.atoms())
    bonds = [(a.index, b.index) for a, b in topology.bonds()]
    lengths, angles = _equilibrium(system)
    positions = np.zeros((len(atoms), 3))
    right_end = 0.0
    for component in connected_components(neighbour_lists(len(atoms), bonds)):
        chain = _Chain([atoms[k] for k in component], bonds, lengths, angles)
        placed = chain.place()
        placed[:, 1] += right_end - placed[:, 1].min()
        right_end = placed[:, 1].max() + _CHAIN_GAP
        positions[component] = placed
    return _relaxed(system, positions)


def wrong_hands(topology: "Topology", positions: np.ndarray) -> list[str]:
    """List the stereo-centres that are not those of L-amino acids.

    Args:
        topology: With the names of the Protein Data Bank.
        positions: (n_atoms, 3), any unit.

    Returns:
        Names such as "ALA2-CA"; glycine has none.
    """
    return [str(_label(centre)) for centre, around in _stereo_centres(topology.atoms()) if not _is_right(
        positions[centre.index], positions[[a.index for a in around]])]  # fmt: skip


def _label(atom: Any) -> str:
    return f"{atom.residue.name}{atom.residue.id}-{atom.name}"


def _is_right(centre: np.ndarray, around: np.ndarray) -> bool:
    v1, v2, v3 = around - centre
    return bool(v1 @ np.cross(v2, v3) > 0)


def _stereo_centres(atoms: Any) -> list[tuple[Any, list[Any]]]:
    """Return (centre, its three neighbours in the order of their hand)."""
    of_residue: dict[Any, dict[str, Any]] = {}
    for atom in atoms:
        of_residue.setdefault(atom.residue, {})[atom.name] = atom
    found = []
    for residue, named in of_residue.items():
        for name, centre in named.items():
            around = _HAND_OF_CA if name == "CA" else _HANDS.get((residue.name, name), ())
            if around and set(around) <= set(named):
                found.append((centre, [named[other] for other in around]))
    return found


def _equilibrium(system: "System") -> tuple[dict[tuple, float], dict[tuple, float]]:
    """Return r0 (nm) and theta0 (rad) by atom indices, each in both orders."""
    import openmm
    from openmm import unit

    lengths, angles = {}, {}
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for k in range(force.getNumBonds()):
                i, j, r0, _ = force.getBondParameters(k)
                lengths[i, j] = lengths[j, i] = r0.value_in_unit(unit.nanometer)
        elif isinstance(force, openmm.HarmonicAngleForce):
            for m in range(force.getNumAngles()):
                i, j, k, theta0, _ = force.getAngleParameters(m)
                angles[i, j, k] = angles[k, j, i] = theta0.value_in_unit(unit.radian)
    return lengths, angles


class _Chain:
    """One connected peptide: its Z-matrix from the first residue on, and the value of every coordinate."""

    def __init__(self, atoms: list[Any], bonds: list[tuple[int, int]], lengths: dict, angles: dict) -> None:
        self.atoms = atoms
        self.lengths = lengths
        self.angles = angles
        place = {atom.index: k for k, atom in enumerate(atoms)}
        self.bonds = [(place[i], place[j]) for i, j in bonds if i in place]
        self.neighbours = neighbour_lists(len(atoms), self.bonds)
        backbone = [k for k, atom in enumerate(atoms) if self._is_backbone(atom)]
        self.zmatrix = ZMatrix.from_bonds(
            len(atoms),
            self.bonds,
            elements=[atom.element.atomic_number for atom in atoms],
            seed=tuple(backbone[:3]),
            backbone=backbone,
        )

    @staticmethod
    def _is_backbone(atom: Any) -> bool:
        return atom.name in ("N", "CA", "C") or (atom.residue.name == "ACE" and atom.name == "CH3")

    def place(self) -> np.ndarray:
        """Return positions, (n_atoms, 3) nm, with every stereo-centre in its hand."""
        bonds = torch.tensor([[self._length(*pair) for pair in self.zmatrix.bond_atoms.tolist()]], dtype=torch.float64)
        angles = torch.tensor(
            [[self._angle(*three) for three in self.zmatrix.angle_atoms.tolist()]], dtype=torch.float64
        )
        torsions = torch.tensor([self._torsions()], dtype=torch.float64)
        to_cartesian = InternalCoordinateMap(self.zmatrix).to_cartesian
        positions = to_cartesian(bonds, angles, torsions)[0][0].numpy()
        local = {atom: k for k, atom in enumerate(self.atoms)}
        sibling = torch.as_tensor(~self.zmatrix.proper)
        parents = torch.as_tensor(self.zmatrix.torsion_atoms[:, 1])
        for centre, around in _stereo_centres(self.atoms):
            if not _is_right(positions[local[centre]], positions[[local[a] for a in around]]):
                # the mirror image of the branches of one atom
                torsions[0, sibling & (parents == local[centre])] *= -1
        return to_cartesian(bonds, angles, torsions)[0][0].numpy().copy()

    def _length(self, a: int, b: int) -> float:
        pair = self.atoms[a].index, self.atoms[b].index
        if pair not in self.lengths:
            raise ValueError(
                f"the force field has no harmonic bond between {_label(self.atoms[a])} and {_label(self.atoms[b])}, "
                "from which a structure could be built; start from a PDB file"
            )
        return self.lengths[pair]

    def _angle(self, a: int, b: int, c: int) -> float:
        return self.angles.get((self.atoms[a].index, self.atoms[b].index, self.atoms[c].index), _TETRAHEDRAL)

    def _torsions(self) -> list[float]:
        torsions = []
        n_siblings: dict[int, int] = {}
        for (a, b, c, d), proper in zip(self.zmatrix.torsion_atoms.tolist(), self.zmatrix.proper, strict=True):
            if proper:
                torsions.append(math.radians(self._proper(a, b, c, d)))
            else:
                # the branches go alternately to either side of the first one
                k = n_siblings.get(b, 0)
                n_siblings[b] = k + 1
                torsions.append((-1) ** k * self._between_branches(a, b, c, d))
        return torsions

    def _between_branches(self, a: int, b: int, c: int, first: int) -> float:
        """Torsion a-b-c-first about the axis (b, c) that makes the angle a-b-first right (spherical law of cosines)."""
        one, other, between = self._angle(a, b, c), self._angle(first, b, c), self._angle(a, b, first)
        cosine = (math.cos(between) - math.cos(one) * math.cos(other)) / (math.sin(one) * math.sin(other))
        return math.acos(min(1.0, max(-1.0, cosine)))

    def _proper(self, a: int, b: int, c: int, d: int) -> float:
        """Torsion a-b-c-d in degrees."""
        names = tuple(self.atoms[k].name for k in (a, b, c, d))
        residue = self.atoms[c].residue.name
        phi = _PHI_PROLINE if residue == "PRO" else _PHI
        match names:
            case ("C", "CA", "N", "C"):
                return phi
            case ("CD", "N", "CA", "C"):
                return phi + 180.0
            case ("CG", "CD", "N", "C"):
                return 171.0  # the ring of proline, placed from the nitrogen on
            case (_, "CG", "CD", "N"):
                return 147.0
            case ("N", "C", "CA", "N"):
                return _PSI
            case (_, "C", "CA", "N"):
                return _PSI + 180.0
            case (branch, "CB", "CA", "N"):
                chi = _CHI_1_OF.get(residue, _CHI_1)
                return chi if branch[0] != "H" else chi + 120.0
            case (_, _, "CB", "CA"):
                return _CHI_2_OF.get(residue, _TRANS)
        return 0.0 if self._in_one_ring(a, b, c, d) else _TRANS

    def _in_one_ring(self, a: int, b: int, c: int, d: int) -> bool:
        """Whether a-b-c-d lie in a ring of up to seven atoms."""
        without = [[] if k in (b, c) else [m for m in around if m not in (b, c)] for k, around in enumerate(
            self.neighbours)]  # fmt: skip
        return 0 < distances_from(a, without)[d] <= 4


def _relaxed(system: "System", positions: np.ndarray) -> np.ndarray:
    """Minimise the bonded terms, then with repulsion and dispersion.

    Charges are left out: without solvent the charged ends and side chains would fold onto each other.
    """
    import openmm
    from openmm import unit

    system = openmm.XmlSerializer.clone(system)
    bonded = (openmm.HarmonicBondForce, openmm.HarmonicAngleForce, openmm.PeriodicTorsionForce)
    solvent = (openmm.GBSAOBCForce, openmm.CustomGBForce)
    for k in reversed(range(system.getNumForces())):
        force = system.getForce(k)
        if isinstance(force, solvent):
            system.removeForce(k)
            continue
        if isinstance(force, openmm.NonbondedForce):
            _discharge(force)
        force.setForceGroup(0 if isinstance(force, bonded) else 1)
    integrator = openmm.VerletIntegrator(0.001)
    # one thread: the same structure each time
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, integrator, platform, {"Threads": "1"})
    context.setPositions(positions)
    for groups in ({0}, {0, 1}):
        integrator.setIntegrationForceGroups(groups)
        openmm.LocalEnergyMinimizer.minimize(context, 1.0)
    return context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer).astype(np.float64)


def _discharge(force: Any) -> None:
    """Set all charges of an openmm.NonbondedForce to zero."""
    for k in range(force.getNumParticles()):
        _, sigma, epsilon = force.getParticleParameters(k)
        force.setParticleParameters(k, 0.0, sigma, epsilon)
    for k in range(force.getNumExceptions()):
        i, j, _, sigma, epsilon = force.getExceptionParameters(k)
        force.setExceptionParameters(k, i, j, 0.0, sigma, epsilon)
