"""Why a residue matches no template of a force field: the closest template, and what differs."""

import difflib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, NoReturn

from boltzflow.errors import FormatError
from boltzflow.preparation.checks import listed
from boltzflow.preparation.solvent import solvent_kind

__all__ = ["CAPS", "explain_residues", "own_names"]

_SITE = "virtual site"

# Templates that a residue of some name may match: the protonation states, besides ends such as NALA and CALA.
_VARIANTS = {
    "ASP": ("ASH",),
    "CYS": ("CYX", "CYM"),
    "GLU": ("GLH",),
    "HID": ("HSD",),
    "HIE": ("HSE",),
    "HIP": ("HSP",),
    "HIS": ("HID", "HIE", "HIP", "HSD", "HSE", "HSP"),
    "LYS": ("LYN",),
    "HOH": ("WAT", "TIP3", "SOL"),
    **{name: ("ADE",) for name in ("A", "DA")},
    **{name: ("CYT",) for name in ("C", "DC")},
    **{name: ("GUA",) for name in ("G", "DG")},
    "DT": ("THY",),
    "U": ("URA",),
}


CAPS = {"ACE": 1, "NH2": -1, "NME": -1}
"""Residues that only end a chain, each with the place of its neighbour: CHARMM has patches of the neighbour instead."""


@dataclass(frozen=True)
class _Difference:
    """What a residue lacks, or has too much, of a template."""

    template: str
    similar: bool
    n_common_names: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    missing_hydrogens: tuple[str, ...]
    extra_hydrogens: tuple[str, ...]
    ends: tuple[str, ...]
    bonds: tuple[str, ...]

    @property
    def _n_atoms(self) -> tuple[int, int]:
        heavy = len(self.missing) + len(self.extra)
        return heavy, len(self.missing_hydrogens) + len(self.extra_hydrogens)

    @property
    def cost(self) -> tuple[int, int, int]:
        """Small for close templates of one name: bonds to other residues tell the ends of a chain from its middle."""
        heavy, hydrogens = self._n_atoms
        return heavy + 2 * len(self.ends), hydrogens, len(self.bonds)

    @property
    def cost_of_any(self) -> tuple[int, int, int, int]:
        """Small for close templates of other names: atoms count first, because bonds may be missing altogether."""
        exchanged = max(len(self.missing), len(self.extra))  # one element for another is one difference
        return exchanged, -self.n_common_names, self._n_atoms[1], len(self.ends) + len(self.bonds)


def explain_residues(topology: Any, forcefield: Any, message: str) -> NoReturn:
    """Raise an error that names the residues without a template, what they lack, and the remedy.

    Args:
        topology: An `openmm.app.Topology`.
        forcefield: The `openmm.app.ForceField` that does not take it.
        message: What OpenMM says.

    Raises:
        FormatError: Always.
    """
    if not forcefield._templates:
        raise FormatError(
            "force field: its files define no residues; name the XML of a force field, not of a System."
        ) from None
    if "Multiple non-identical" in message:
        raise FormatError(
            f"force field: it has rival templates: {' '.join(message.split())} Choose another --forcefield, or a copy "
            "of the XML without the templates that are not meant."
        ) from None
    named = re.search(r"(?:residue |within topology )(\d+)", message)
    if named is None or "emplate" not in message:
        raise FormatError(f"force field: OpenMM cannot make the System: {' '.join(message.split())}") from None
    unmatched = {residue.index for residue in forcefield.getUnmatchedResidues(topology)}
    if forcefield._patches:  # there caps are patches
        unmatched -= {r.index for r in topology.residues() if r.name in CAPS and not own_names(r, forcefield)}
    unmatched.add(int(named[1]))
    found = []
    for residue in topology.residues():
        if residue.index in unmatched:
            difference = _closest(residue, forcefield)
            if any(difference.cost) or residue.index == int(named[1]):
                found.append((residue, difference))
    # of force fields that patch the ends of chains, residues can match although no template is the same
    sites = [f"{_name(r)} of template {d.template}" for r, d in found if _SITE in d.missing]
    if sites:
        raise FormatError(
            f"virtual sites: {listed(sites)} needs them, and they are not supported; use a force field without them "
            "(for water a three-site model)."
        ) from None
    lacking = [
        f"{_name(r)} lacks {listed(list(d.missing))} of template {d.template}"
        for r, d in found
        if d.missing and not d.extra and d.template in own_names(r, forcefield)
    ]
    foreign = [
        (r, d)
        for r, d in found
        if d.extra or ((d.missing or solvent_kind(r)) and d.template not in own_names(r, forcefield))
    ]
    described = [f"{_name(r)}: {_describe(d)}" for r, d in foreign]
    if lacking:
        remedy = "rebuild them, for example with pdbfixer (PDBFixer.findMissingAtoms, addMissingAtoms)"
        if all(set(d.missing) <= {"OXT"} for _, d in found if d.missing):
            remedy += ", or let --add-hydrogens add OXT"
        raise FormatError(
            f"missing heavy atoms in {len(lacking)} residues: {listed(lacking, most=4)}; {remedy}."
            + (f" Without template besides: {listed(described, most=3)}." if described else "")
        ) from None
    if foreign:
        solvent = any(solvent_kind(r) for r, _ in foreign)
        raise FormatError(
            f"no template in the force field for {len(foreign)} residues: {listed(described, most=3)}. "
            + (
                "Take waters and ions out with --remove-solvent, or add the --forcefield XML of their model (with "
                "Amber amber14/tip3p.xml)."
                if solvent
                else "Add a --forcefield XML that defines them (for a ligand, from openmmforcefields or OpenFF), "
                "replace a modified amino acid by its parent (pdbfixer), or take them out of the file."
            )
        ) from None
    hydrogens = [f"{_name(r)} lacks {listed(list(d.missing_hydrogens))}" for r, d in found if d.missing_hydrogens]
    if hydrogens:
        raise FormatError(
            f"missing hydrogens in {len(hydrogens)} residues: {listed(hydrogens, most=3)}; add them with "
            "--add-hydrogens (and --ph). It knows standard residues; those of a ligand have to be in the file."
        ) from None
    described = [f"{_name(r)}: {_describe(d)}" for r, d in found]
    raise FormatError(
        f"no template in the force field for {len(found)} residues: {listed(described, most=3)}. Correct the bonds "
        "(CONECT records for residues that are not standard, TER records between chains) or the atoms. OpenMM says: "
        f"{' '.join(message.split('  For more')[0].split())}"
    ) from None


