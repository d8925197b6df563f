"""A peptide from its sequence: topology with hydrogens, and an extended structure in good geometry."""

import logging
import re
from typing import TYPE_CHECKING

import numpy as np

from boltzflow.errors import FormatError, UnknownNameError, nearest
from boltzflow.preparation.build import build_system
from boltzflow.preparation.geometry import extended_positions

if TYPE_CHECKING:
    from openmm.app import ForceField, Topology

__all__ = ["from_sequence", "read_sequence"]

logger = logging.getLogger(__name__)

# Side-chain atoms beyond N CA C O, in the order of the Protein Data Bank.
_SIDE_CHAINS = {
    "ALA": "CB",
    "ARG": "CB CG CD NE CZ NH1 NH2",
    "ASN": "CB CG OD1 ND2",
    "ASP": "CB CG OD1 OD2",
    "CYS": "CB SG",
    "GLN": "CB CG CD OE1 NE2",
    "GLU": "CB CG CD OE1 OE2",
    "GLY": "",
    "HIS": "CB CG ND1 CD2 CE1 NE2",
    "ILE": "CB CG1 CG2 CD1",
    "LEU": "CB CG CD1 CD2",
    "LYS": "CB CG CD CE NZ",
    "MET": "CB CG SD CE",
    "PHE": "CB CG CD1 CD2 CE1 CE2 CZ",
    "PRO": "CB CG CD",
    "SER": "CB OG",
    "THR": "CB OG1 CG2",
    "TRP": "CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
    "TYR": "CB CG CD1 CD2 CE1 CE2 CZ OH",
    "VAL": "CB CG1 CG2",
}
_CAPS = {"ACE": "CH3 C O", "NME": "N C", "NH2": "N"}
_VARIANTS = {
    "ASH": "ASP",
    "CYX": "CYS",
    "GLH": "GLU",
    "HID": "HIS",
    "HIE": "HIS",
    "HIP": "HIS",
    "LYN": "LYS",
}
# Other names of the same: those of CHARMM, and Amber's of the amide cap.
_SYNONYMS = {"HSD": "HID", "HSE": "HIE", "HSP": "HIP", "NHE": "NH2", "NMA": "NME"}
_ONE_LETTER = {
    "R": "ARG",
    "N": "ASN",
    "D": "ASP",
    "Q": "GLN",
    "E": "GLU",
    "K": "LYS",
    "F": "PHE",
    "W": "TRP",
    "Y": "TYR",
}
_ONE_LETTER |= {name[0]: name for name in _SIDE_CHAINS if name not in _ONE_LETTER.values()}
_PK_HISTIDINE = 6.5


def read_sequence(text: str) -> list[list[str]]:
    """Read a sequence as residue names.

    Names are separated by blanks, hyphens or commas; ``|`` or ``:`` begins another chain. A word that is no residue
    name is read as one-letter codes, so that "GGFL", "ACE GGFL NME" and "ACE-GLY-GLY-NME" all work; "ALA" is one
    alanine, "A L A" three residues. Capital and small letters are alike.

    Args:
        text: The sequence.

    Returns:
        Residue names of each chain, with variants such as HIE as they were written.

    Raises:
        UnknownNameError: If a word is neither a residue that can be built nor one-letter codes.
        ValueError: If there is no residue, or a cap is not at its end of a chain.

    Example:
        >>> read_sequence("ACE GGFL NME")
        [['ACE', 'GLY', 'GLY', 'PHE', 'LEU', 'NME']]
    """
    chains = []
    for part in re.split(r"[|:]", text.upper()):
        words = re.findall(r"[^\s,\-]+", part)
        names = [name for word in words for name in _read_word(word, alone=len(words) == 1)]
        _check_chain(names, text)
        chains.append(names)
    return chains


def _read_word(word: str, *, alone: bool) -> list[str]:
    """Return the residue that a word names, or those of its one-letter codes."""
    known = {*_SIDE_CHAINS, *_CAPS, *_VARIANTS, *_SYNONYMS}
    if word in known:
        return [_SYNONYMS.get(word, word)]
    letters = set(word) <= set(_ONE_LETTER)
    # three letters among other words may be meant as the name of another residue, such as SEP
    if letters and (alone or len(word) != 3):
        return [_ONE_LETTER[letter] for letter in word]
    codes = f"; as one-letter codes write {' '.join(word)!r}" if letters else ""
    raise UnknownNameError(
        f"sequence: no residue {word!r}; {nearest(word, known).rstrip('?')}{codes}. A sequence is built from the 20 "
        f"amino acids (three-letter names or one-letter codes), {', '.join(sorted(_VARIANTS))} and the caps ACE, NME "
        "and NH2; start from a PDB file for anything else."
    )


