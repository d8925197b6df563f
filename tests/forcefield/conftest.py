"""Real Systems on the shipped topology, geometries from minimised to clashing, and the Reference platform as oracle."""

import functools
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

FOLDER = Path(__file__).parents[2] / "systems" / "alanine_dipeptide"

FORCE_FIELDS = {
    "shipped": None,
    "obc1": ("amber96.xml", "implicit/obc1.xml"),
    "obc2": ("amber14-all.xml", "implicit/obc2.xml"),
    "gbsaobc": ("amber99sbildn.xml", "amber99_obc.xml"),
    "vacuum": ("amber99sbildn.xml",),
    "gbn": ("amber14-all.xml", "implicit/gbn.xml"),
    "gbn2": ("amber19-all.xml", "implicit/gbn2.xml"),
    "hct": ("amber14-all.xml", "implicit/hct.xml"),
}


@functools.cache
def _pdb() -> app.PDBFile:
    return app.PDBFile(str(FOLDER / "topology.pdb"))


def build(name: str, **options: object) -> openmm.System:
    files = FORCE_FIELDS[name]
    if files is None:
        return openmm.XmlSerializer.deserialize((FOLDER / "system.xml").read_text())
    return app.ForceField(*files).createSystem(_pdb().topology, **{"nonbondedMethod": app.NoCutoff, **options})


@pytest.fixture(scope="session")
def topology() -> app.Topology:
    return _pdb().topology


@pytest.fixture(scope="session")
def make_system():
    return build


@pytest.fixture(scope="session", params=FORCE_FIELDS)
def system(request: pytest.FixtureRequest) -> openmm.System:
    return build(request.param)


@pytest.fixture(scope="session")
def shipped() -> openmm.System:
    return build("shipped")


@pytest.fixture(scope="session")
def minimised() -> torch.Tensor:
    return torch.tensor(_pdb().getPositions(asNumpy=True).value_in_unit(unit.nanometer))


@pytest.fixture(scope="session")
def geometries(minimised: torch.Tensor) -> torch.Tensor:
    """Minimised, perturbed with 2 to 100 pm, crowded into a box of 0.4 nm, and single atoms pushed into one another."""
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(7, 4, 22, 3, generator=rng, dtype=torch.float64)
    amplitude = torch.tensor([0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1], dtype=torch.float64)
    perturbed = (minimised + amplitude[:, None, None, None] * noise).flatten(0, 1)
    crowded = 0.4 * torch.rand(4, 22, 3, generator=rng, dtype=torch.float64)
    pushed = minimised.repeat(6, 1, 1)
    for row, (atom, other, distance) in enumerate(
        [(0, 21, 0.05), (0, 21, 0.02), (3, 15, 0.008), (5, 10, 0.004), (9, 17, 0.002), (1, 14, 0.006)]
    ):
        pushed[row, atom] = pushed[row, other] + torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64) * distance
    return torch.cat([perturbed, crowded, pushed])


@pytest.fixture(scope="session")
def reference():
    """``reference(system, positions, group=None) -> (U, F)`` on the Reference platform, in double precision."""

    def evaluate(
        system: openmm.System, positions: torch.Tensor, group: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        platform = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
        groups = -1 if group is None else {group}
        energies, forces = [], []
        for x in positions.double().numpy():
            context.setPositions(x)
            state = context.getState(getEnergy=True, getForces=True, groups=groups)
            energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
            forces.append(state.getForces(asNumpy=True)._value.copy())
        return torch.tensor(energies, dtype=torch.float64), torch.tensor(np.stack(forces))

    return evaluate


@pytest.fixture(scope="session")
def errors():
    """``errors((u, f), (u_ref, f_ref))`` -> max |dU| / max(1, |U|) and max_i |dF_i| / (1 + rms |F|)."""

    def measure(
        found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[float, float]:
        energy = (found[0] - expected[0]).abs() / expected[0].abs().clamp(min=1)
        rms = expected[1].square().sum(-1).mean(-1).sqrt()
        force = (found[1] - expected[1]).norm(dim=-1).amax(-1) / (1 + rms)
        return energy.max().item(), force.max().item()

    return measure
