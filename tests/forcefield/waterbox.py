"""Boxes of water and what OpenMM's Reference platform says of them."""

import functools

import openmm
import torch
from openmm import app, unit

FILES = {"tip3p": "amber14/tip3p.xml", "tip4pew": "amber14/tip4pew.xml", "tip5p": "tip5p.xml", "spce": "spce.xml"}
CUTOFF = 0.8


@functools.cache
def solvate(model: str, shape: str = "cube", ion: bool = False) -> tuple[app.Topology, torch.Tensor]:
    """About 200 waters, with a sodium ion if wanted."""
    topology = app.Topology()
    positions = []
    if ion:
        residue = topology.addResidue("NA", topology.addChain())
        topology.addAtom("NA", app.Element.getBySymbol("Na"), residue)
        positions.append(openmm.Vec3(0.1, 0.2, 0.3))
    modeller = app.Modeller(topology, positions * unit.nanometer)
    field = app.ForceField(FILES[model])
    modeller.addSolvent(
        field, model=model if model != "spce" else "tip3p", numAdded=200, boxShape=shape, neutralize=False
    )
    return modeller.topology, torch.tensor(modeller.positions.value_in_unit(unit.nanometer), dtype=torch.float64)


def build(model: str, method: object, shape: str = "cube", ion: bool = False, **options: object) -> openmm.System:
    """A System of flexible water, with tight Ewald sums."""
    options = {"nonbondedCutoff": CUTOFF, "rigidWater": False, "ewaldErrorTolerance": 1e-9, **options}
    return app.ForceField(FILES[model]).createSystem(solvate(model, shape, ion)[0], nonbondedMethod=method, **options)


def conformations(model: str, shape: str = "cube", ion: bool = False) -> torch.Tensor:
    """Three conformations: as solvated, perturbed, and perturbed with molecules moved by whole boxes."""
    topology, x = solvate(model, shape, ion)
    rng = torch.Generator().manual_seed(3)
    x = x + torch.tensor([0.0, 0.005, 0.005], dtype=x.dtype)[:, None, None] * torch.randn(
        3, *x.shape, generator=rng, dtype=x.dtype
    )
    shift = torch.randint(-2, 3, (topology.getNumResidues(), 3), generator=rng).double()
    residue = torch.tensor([atom.residue.index for atom in topology.atoms()])
    x[2] += shift[residue] @ box_of(topology)
    return x


def box_of(topology: app.Topology) -> torch.Tensor:
    """The box of a topology in nm."""
    return torch.tensor(topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer), dtype=torch.float64)


def evaluate(
    system: openmm.System, positions: torch.Tensor, box: torch.Tensor | None = None, platform: str = "Reference"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies and forces by OpenMM, with virtual sites placed; forces on the sites themselves are zeroed."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform))
    energies, forces = [], []
    for k, x in enumerate(positions.double()):
        if box is not None:
            context.setPeriodicBoxVectors(*(box if box.ndim == 2 else box[k]).tolist())
        context.setPositions(x.numpy())
        context.computeVirtualSites()
        state = context.getState(energy=True, forces=True)
        energies.append(state.getPotentialEnergy()._value)
        forces.append(torch.tensor(state.getForces(asNumpy=True)._value))
    force = torch.stack(forces)
    force[:, [k for k in range(system.getNumParticles()) if system.isVirtualSite(k)]] = 0.0
    return torch.tensor(energies, dtype=torch.float64), force
