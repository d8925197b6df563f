"""Topologies as the JSON of the MDTraj-HDF5 format, from OpenMM, mdtraj or PDB text."""

import io
import json
from typing import Any

__all__ = ["other_order", "topology_from_json", "topology_to_json"]


def topology_to_json(topology: Any) -> str:
    """The MDTraj-HDF5 JSON of a topology.

    Args:
        topology: An openmm.app.Topology, an mdtraj.Topology, the text of a PDB file, or such JSON (returned as it is).

    References:
        MDTraj HDF5 format, convention "Pande" 1.1, field `topology`.
    """
    if isinstance(topology, str):
        if topology.lstrip().startswith("{"):
            topology_from_json(topology)
            return topology
        # OpenMM reads PDB text from a stream and knows the bonds of standard residues
        from openmm.app import PDBFile

        topology = PDBFile(io.StringIO(topology)).topology
    import mdtraj

    if not isinstance(topology, mdtraj.Topology):
        if not hasattr(topology, "chains") or not hasattr(topology, "atoms"):
            raise TypeError(
                f"topology: expected an OpenMM Topology, an mdtraj Topology or PDB text, got {type(topology).__name__}."
            )
        topology = mdtraj.Topology.from_openmm(topology)
    chains = [
        {
            "index": chain.index,
            "residues": [
                {
                    "index": residue.index,
                    "name": residue.name,
                    "resSeq": residue.resSeq,
                    "segmentID": residue.segment_id,
                    "atoms": [
                        {"index": atom.index, "name": atom.name, "element": atom.element.symbol if atom.element else ""}
                        for atom in residue.atoms
                    ],
                }
                for residue in chain.residues
            ],
        }
        for chain in topology.chains
    ]
    bonds = [[a.index, b.index] for a, b in topology.bonds]
    return json.dumps({"chains": chains, "bonds": bonds})


def topology_from_json(text: str) -> Any:
    """An mdtraj.Topology from MDTraj-HDF5 JSON.

    Raises:
        ValueError: If the text is not such JSON.
    """
    import mdtraj

    topology = mdtraj.Topology()
    try:
        record = json.loads(text)
        for chain_record in record["chains"]:
            chain = topology.add_chain()
            for residue_record in chain_record["residues"]:
                residue = topology.add_residue(
                    residue_record["name"],
                    chain,
                    resSeq=residue_record["resSeq"],
                    segment_id=residue_record.get("segmentID", ""),
                )
                for atom in residue_record["atoms"]:
                    symbol = atom["element"]
                    element = mdtraj.element.get_by_symbol(symbol) if symbol else mdtraj.element.virtual
                    topology.add_atom(atom["name"], element, residue)
        for a, b in record["bonds"]:
            topology.add_bond(topology.atom(a), topology.atom(b))
    except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(
            f"topology: expected the JSON of the MDTraj-HDF5 format with chains and bonds, got {text[:60]!r}…"
        ) from error
    return topology


def other_order(theirs: str, mine: str) -> str | None:
    """Where two topologies of as many atoms have them in different orders, in words; None where nothing tells.

    Elements must agree atom by atom; names only where both have the same ones, because conventions differ.

    Args:
        theirs: JSON of `topology_to_json`.
        mine: The same of what is expected.
    """
    atoms = [
        [atom for chain in json.loads(text)["chains"] for residue in chain["residues"] for atom in residue["atoms"]]
        for text in (theirs, mine)
    ]
    names = [[atom["name"] for atom in one] for one in atoms]
    keys = ("element", "name") if sorted(names[0]) == sorted(names[1]) else ("element",)
    for k, (there, here) in enumerate(zip(*atoms, strict=False)):
        if any(there[key] != here[key] for key in keys):
            return f"atom {k} is {there['name']} ({there['element']}) there and {here['name']} ({here['element']}) here"
    return None
