"""Templates of a force field under the names of the residues: quick, and without rivals of other names."""

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from boltzflow.preparation.templates import CAPS, own_names

__all__ = ["create_system"]


def create_system(topology: Any, forcefield: Any) -> Any:
    """Make a System without cutoff and constraints.

    Residues are matched to the templates of their own names first, with the fewest patches. That decides between
    templates that are alike but for their parameters (CHARMM has alanine dipeptide as a residue, and again with general
    types; and patches from one histidine to the other), and saves most of the many combinations of patches. Where it
    fails, all templates are tried, as OpenMM does.

    Args:
        topology: An `openmm.app.Topology` with all hydrogens.
        forcefield: The `openmm.app.ForceField`.

    Returns:
        The `openmm.System`.
    """
    from openmm import app

    options = {
        "nonbondedMethod": app.NoCutoff,
        "constraints": None,
        "rigidWater": False,
        "removeCMMotion": False,
    }
    joined, kept = _with_joined_caps(topology, forcefield)
    try:
        return _with_own_names(topology, forcefield).createSystem(joined, **options)
    except Exception as error:  # OpenMM raises ValueError, KeyError and bare Exception here
        if forcefield._patches and all(own_names(r, forcefield) or r.name in CAPS for r in topology.residues()):
            number = re.compile(r"(residue |topology )(\d+)")
            raise ValueError(number.sub(lambda found: f"{found[1]}{kept[int(found[2])]}", str(error))) from None
    return forcefield.createSystem(topology, **options)


def _with_own_names(topology: Any, forcefield: Any) -> Any:
    """A force field with the templates of the residues' names, and for other residues those of the same elements."""
    from openmm.app.forcefield import _createResidueSignature

    names: set[str] = set()
    for residue in topology.residues():
        own = own_names(residue, forcefield)
        if not own:
            signature = _createResidueSignature([atom.element for atom in residue.atoms()])
            own = [template.name for template in forcefield._templateSignatures.get(signature, [])]
        names.update(own)
    few = copy.copy(forcefield)
    few._templates = {name: template for name, template in forcefield._templates.items() if name in names}
    few._templatePatches = {name: patches for name, patches in forcefield._templatePatches.items() if name in names}
    few._templateSignatures = {
        signature: [template for template in templates if template.name in names]
        for signature, templates in forcefield._templateSignatures.items()
    }
    few._getResidueTemplateMatches = partial(_fewest_patches, few._getResidueTemplateMatches)
    return few


def _fewest_patches(
    match: Callable, residue: Any, bonded: Any, signatures: Any = None, *args: Any, **others: Any
) -> Any:
    """What OpenMM's matching of one residue gives; of rival patched templates the one with the fewest patches."""
    try:
        return match(residue, bonded, signatures, *args, **others)
    except Exception as rivals:  # a bare one
        patches = {t.name: t.name.count("-") for templates in (signatures or {}).values() for t in templates}
        for n in sorted(set(patches.values()))[:-1]:
            few = {key: [t for t in templates if patches[t.name] <= n] for key, templates in signatures.items()}
            found = match(residue, bonded, few, *args, **others)
            if found[1] is not None:
                return found
        raise rivals


def _with_joined_caps(topology: Any, forcefield: Any) -> tuple[Any, list[int]]:
    """The same atoms with caps as part of their neighbours, where the force field has patches for them.

    Returns:
        The topology, and for each of its residues the index of the one whose name it has.
    """
    from openmm.app import Topology

    residues = list(topology.residues())
    if not forcefield._patches:
        return topology, list(range(len(residues)))
    bonded = {frozenset((a.residue.index, b.residue.index)) for a, b in topology.bonds()}
    host = list(range(len(residues)))
    for k, residue in enumerate(residues):
        neighbour = k + CAPS.get(residue.name, 0)
        if residue.name not in forcefield._templates and frozenset((k, neighbour)) in bonded:
            host[k] = neighbour
    copied, atoms = Topology(), []
    kept: list[int] = []
    for k, residue in enumerate(residues):
        if k == 0 or residue.chain is not residues[k - 1].chain:
            chain = copied.addChain(residue.chain.id)
        if not kept or kept[-1] != host[k]:
            kept.append(host[k])
            target = copied.addResidue(residues[host[k]].name, chain, residue.id, residue.insertionCode)
        atoms += [copied.addAtom(atom.name, atom.element, target) for atom in residue.atoms()]
    for a, b in topology.bonds():
        copied.addBond(atoms[a.index], atoms[b.index])
    return copied, kept