def _name(residue: Any) -> str:
    chain = f"{residue.chain.id}:" if residue.chain.id.strip() else ""
    return f"{chain}{residue.name}{residue.id}"


def _describe(difference: _Difference) -> str:
    if not difference.similar:
        return f"no template is similar (the closest is {difference.template})"
    parts = []
    for word, atoms in (
        ("lacks", difference.missing + difference.missing_hydrogens),
        ("has in excess", difference.extra + difference.extra_hydrogens),
    ):
        if atoms:
            parts.append(f"{word} {listed(list(atoms))}")
    parts += [listed(list(found)) for found in (difference.bonds, difference.ends) if found]
    return f"closest template {difference.template}, " + (" and ".join(parts) or "from which the bonds differ")


def _closest(residue: Any, forcefield: Any) -> _Difference:
    templates = forcefield._templates
    names = own_names(residue, forcefield)
    if not names:
        costs = {name: _compare(residue, template).cost_of_any for name, template in templates.items()}
        least = min(costs.values())
        ties = sorted(name for name, cost in costs.items() if cost == least)
        names = difflib.get_close_matches(residue.name, ties, n=1, cutoff=0.0) or ties[:1]
    return min((_compare(residue, templates[name]) for name in names), key=lambda d: d.cost)


def own_names(residue: Any, forcefield: Any) -> list[str]:
    """Templates with the name of a residue: protonation states, and both ends of a chain.

    Args:
        residue: Of an `openmm.app.Topology`.
        forcefield: The `openmm.app.ForceField`.

    Returns:
        Names of templates, its own first; none if there is none.
    """
    same = [residue.name, *_VARIANTS.get(residue.name, ())]
    # Amber marks the ends of proteins in front of the name, and those of nucleic acids behind it
    names = [name for base in same for name in (base, f"N{base}", f"C{base}", f"{base}5", f"{base}3", f"{base}N")]
    return [name for name in names if name in forcefield._templates]


def _compare(residue: Any, template: Any) -> _Difference:
    has, wants = ([(a.name, a.element.symbol) if a.element is not None else (_SITE, _SITE) for a in atoms]
                  for atoms in (residue.atoms(), template.atoms))  # fmt: skip
    count, wanted = Counter(symbol for _, symbol in has), Counter(symbol for _, symbol in wants)
    missing = {h: tuple(_names(wants, has, wanted - count, hydrogen=h)) for h in (False, True)}
    extra = {h: tuple(_names(has, wants, count - wanted, hydrogen=h)) for h in (False, True)}
    ends = _end_difference(residue, template)
    bonds: tuple[str, ...] = ()
    if count == wanted:
        bonds = _bond_difference(residue, template)
    n_heavy = sum(n for symbol, n in count.items() if symbol != "H")
    similar = 2 * (len(missing[False]) + len(extra[False])) < n_heavy
    n_common = len({name for name, _ in has} & {name for name, _ in wants})
    return _Difference(
        template.name, similar, n_common, missing[False], extra[False], missing[True], extra[True], ends, bonds
    )


def _end_difference(residue: Any, template: Any) -> tuple[str, ...]:
    inside = {atom.index for atom in residue.atoms()}
    has = Counter(a.name if a.index in inside else b.name for a, b in residue.external_bonds())
    wants = Counter(template.atoms[k].name for k in template.externalBonds)
    lacks = [f"lacks a bond from {name} to another residue" for name in (wants - has).elements()]
    return tuple(lacks + [f"has a bond from {name} to another residue in excess" for name in (has - wants).elements()])


def _names(ours: list, theirs: list, surplus: Counter, *, hydrogen: bool) -> list[str]:
    """Names of the atoms of `ours` that are too many, those first that do not occur in `theirs`."""
    known = {name for name, _ in theirs}
    names = []
    for symbol, n in surplus.items():
        if (symbol == "H") == hydrogen:
            candidates = sorted((name for name, s in ours if s == symbol), key=lambda name: name in known)
            names += candidates[:n]
    return names


def _bond_difference(residue: Any, template: Any) -> tuple[str, ...]:
    bonds = {frozenset((a.name, b.name)) for a, b in residue.internal_bonds()}
    if not bonds and template.bonds:
        return ("has no bonds",)
    if {a.name for a in residue.atoms()} != {a.name for a in template.atoms}:
        n = len(bonds) - len(template.bonds)
        return (f"has {abs(n)} bonds too {'many' if n > 0 else 'few'}",) if n else ()
    wanted = {frozenset((template.atoms[a].name, template.atoms[b].name)) for a, b in template.bonds}
    lacks = [f"lacks the bond {'-'.join(sorted(pair))}" for pair in wanted - bonds]
    return tuple(sorted(lacks) + sorted(f"has the bond {'-'.join(sorted(pair))} in excess" for pair in bonds - wanted))
