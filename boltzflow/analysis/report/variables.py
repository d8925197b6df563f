"""Which collective variables a report shows when nobody chose any."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from boltzflow.analysis.observables import CollectiveVariable, collective_variable
from boltzflow.ensemble import Ensemble

__all__ = ["Selection", "Shown", "chosen_variables", "default_variables"]

MAX_RESIDUES = 6
MAX_PROFILES = 8
MAX_TORSIONS = 4
MOBILE = 0.02
"""Circular variance above which a torsion is worth a plot."""


@dataclass(frozen=True)
class Shown:
    """A collective variable by its title and how it is measured on any ensemble of the same samples.

    Args:
        name: As it is titled, e.g. "phi of ALA2".
        spec: What `--cv` takes for it; "" where it has no text.
        measure: Ensemble → CollectiveVariable.
    """

    name: str
    spec: str
    measure: Callable[[Ensemble], CollectiveVariable]

    def of(self, ensemble: Ensemble) -> CollectiveVariable:
        """Its values in an ensemble, under its title."""
        return replace(self.measure(ensemble), name=self.name)


@dataclass(frozen=True)
class Selection:
    """What is shown.

    Args:
        pairs: Title and two variables of every map.
        singles: Variables of the profiles.
        note: What was left out, in words; "" if nothing.
    """

    pairs: tuple[tuple[str, Shown, Shown], ...]
    singles: tuple[Shown, ...]
    note: str = ""


def chosen_variables(specs: Sequence[str]) -> Selection:
    """The variables that the user named: a profile of each, a map of each consecutive pair.

    Args:
        specs: As for `collective_variable`.
    """
    shown = [_named(spec) for spec in specs]
    pairs = [(f"{a.name} and {b.name}", a, b) for a, b in zip(shown[::2], shown[1::2], strict=False)]
    if len(shown) > 2 and len(shown) % 2:
        pairs.append((f"{shown[-2].name} and {shown[-1].name}", shown[-2], shown[-1]))
    return Selection(tuple(pairs), tuple(shown))


def default_variables(ensemble: Ensemble) -> Selection:
    """Backbone angles of a peptide; else the torsions that move most and the radius of gyration; else coordinates."""
    if ensemble.topology_json is not None and "positions" in ensemble.samples:
        topology = ensemble.topology
        return _backbone(topology) or _torsions(ensemble, topology)
    return _coordinates(ensemble)


def _named(spec: str, name: str | None = None) -> Shown:
    return Shown(name or spec, spec, lambda ensemble: collective_variable(ensemble, spec))


def _backbone(topology: Any) -> Selection | None:
    import mdtraj

    phis, psis = mdtraj.geometry.indices_phi(topology), mdtraj.geometry.indices_psi(topology)
    # both hold the alpha carbon: third of phi, second of psi
    of_phi = {topology.atom(int(q[2])).residue: k for k, q in enumerate(phis, start=1)}
    of_psi = {topology.atom(int(q[1])).residue: k for k, q in enumerate(psis, start=1)}
    residues = [residue for residue in topology.residues if residue in of_phi and residue in of_psi]
    if not residues:
        return None

    def angle(kind: str, k: int, count: int, residue: Any) -> Shown:
        return _named(kind if count == 1 else f"{kind}:{k}", kind if len(residues) == 1 else f"{kind} of {residue}")

    pairs = [
        (str(r), angle("phi", of_phi[r], len(phis), r), angle("psi", of_psi[r], len(psis), r))
        for r in residues[:MAX_RESIDUES]
    ]
    singles = [shown for _, *two in pairs for shown in two][:MAX_PROFILES]
    note = ""
    if len(residues) > len(pairs):
        note = f"The first {len(pairs)} of {len(residues)} residues with both angles are shown"
        note = f"{note}, with profiles of the first {len(singles) // 2}; name others with --cv phi:k --cv psi:k."
    elif 2 * len(pairs) > len(singles):
        note = f"Profiles are shown for the first {len(singles) // 2} residues; name others with --cv."
    return Selection(tuple(pairs), tuple(singles), note)


def _torsions(ensemble: Ensemble, topology: Any) -> Selection:
    import mdtraj

    quartets = _rotatable(topology)
    moving: list[tuple[float, tuple[int, ...]]] = []
    if quartets:
        angles = mdtraj.compute_dihedrals(ensemble.to_mdtraj(), np.array(quartets), periodic=False)
        variance = 1 - np.abs(ensemble.weights @ np.exp(1j * angles))
        order = np.argsort(-variance)
        moving = [(variance[k], quartets[k]) for k in order if variance[k] > MOBILE]
    shown = []
    for _, quartet in moving[:MAX_TORSIONS]:
        names = "-".join(topology.atom(i).name for i in quartet)
        shown.append(_named("torsion:" + ",".join(map(str, quartet)), f"torsion {names}"))
    size = _named("rg", "radius of gyration")
    pairs = [(f"{a.name} and {b.name}", a, b) for a, b in pairwise(shown)][:3] or [
        (f"{size.name} and energy", size, _named("reduced_energy", "reduced energy"))
    ]
    note = ""
    if len(quartets) > len(shown):
        note = f"The {len(shown)} torsions of {len(quartets)} that vary most are shown; name others with --cv."
    return Selection(tuple(pairs), (*shown, size), note)


def _rotatable(topology: Any) -> list[tuple[int, int, int, int]]:
    """One quartet of atoms for every bond that is in no ring and has heavy neighbours on both sides."""
    neighbours: dict[int, list[int]] = {atom.index: [] for atom in topology.atoms}
    for a, b in topology.bonds:
        neighbours[a.index].append(b.index)
        neighbours[b.index].append(a.index)
    heavy = {atom.index for atom in topology.atoms if atom.element is not None and atom.element.atomic_number > 1}
    quartets = []
    for b, c in sorted((min(a.index, b.index), max(a.index, b.index)) for a, b in topology.bonds):
        ends = [[i for i in neighbours[j] if i in heavy and i != k] for j, k in ((b, c), (c, b))]
        if {b, c} <= heavy and all(ends) and not _connected_without(neighbours, b, c):
            quartets.append((min(ends[0]), b, c, min(ends[1])))
    return quartets


def _connected_without(neighbours: dict[int, list[int]], a: int, b: int) -> bool:
    """Whether the bond a–b is part of a ring."""
    seen, stack = {a}, [i for i in neighbours[a] if i != b]
    while stack:
        atom = stack.pop()
        if atom == b:
            return True
        if atom not in seen:
            seen.add(atom)
            stack.extend(neighbours[atom])
    return False


def _coordinates(ensemble: Ensemble) -> Selection:
    """Of samples without a topology: their entries if they are few, the size of a cluster, or the widest entries."""
    name, values = next(iter(ensemble.samples.items()))
    size = values[0].size
    energy = _named("reduced_energy", "reduced energy")
    if values.ndim == 3 and values.shape[1] > 2:
        cluster = Shown("radius of gyration", "", lambda ensemble: _cluster_size(ensemble, name))
        return Selection(((f"{cluster.name} and energy", cluster, energy),), (cluster,), "All particles count alike.")
    entries = [_named(f"{name}:{k}" if size > 1 else name) for k in range(min(size, 3))]
    note = ""
    if size > 3:
        flat = values.reshape(len(ensemble), -1)[ensemble.weights > 0].astype(float)
        widest = sorted(np.argsort(-flat.var(axis=0))[:3].tolist())
        entries = [_named(f"{name}:{k}") for k in widest]
        note = f"The 3 of {size} entries of {name} that vary most are shown; name others with --cv."
    pairs = [(f"{a.name} and {b.name}", a, b) for a, b in pairwise(entries)]
    return Selection(tuple(pairs or [(f"{entries[0].name} and energy", entries[0], energy)]), tuple(entries), note)


def _cluster_size(ensemble: Ensemble, field: str) -> CollectiveVariable:
    x = ensemble.samples[field].astype(np.float64)
    centred = x - x.mean(axis=1, keepdims=True)
    return CollectiveVariable("radius of gyration", np.sqrt((centred**2).sum(axis=2).mean(axis=1)))
