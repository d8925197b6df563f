"""A peptide from its sequence: topology with hydrogens, and an extended structure in good geometry."""

import logging
import re
from typing import TYPE_CHECKING

import numpy as np

from boltzflow.errors import UnknownNameError, nearest
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
_ONE_LETTER = dict(
    zip("ARNDCQEGHILKMFPSTWYV",
        "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split(), strict=True)
)  # fmt: skip
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
    known = {*_SIDE_CHAINS, *_CAPS, *_VARIANTS, *_SYNONYMS}
    chains = []
    for part in re.split(r"[|:]", text.upper()):
        names: list[str] = []
        for word in re.split(r"[\s,\-]+", part.strip()):
            if word in known:
                names.append(_SYNONYMS.get(word, word))
            elif word and set(word) <= set(_ONE_LETTER):
                names += [_ONE_LETTER[letter] for letter in word]
            elif word:
                raise UnknownNameError(
                    f"sequence: no residue {word!r}; {nearest(word, known)} A sequence is built from the 20 amino "
                    f"acids (three-letter names or one-letter codes), {', '.join(sorted(_VARIANTS))} and the caps "
                    "ACE, NME and NH2; start from a PDB file for anything else."
                )
        _check_chain(names, text)
        chains.append(names)
    return chains


def _check_chain(names: list[str], text: str) -> None:
    n_backbone = sum(2 if name in ("ACE", "NME") else 1 if name == "NH2" else 3 for name in names)
    if n_backbone < 3:
        raise ValueError(
            f"sequence {text!r}: expected at least one amino acid in every chain, found {' '.join(names) or 'none'}; "
            "write for example 'ACE ALA NME' or 'GGFL'"
        )
    for k, name in enumerate(names):
        place, last = {"ACE": ("first", 0), "NME": ("last", len(names) - 1), "NH2": ("last", len(names) - 1)}.get(
            name, ("", k)
        )
        if k != last:
            raise ValueError(
                f"sequence {text!r}: the cap {name} must be the {place} residue of its chain, found it as number "
                f"{k + 1} of {len(names)}; move or remove it, or begin a new chain with '|'"
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
        ValueError: If the sequence is impossible, or the force field has no template for one of its residues.

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
        system = forcefield.createSystem(topology, constraints=None, rigidWater=False)
    except ValueError as error:
        raise ValueError(
            f"sequence {text!r}: the force field has no template for one of its residues ({error}); "
            "choose another force field, or another variant or cap of that residue"
        ) from error
    return topology, extended_positions(topology, system)


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
        for name in names:
            plain = _VARIANTS.get(name, name)
            residue = topology.addResidue(plain, chain)
            atoms = _CAPS.get(plain) or f"N CA C O {_SIDE_CHAINS[plain]}"
            terminal = name == names[-1] and len(list(chain.residues())) == len(names) and plain not in _CAPS
            for atom in [*atoms.split(), *(["OXT"] if terminal else [])]:
                topology.addAtom(atom, app.Element.getBySymbol(atom[0]), residue)
            if plain == "HIS" and name == "HIS":
                name = "HIE" if ph > _PK_HISTIDINE else "HIP"
            variants.append(name if name in _VARIANTS else None)
    topology.createStandardBonds()
    # Only the names and bonds of the hydrogens are wanted: any positions without coinciding atoms will do.
    k = np.arange(topology.getNumAtoms())
    scattered = np.stack([0.3 * k, np.sin(2.0 * k), np.cos(3.0 * k)], axis=1)
    modeller = app.Modeller(topology, scattered * unit.nanometer)
    reference = openmm.Platform.getPlatformByName("Reference")
    modeller.addHydrogens(pH=ph, variants=variants, platform=reference)
    return modeller.topology
