"""Molecules of the kinds that force fields are made for, and a box of water with ions."""

import functools
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import app, unit

from boltzflow.preparation.build import minimise
from boltzflow.preparation.sequence import from_sequence

DATA = Path(app.__file__).parent / "data"
SIZE = openmm.Vec3(1.25, 1.3, 1.35)
CUTOFF = 0.6

SEQUENCES = {
    "alanine": "ACE ALA NME",
    "dipeptide": "LYS ASP",
    "peptide": "LYS CYS PHE ASP PRO GLY",
    "all amino acids": "ACE ALA CYS ASP GLU PHE GLY HIE ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR HIP NME",
    "open chain": "ALA CYS ASP GLU PHE GLY HIE ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR HIP ALA",
}

TEMPLATES = {
    "DNA": ("amber14/DNA.OL15.xml", "DA5 DC DG DT3"),
    "RNA": ("amber14/RNA.OL3.xml", "A5 C G U3"),
    "glycan": ("amber14/GLYCAM_06j-1.xml", "ROH 4YB 0MA"),
    "lipid": ("amber14/lipid17.xml", "SDPC"),
    "cholesterol": ("amber14/lipid17.xml", "CHL1"),
}


@functools.cache
def field(*files: str) -> app.ForceField:
    """The force field of these files, read once."""
    return app.ForceField(*files)


@functools.cache
def molecule(name: str) -> tuple[app.Topology, torch.Tensor]:
    """A topology and relaxed positions (nm)."""
    if name in SEQUENCES:
        topology, start = from_sequence(SEQUENCES[name], forcefield=field("amber14-all.xml"))
        system = field("amber14-all.xml").createSystem(topology)
        return topology, torch.from_numpy(minimise(system, start)[2])
    file, residues = TEMPLATES[name]
    # the sugars' types are those of the protein
    files = ("amber14/protein.ff14SB.xml", file) if name == "glycan" else (file,)
    topology = _chain(files, residues)
    return topology, _relax(files, topology)


def _chain(files: tuple[str, ...], residues: str) -> app.Topology:
    """Residues one after the other, each bonded to the next one by the atoms that the templates leave open."""
    topology = app.Topology()
    strand, opened = topology.addChain(), None
    for name in residues.split():
        template = field(*files)._templates[name]
        residue = topology.addResidue(name, strand)
        atoms = [topology.addAtom(atom.name, atom.element, residue) for atom in template.atoms]
        for i, j in template.bonds:
            topology.addBond(atoms[i], atoms[j])
        if opened is not None:
            topology.addBond(opened, atoms[template.externalBonds[0]])
        opened = atoms[template.externalBonds[-1]] if template.externalBonds else None
    return topology


def _relax(files: tuple[str, ...], topology: app.Topology) -> torch.Tensor:
    """A minimum of the energy, from random positions along a wave: bonds first, then all forces."""
    system = field(*files).createSystem(topology)
    bonded = openmm.XmlSerializer.clone(system)
    for k in reversed(range(bonded.getNumForces())):
        if isinstance(bonded.getForce(k), openmm.NonbondedForce):
            bonded.removeForce(k)
    soft = openmm.CustomNonbondedForce("1000*exp(-(r/0.15)^2)")
    for _ in topology.atoms():
        soft.addParticle([])
    soft.createExclusionsFromBonds([(first.index, second.index) for first, second in topology.bonds()], 3)
    bonded.addForce(soft)
    t = 0.06 * torch.arange(topology.getNumAtoms(), dtype=torch.float64)
    noise = torch.randn(len(t), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (torch.stack([t, 0.3 * (2 * t).sin(), 0.3 * (2 * t).cos()], 1) + 0.1 * noise).numpy()
    for stage in (bonded, system):
        platform = openmm.Platform.getPlatformByName("CPU")
        context = openmm.Context(stage, openmm.VerletIntegrator(0.001), platform, {"Threads": "1"})
        context.setPositions(x)
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, 2000)
        x = context.getState(positions=True).getPositions(asNumpy=True)._value
    return torch.tensor(x)


@functools.cache
def _solvated(name: str) -> tuple[app.Topology, torch.Tensor]:
    """Waters of three sites around a molecule, or around two ions, or alone, in a box of about 1.3 nm."""
    start = app.Modeller(app.Topology(), [] * unit.nanometer)
    if name == "ions":
        strand = start.topology.addChain()
        for ion, element in (("NA", "Na"), ("CL", "Cl")):
            start.topology.addAtom(ion, app.Element.getBySymbol(element), start.topology.addResidue(ion, strand))
        start.positions = [openmm.Vec3(0.1, 0.2, 0.3), openmm.Vec3(0.7, 0.8, 0.9)] * unit.nanometer
    elif name != "water":
        topology, x = molecule(name)
        start = app.Modeller(topology, x.numpy() * unit.nanometer)
    start.addSolvent(field("amber14/tip3p.xml", "amber14-all.xml"), boxSize=SIZE * unit.nanometer, neutralize=False)
    options = {"nonbondedMethod": app.CutoffPeriodic, "nonbondedCutoff": CUTOFF}
    system = field("amber14/tip3p.xml", "amber14-all.xml").createSystem(start.topology, **options)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, {"Threads": "1"})
    context.setPositions(start.positions)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 200)
    return start.topology, torch.tensor(context.getState(positions=True).getPositions(asNumpy=True)._value)


def solvated(name: str, *files: str) -> tuple[app.Topology, torch.Tensor]:
    """A molecule, "ions" or just "water" in a box of water, with the virtual sites of a force field, water last."""
    topology, x = _solvated(name)
    # To match every residue once more takes seconds with CHARMM's patches.
    if not any(template.virtualSites for template in field(files[-1])._templates.values()):
        return topology, x
    modeller = app.Modeller(topology, x.numpy() * unit.nanometer)
    modeller.addExtraParticles(field(*files))
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    return modeller.topology, torch.from_numpy(positions)