def _check_chain(names: list[str], text: str) -> None:
    if all(name in _CAPS for name in names) and names not in (["ACE", "NME"], ["ACE", "NH2"]):
        raise ValueError(
            f"sequence {text!r}: expected at least one amino acid in every chain, found {' '.join(names) or 'none'}; "
            "write for example 'ACE ALA NME' or 'GGFL'"
        )
    for k, name in enumerate(names):
        if name in _CAPS and k != (0 if name == "ACE" else len(names) - 1):
            raise ValueError(
                f"sequence {text!r}: the cap {name} must be the {'first' if name == 'ACE' else 'last'} residue of its "
                f"chain, found it as number {k + 1} of {len(names)}; move or remove it, or begin a new chain with '|'"
            )


def from_sequence(text: str, *, forcefield: "ForceField", ph: float = 7.0) -> tuple["Topology", np.ndarray]:
    """Build a peptide from its sequence.

    Bond lengths and angles are the equilibrium values of the force field; the backbone is extended with trans peptide
    bonds, side chains are in common rotamers, and all amino acids are L. The structure is then relaxed to the nearest
    energy minimum. Ends without a cap (ACE, NME, NH2) are charged.

    Args:
        text: See `read_sequence`; for example "ACE ALA ALA NME" or "GGFL".
        forcefield: The `openmm.app.ForceField`; its templates decide which variants exist.
        ph: Decides the protonation of residues that are not named by a variant (HIS is HIE above 6.5, else HIP).

    Returns:
        The topology and the positions, (n_atoms, 3) float64 in nm.

    Raises:
        UnknownNameError: If a residue cannot be built.
        ValueError: If the sequence is impossible.
        FormatError: If the force field has no template for one of the residues.

    Example:
        >>> from openmm.app import ForceField
        >>> topology, positions = from_sequence("ACE ALA NME", forcefield=ForceField("amber14-all.xml"))
        >>> positions.shape
        (22, 3)
    """
    chains = read_sequence(text)
    logger.info(
        "sequence %s; %s",
        " | ".join(" ".join(names) for names in chains),
        "; ".join(_ends(names) for names in chains),
    )
    topology = _with_hydrogens(chains, ph)
    try:
        system = build_system(topology, forcefield)
    except FormatError as error:
        raise FormatError(f"sequence {text!r}: {error}{_hint(chains)}") from error
    return topology, extended_positions(topology, system)


def _hint(chains: list[list[str]]) -> str:
    """What may help when the force field does not take a sequence."""
    if any("CYX" in names for names in chains):
        return " CYX is one half of a disulphide bridge, which cannot be built from a sequence: start from a PDB file."
    if any(len(names) == 1 for names in chains):
        return " Amber force fields have no single amino acid with two charged ends: cap it, as in 'ACE ALA NME'."
    return ""


def _ends(names: list[str]) -> str:
    first = "ACE cap" if names[0] == "ACE" else "NH3+ end" if names[0] != "PRO" else "NH2+ end"
    last = f"{names[-1]} cap" if names[-1] in _CAPS else "COO- end"
    return f"{first}, {last}"


def _with_hydrogens(chains: list[list[str]], ph: float) -> "Topology":
    """Return the topology with the hydrogens that the pH and the variants ask for."""
    import openmm
    from openmm import app, unit

    topology = app.Topology()
    variants: list[str | None] = []
    for names in chains:
        chain = topology.addChain()
        for place, name in enumerate(names, start=1):
            plain = _VARIANTS.get(name, name)
            residue = topology.addResidue(plain, chain)
            atoms = _CAPS.get(plain) or f"N CA C O {_SIDE_CHAINS[plain]} {'OXT' if place == len(names) else ''}"
            for atom in atoms.split():
                topology.addAtom(atom, app.Element.getBySymbol(atom[0]), residue)
            # OpenMM would choose between HID and HIE by hydrogen bonds, which an extended chain does not have
            variant = ("HIE" if ph > _PK_HISTIDINE else "HIP") if name == "HIS" else name
            variants.append(variant if variant in _VARIANTS else None)
    topology.createStandardBonds()
    # Only the names and bonds of the hydrogens are wanted: any positions without coinciding atoms will do.
    k = np.arange(topology.getNumAtoms())
    scattered = np.stack([0.3 * k, np.sin(2.0 * k), np.cos(3.0 * k)], axis=1)
    modeller = app.Modeller(topology, scattered * unit.nanometer)
    reference = openmm.Platform.getPlatformByName("Reference")
    modeller.addHydrogens(pH=ph, variants=variants, platform=reference)
    return modeller.topology
