"""CHARMM's force fields, whose Lennard-Jones interactions are Custom forces, against OpenMM."""

import copy
import gzip
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch

from boltzflow.forcefield import CustomBonds, CustomPairs, Nonbonded, from_openmm

DATA = Path(__file__).parent / "data"
NAMES = ["charmm36_obc2", "charmm36_2024_gbn2"]


def _load(name: str) -> tuple[openmm.System, torch.Tensor]:
    system = openmm.XmlSerializer.deserialize(gzip.decompress((DATA / f"{name}.xml.gz").read_bytes()).decode())
    x = torch.from_numpy(np.load(DATA / f"{name}.npy"))
    noise = torch.randn(5, *x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return system, x + torch.tensor([0.0, 0.002, 0.01, 0.05, 0.1], dtype=torch.float64)[:, None, None] * noise


@pytest.fixture(scope="module", params=NAMES)
def case(request, reference):
    system, x = _load(request.param)
    for group, force in enumerate(system.getForces()):
        force.setForceGroup(group)
    return system, x, reference(system, x)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_whole_system(case, errors, backend):
    system, x, expected = case
    forcefield = from_openmm(system)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(x), expected)
    assert du < 1e-9
    assert df < 1e-9


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_float32(case, errors, backend):
    system, x, expected = case
    forcefield = from_openmm(system, dtype=torch.float32)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(x), expected)
    assert du < 1e-4
    assert df < 1e-2


def test_each_force(case, reference, errors):
    system, x, _ = case
    n_compared = 0
    for group in range(system.getNumForces()):
        single = openmm.XmlSerializer.clone(system)
        for other in reversed(range(system.getNumForces())):
            if other != group:
                single.removeForce(other)
        forcefield = from_openmm(single)
        if forcefield.terms:
            du, df = errors(forcefield.energy_and_force(x), reference(system, x, group))
            assert du < 1e-9, single.getForce(0)
            assert df < 1e-7, single.getForce(0)
            n_compared += 1
    assert n_compared >= 8


def test_the_kernel_takes_all_but_the_impropers():
    rests = []
    for name in NAMES:
        system, x = _load(name)
        compiled = from_openmm(system).compiled()
        if compiled.backend == "eager":
            pytest.skip("no C++ compiler")
        compiled(x)
        rests.append([type(term) for term in compiled._kernel.rest.terms] if compiled._kernel.rest else [])
    assert rests == [[CustomBonds], []]


def _pairs(a: list[float], b: list[float]) -> openmm.CustomNonbondedForce:
    force = openmm.CustomNonbondedForce("acoef(type1, type2)/r^12 - bcoef(type1, type2)/r^6;")
    force.addTabulatedFunction("acoef", openmm.Discrete2DFunction(2, 2, a))
    force.addTabulatedFunction("bcoef", openmm.Discrete2DFunction(2, 2, b))
    force.addPerParticleParameter("type")
    for atom in range(5):
        force.addParticle([atom % 2])
    force.addExclusion(0, 3)
    return force


def _bonds(expression: str = "2*epsilon*((sigma/r)^12-(sigma/r)^6)") -> openmm.CustomBondForce:
    force = openmm.CustomBondForce(expression)
    force.addPerBondParameter("epsilon")
    force.addPerBondParameter("sigma")
    force.addBond(3, 0, [0.5, 0.2])
    force.addBond(1, 2, [0.25, 0.15])
    return force


def _system(*forces: openmm.Force) -> openmm.System:
    system = openmm.System()
    for _ in range(5):
        system.addParticle(1.0)
    for force in forces:
        system.addForce(copy.deepcopy(force))
    return system


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize(
    ("forces", "kinds"),
    [
        ([_pairs([1e-6, 2e-6, 2e-6, 0.0], [1e-3, 3e-3, 3e-3, 0.0])], [Nonbonded]),
        ([_pairs([1e-6, 2e-6, 3e-6, 4e-6], [1e-3, 3e-3, 2e-3, 1e-3])], [Nonbonded]),
        ([_pairs([1e-6, 2e-6, 2e-6, 3e-6], [1e-3, 0.0, 0.0, 1e-3])], [CustomPairs]),  # repulsion alone
        ([_bonds()], [Nonbonded]),
        ([_bonds("epsilon*((sigma/r)^12-(sigma/r)^7)")], [CustomBonds]),
        # Two interactions of the pair 1-2, of which the kernel can merge but one.
        ([_pairs([1e-6, 2e-6, 2e-6, 3e-6], [1e-3, 2e-3, 2e-3, 1e-3]), _bonds()], [Nonbonded, Nonbonded]),
    ],
)
def test_what_is_taken_for_lennard_jones(forces, kinds, reference, errors, backend):
    system = _system(*forces)
    forcefield = from_openmm(system)
    assert [type(term) for term in forcefield.terms] == kinds
    x = 0.2 * torch.randn(20, 5, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    forcefield = forcefield.compiled() if backend == "compiled" else forcefield
    du, df = errors(forcefield.energy_and_force(x), reference(system, x))
    assert du < 1e-9
    assert df < 1e-9
