"""The parity of each force with OpenMM, as it is reported: what is right passes, and what is wrong is found."""

import math

import openmm
import pytest
import torch

from boltzflow.forcefield import from_openmm, registry
from boltzflow.forcefield import speed as speed_module
from boltzflow.forcefield.kernel import Kernel
from boltzflow.forcefield.parity import DISTANCES, geometries, parity
from boltzflow.forcefield.speed import speeds


def with_force(system, force):
    clone = openmm.XmlSerializer.clone(system)
    clone.addForce(force)
    return clone


@pytest.fixture
def converters(monkeypatch):
    monkeypatch.setattr(registry, "CONVERTERS", dict(registry.CONVERTERS))
    return registry.CONVERTERS


def test_every_force_has_a_row(system, minimised):
    found = parity(system, minimised, frames=1)
    assert found.passed
    assert [force.kind for force in found.forces] == [type(force).__name__ for force in system.getForces()]
    kernel = Kernel(from_openmm(system))
    eager = set() if kernel.rest is None else {type(term).__name__ for term in kernel.rest.terms}
    assert eager <= {"CustomGeneralizedBorn"}
    for force in found.forces:
        slow = force.kind == "CustomGBForce" and eager
        assert force.backend == ("none" if force.kind == "CMMotionRemover" else "eager" if slow else "compiled")
    assert found.total.passed
    assert found.single.energy < 1e-4
    assert sum(found.kinds.values()) == 1 + 3 + len(DISTANCES)
    assert found.unknown == ()


def test_structures_are_what_they_are_called(minimised):
    at = geometries(minimised, frames=3)
    moved = (at.positions - minimised).norm(dim=-1)
    for k, kind in enumerate(at.kinds):
        word, *size = kind.split()
        if word == "relaxed":
            assert moved[k].max() == 0
        elif word == "perturbed":
            assert moved[k].square().mean().sqrt() == pytest.approx(float(size[0]) / 1000 * math.sqrt(3), rel=0.5)
        else:
            assert (moved[k] > 0).sum() == 1
            distances = torch.pdist(at.positions[k])
            assert distances.min().item() == pytest.approx(float(size[0]) / 1000)
    assert len(at.kinds) == len(at.positions) == 1 + 3 * 3 + 3 * len(DISTANCES)
    again = geometries(minimised, frames=3)
    torch.testing.assert_close(at.positions, again.positions, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "parameter"), [("HarmonicBondForce", "r0"), ("PeriodicTorsionForce", "k"), ("NonbondedForce", "epsilon")]
)
def test_a_corrupted_parameter_is_found(shipped, minimised, converters, kind, parameter):
    right = converters[kind]

    def wrong(force, system, dtype):
        term = right(force, system, dtype)
        values = getattr(term, parameter).clone()
        values[values.abs().argmax()] *= 1.001
        return term.with_tensors({parameter: values})

    converters[kind] = wrong
    found = parity(shipped, minimised, frames=2)
    assert not found.passed
    assert [force.kind for force in found.failed] == [kind]
    deviation = found.failed[0].deviation
    assert deviation.force > 1e-5
    assert deviation.atom is not None
    assert not found.total.passed


def test_the_worst_atom_is_named(minimised):
    """Only the atoms of the wrong bond feel it."""
    system = openmm.System()
    bonds = openmm.HarmonicBondForce()
    for _ in range(22):
        system.addParticle(12.0)
    for atom in range(21):
        bonds.addBond(atom, atom + 1, 0.15, 1e5)
    system.addForce(bonds)
    potential = from_openmm(system)
    potential.terms[0].r0[13] += 1e-3
    found = parity(system, minimised, potential=potential.compiled(), frames=2)
    assert found.forces[0].deviation.passed
    assert not found.passed
    assert found.failed == ()
    assert found.total.atom in (13, 14)


def test_an_unknown_force_is_a_row_with_its_reason(shipped, minimised):
    force = openmm.RMSDForce(minimised.numpy())
    force.setForceGroup(3)
    found = parity(with_force(shipped, force), minimised, frames=1)
    assert found.passed
    (row,) = found.unknown
    assert (row.index, row.group, row.kind, row.backend, row.deviation) == (6, 3, "RMSDForce", "bridge", None)
    assert row.reason.startswith("has no torch converter")
    assert found.total is None
    assert sum(force.deviation is not None for force in found.forces) == 5


def test_virtual_sites_are_placed_by_both_codes(shipped, minimised):
    system = openmm.XmlSerializer.clone(shipped)
    system.setParticleMass(3, 0.0)
    system.setVirtualSite(3, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    found = parity(system, minimised, frames=1)
    assert found.unknown == ()
    assert found.passed
    assert found.total.passed


def test_a_value_in_one_code_only_is_infinitely_far(shipped, minimised, converters):
    right = converters["HarmonicBondForce"]

    def wrong(force, system, dtype):
        term = right(force, system, dtype)
        term.k[0] = math.nan
        return term

    converters["HarmonicBondForce"] = wrong
    found = parity(shipped, minimised, frames=1)
    assert [force.kind for force in found.failed] == ["HarmonicBondForce"]
    assert found.failed[0].deviation.energy == math.inf


def test_nothing_to_compare(minimised):
    system = openmm.System()
    for _ in range(22):
        system.addParticle(1.0)
    system.addForce(openmm.CMMotionRemover())
    found = parity(system, minimised, frames=1)
    assert (found.passed, found.total, [force.backend for force in found.forces]) == (True, None, ["none"])


@pytest.mark.parametrize("wrong", ["shape", "nan"])
def test_wrong_positions(shipped, minimised, wrong):
    positions = minimised[:21] if wrong == "shape" else minimised.index_fill(0, torch.tensor([4]), math.nan)
    with pytest.raises(ValueError, match=r"positions must be \(22, 3\)"):
        parity(shipped, positions)


def test_speeds_of_every_backend(shipped, minimised, monkeypatch):
    monkeypatch.setattr(speed_module, "BUDGET", 0.01)
    found = speeds(shipped, minimised, batches=(1, 16))
    names = {(speed.backend, speed.dtype) for speed in found}
    assert {("eager", "float64"), ("eager", "float32"), ("OpenMM Reference", "float64")} <= names
    best = {backend: max(s.conformations_per_second for s in found if s.backend == backend) for backend, _ in names}
    assert best["eager"] > best["OpenMM Reference"]
    if "compiled" in best:
        assert best["compiled"] > best["eager"]
    bridged = speeds(with_force(shipped, openmm.RMSDForce(minimised.numpy())), minimised, batches=(1,))
    assert {speed.backend.split()[0] for speed in bridged} == {"OpenMM"}


@pytest.mark.parametrize(("cutoff", "platform"), [(0.3, "Reference"), (0.6, "CPU")])
def test_a_triclinic_box_in_which_the_reference_platform_misses_pairs(converters, cutoff, platform):
    """There the CPU platform is the oracle; what is right passes, and a wrong parameter is found all the same."""
    rng = torch.Generator().manual_seed(5)
    system, force = openmm.System(), openmm.CustomNonbondedForce("a1*a2*exp(-2*r)")
    force.addPerParticleParameter("a")
    for k in range(60):
        system.addParticle(1.0)
        force.addParticle([1.0 + 0.01 * k])
    force.setNonbondedMethod(force.CutoffPeriodic)
    force.setCutoffDistance(cutoff)
    system.addForce(force)
    box = 2 * torch.tensor([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0.5**0.5]], dtype=torch.float64)
    system.setDefaultPeriodicBoxVectors(*box.tolist())
    x = torch.rand(60, 3, generator=rng, dtype=torch.float64) @ box
    found = parity(system, x, frames=1)
    assert found.forces[0].deviation.platform == found.total.platform == platform
    assert found.passed
    assert any(kind.startswith("clash") for kind in found.kinds) == (platform == "Reference")
    right = converters["CustomNonbondedForce"]

    def wrong(force, system, dtype):
        term = right(force, system, dtype)
        if len(term.parameter_values.T):  # not the force that counts pairs
            term.parameter_values[7] *= 1.5
        return term

    converters["CustomNonbondedForce"] = wrong
    assert not parity(system, x, frames=1).passed
