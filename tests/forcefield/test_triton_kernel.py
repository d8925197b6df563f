"""The GPU kernels without a GPU: in Triton's interpreter against the eager twin, and compiled for two architectures.

What only a GPU can show is in the tests marked ``gpu``.
"""

import importlib.util
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm.app.internal.customgbforces import GBSAGBn2Force

from boltzflow.forcefield import ForceField, alchemical, from_openmm, triton_kernel

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

FLOAT32 = (1e-4, 1e-2)  # of the kernel in C++, see test_parity.py
N_ATOMS = 8


def _bonded(system: openmm.System) -> None:
    bonds, restraints = openmm.HarmonicBondForce(), openmm.CustomBondForce("0.5*k*max(0, r-r0)^2")
    angles, torsions, maps = openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce(), openmm.CMAPTorsionForce()
    restraints.addPerBondParameter("k")
    restraints.addPerBondParameter("r0")
    for k in range(N_ATOMS - 1):
        bonds.addBond(k, k + 1, 0.13 + 0.005 * k, 1e5)
    for a, b, r0 in ((0, 7, 0.3), (1, 5, 5.0)):
        restraints.addBond(a, b, [2000.0, r0])
    for k in range(N_ATOMS - 2):
        angles.addAngle(k, k + 1, k + 2, 1.9, 400.0 + 10 * k)
    for k, (n, phase, barrier) in enumerate([(1, 0.3, 2.0), (2, math.pi, 8.0), (3, 0.0, 1.0), (6, 0.7, -0.5)]):
        torsions.addTorsion(k, k + 1, k + 2, k + 3, n, phase, barrier)
        torsions.addTorsion(1, 2, 3, 4, n, phase, barrier)
    rng = np.random.default_rng(5)
    for size in (4, 7):
        maps.addMap(size, rng.normal(size=size**2))
        maps.addTorsion(maps.getNumMaps() - 1, 1, 2, 3, 4, 2, 3, 4, 5)
    for force in (bonds, restraints, angles, torsions, maps):
        system.addForce(force)


CHARGES = [0.4, -0.5, 0.3, 0.1, -0.6, 0.25, 0.35, -0.3]


def _nonbonded(system: openmm.System, cutoff: float) -> None:
    force = openmm.NonbondedForce()
    for k, charge in enumerate(CHARGES):
        force.addParticle(charge, 0.2 + 0.02 * k, 0.1 * k)  # the first has no Lennard-Jones interaction
    force.createExceptionsFromBonds([(k, k + 1) for k in range(N_ATOMS - 1)], 0.8, 0.5)
    if cutoff:
        force.setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)
        force.setCutoffDistance(cutoff)
        force.setUseSwitchingFunction(True)
        force.setSwitchingDistance(0.6 * cutoff)
    system.addForce(force)


def _solvent(system: openmm.System, cutoff: float, *, necks: bool) -> None:
    if necks:
        force = GBSAGBn2Force(cutoff=cutoff or None, SA="ACE")
    else:
        force = openmm.GBSAOBCForce()
        force.setNonbondedMethod(force.CutoffNonPeriodic if cutoff else force.NoCutoff)
        force.setCutoffDistance(cutoff or 1.0)
    for k, charge in enumerate(CHARGES):
        row = [charge, 0.12 + 0.01 * k, 0.7 + 0.03 * k]
        force.addParticle([*row, 1.0 + 0.02 * k, 0.8, 4.8 - 0.1 * k] if necks else row[0], *([] if necks else row[1:]))
    if necks:
        force.finalize()
        if cutoff:
            force.setNonbondedMethod(force.CutoffNonPeriodic)
            force.setCutoffDistance(cutoff)
    system.addForce(force)


def _chain(
    *, bonded: bool = False, nonbonded: bool = False, solvent: str = "", cutoff: float = 0.0, soft: bool = False
) -> ForceField:
    """A chain of 8 atoms, small enough for the interpreter, with every term that the kernels know."""
    system = openmm.System()
    for _ in range(N_ATOMS):
        system.addParticle(12.0)
    if bonded:
        _bonded(system)
    if nonbonded:
        _nonbonded(system, cutoff)
    if solvent:
        _solvent(system, cutoff, necks=solvent == "necks")
    forcefield = from_openmm(system)
    return alchemical(forcefield, (1, 2, 6), lambda_sterics=0.4, lambda_electrostatics=0.3) if soft else forcefield


MODELS = {
    "bonded terms alone": {"bonded": True},
    "pairs alone": {"nonbonded": True},
    "pairs with a cutoff": {"nonbonded": True, "cutoff": 0.5},
    "solvent alone": {"solvent": "engulfed"},
    "all terms, GBSAOBC": {"bonded": True, "nonbonded": True, "solvent": "engulfed"},
    "all terms, GBSAOBC, cutoff": {"bonded": True, "nonbonded": True, "solvent": "engulfed", "cutoff": 0.5},
    "all terms, GBn2": {"bonded": True, "nonbonded": True, "solvent": "necks"},
    "pairs with a soft core": {"nonbonded": True, "soft": True},
    "soft core, GBn2, cutoff": {"nonbonded": True, "solvent": "necks", "cutoff": 0.5, "soft": True},
    "all terms, GBn2, cutoff": {"bonded": True, "nonbonded": True, "solvent": "necks", "cutoff": 0.5},
}
LAST = "all terms, GBn2, cutoff"


@pytest.fixture(scope="module")
def chains() -> torch.Tensor:
    """23 physical conformations, 8 crowded into 0.3 nm, and one with two atoms 2 pm apart."""
    k = torch.arange(N_ATOMS, dtype=torch.float64)
    zigzag = torch.stack([0.12 * k, 0.05 * (-1) ** k, 0.03 * (k % 3)], 1)
    rng = torch.Generator().manual_seed(6)
    physical = zigzag + 0.015 * torch.randn(23, N_ATOMS, 3, generator=rng, dtype=torch.float64)
    crowded = 0.3 * torch.rand(8, N_ATOMS, 3, generator=rng, dtype=torch.float64)
    pushed = zigzag.clone()
    pushed[6] = pushed[2] + torch.tensor([0.0012, 0.0, 0.0016], dtype=torch.float64)
    return torch.cat([physical, crowded, pushed[None]])


@pytest.fixture(scope="module")
def interpret(tmp_path_factory):
    """``interpret(cases)``: each a dictionary of the arguments of `run_interpreted.evaluate`."""

    def run(cases: list[dict]) -> list[tuple]:
        folder = tmp_path_factory.mktemp("interpreted")
        torch.save(cases, folder / "cases.pt")
        script = Path(__file__).with_name("run_interpreted.py")
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
        subprocess.run(
            [sys.executable, str(script), str(folder / "cases.pt"), str(folder / "results.pt")],
            check=True,
            env=environment,
        )
        return torch.load(folder / "results.pt")

    return run


@pytest.fixture(scope="module")
def found(interpret, chains):
    """Results of all the small cases, interpreted in one go."""
    cases = {}
    for name, options in MODELS.items():
        state = _chain(**options).to_state()
        cases[name, "float64"] = {"state": state, "positions": chains}
        single = ForceField.from_state(state).float().to_state()
        cases[name, "float32"] = {"state": single, "positions": chains.float()[:23]}
    state = cases[LAST, "float64"]["state"]
    ill = chains[:13].clone()
    ill[3, 2, 1], ill[7, 0, 0], ill[9, 5] = torch.nan, torch.inf, ill[9, 1]
    cases["ill", "float64"] = {"state": state, "positions": ill}
    cases["ill", "float32"] = {"state": cases[LAST, "float32"]["state"], "positions": ill.float()}
    few = {"state": state, "positions": chains[:13]}
    cases["few"] = few
    cases["shared"] = {**few, "programs": 3}
    cases["strided"] = {**few, "positions": chains[:13].permute(2, 1, 0).contiguous().permute(2, 1, 0)}
    pairs = cases["pairs with a cutoff", "float64"]
    cases["many"] = {**pairs, "positions": chains.repeat(5, 1, 1)[:147]}
    cases["chunks"] = {**cases["many"], "chunk_bytes": 1}
    cases["none"] = {**pairs, "positions": chains[:0]}
    return dict(zip(cases, interpret(list(cases.values())), strict=True))


@needs_triton
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_eager_twin(found, chains, name):
    energy, force = _chain(**MODELS[name]).energy_and_force(chains)
    fast_energy, fast_force, complete = found[name, "float64"]
    assert complete
    torch.testing.assert_close(fast_energy, energy, rtol=1e-11, atol=1e-11)
    scale = force.norm(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(fast_force / scale, force / scale, rtol=0, atol=1e-11)


@needs_triton
@pytest.mark.parametrize("name", MODELS)
def test_float32(found, chains, errors, name):
    energy, force, _ = found[name, "float32"]
    assert energy.dtype == torch.float64
    assert force.dtype == torch.float32
    du, df = errors((energy, force.double()), _chain(**MODELS[name]).energy_and_force(chains[:23]))
    assert du < FLOAT32[0]
    assert df < FLOAT32[1]


@needs_triton
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_bad_position_gives_nan_in_its_row_only(found, dtype):
    energy, force, _ = found["ill", dtype]
    good_energy, good_force, _ = found[LAST, dtype]
    assert not energy[[3, 7]].isfinite().any()
    assert energy[9] > 1e15  # two atoms coincide: huge, never NaN
    rest = [row for row in range(13) if row not in (3, 7, 9)]
    assert torch.equal(energy[rest], good_energy[rest])
    assert torch.equal(force[rest], good_force[rest])


@needs_triton
def test_results_do_not_depend_on_the_batch(found):
    """Neither on its size, nor on how many programs share a conformation, nor on chunks or strides."""
    for name, other, n in (
        ("few", (LAST, "float64"), 13),
        ("shared", "few", 13),
        ("strided", "few", 13),
        ("chunks", "many", 147),
        ("many", ("pairs with a cutoff", "float64"), 32),
    ):
        for k in range(2):
            assert torch.equal(found[name][k][:n], found[other][k][:n]), (name, other)
    assert torch.equal(found["many"][0][128:], found["many"][0][:19])
    assert [part.shape for part in found["none"][:2]] == [(0,), (0, N_ATOMS, 3)]


@needs_triton
def test_alanine_dipeptide(interpret, shipped, geometries, reference, errors):
    physical = geometries[:28]
    forcefield = from_openmm(shipped, dtype=torch.float32)
    ((energy, force, complete),) = interpret([{"state": forcefield.to_state(), "positions": physical.float()}])
    assert complete
    du, df = errors((energy, force.double()), reference(shipped, physical))
    assert du < FLOAT32[0]
    assert df < FLOAT32[1]


@needs_triton
@pytest.mark.slow
def test_real_systems(interpret, system, geometries, reference, errors):
    """Some 20 s for each System and dtype."""
    forcefield = from_openmm(system)
    single = from_openmm(system, dtype=torch.float32)
    results = interpret(
        [
            {"state": forcefield.to_state(), "positions": geometries},
            {"state": single.to_state(), "positions": geometries[:28].float()},
        ]
    )
    if not results[0][2]:
        pytest.skip("a force of this System is left to autograd")
    for (energy, force, _), x, bounds in zip(
        results, (geometries, geometries[:28]), ((1e-6, 1e-5), FLOAT32), strict=True
    ):
        du, df = errors((energy, force.double()), reference(system, x))
        assert du < bounds[0]
        assert df < bounds[1]


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from boltzflow.forcefield import triton_bonded, triton_kernel, triton_pairs

architecture, dtype = int(sys.argv[1]), sys.argv[2]
for module in (triton_pairs, triton_bonded):
    for name in module.__all__:
        kernel, signature, constants = getattr(module, name), {}, {}
        for parameter in kernel.params:
            p = parameter.name
            signature[p] = "i32" if p in ("n", "stride", "group") or p.startswith("n_") else f"*{dtype}"
            signature[p] = "*fp64" if p == "energies" else "*i32" if p.endswith("_atoms") else signature[p]
            if parameter.is_constexpr:
                signature[p] = "constexpr"
                constants[p] = triton_kernel.BLOCK if p == "BLOCK" else True
        built = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=constants),
            target=GPUTarget("cuda", architecture, 32),
            options={name: value for name, value in triton_kernel.OPTIONS.items() if name != "BLOCK"},
        )
        print(name, len(built.asm["cubin"]), built.metadata.shared, built.asm["ptx"].count("bar.sync"))
"""


@needs_triton
@pytest.mark.parametrize(("architecture", "dtype"), [(90, "fp32"), (80, "fp64")])
def test_compiles_without_a_gpu(tmp_path, architecture, dtype):
    """To machine code, with no memory shared between threads and no barrier: no layout is converted on the way."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, str(architecture), dtype],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert len(lines) == 6
    for name, size, shared, barriers in lines:
        assert int(size) > 1000, name
        assert (shared, barriers) == ("0", "0"), name


def test_without_triton_it_runs_eagerly_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    triton_kernel.available.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="boltzflow"):
            assert [triton_kernel.available() for _ in range(2)] == [False, False]
    finally:
        triton_kernel.available.cache_clear()
    assert [record.message.split(":")[0] for record in caplog.records] == ["Triton is not installed"]


def test_positions_on_another_device_are_refused(shipped):
    with pytest.raises(ValueError, match=r"positions are on meta, the force field on cpu; move either with \.to"):
        from_openmm(shipped).compiled()(torch.zeros(2, 22, 3, device="meta"))


@pytest.mark.gpu
class TestOnTheDevice:
    """What needs a GPU."""

    @pytest.fixture(scope="class", params=[torch.float64, torch.float32])
    def fast(self, request, system):
        return from_openmm(system, dtype=request.param).to("cuda").compiled()

    def test_equals_openmm(self, fast, system, geometries, reference, errors):
        assert fast.backend == "triton"
        double = fast.dtype == torch.float64
        x = geometries if double else geometries[:28]
        energy, force = fast.energy_and_force(x.to("cuda", fast.dtype))
        du, df = errors((energy.cpu(), force.cpu().double()), reference(system, x))
        assert du < (1e-6 if double else FLOAT32[0])
        assert df < (1e-5 if double else FLOAT32[1])

    def test_is_deterministic_and_independent_of_the_batch(self, fast, geometries):
        x = geometries[:28].repeat(3000, 1, 1).to("cuda", fast.dtype)
        energy, force = fast.energy_and_force(x)
        for n in (len(x), 28, 1):
            again_energy, again_force = fast.energy_and_force(x[:n])
            assert torch.equal(again_energy, energy[:n])
            assert torch.equal(again_force, force[:n])
        assert torch.equal(energy[28:56], energy[:28])

    def test_runs_on_the_current_stream_without_waiting(self, fast, geometries):
        x = geometries[:28].to("cuda", fast.dtype)
        expected = fast.energy_and_force(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            late = x * 1  # exists only once the stream gets there
            torch.cuda.set_sync_debug_mode("error")
            try:
                found = fast.energy_and_force(late)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        stream.synchronize()
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)

    def test_keeps_to_the_bound_on_memory(self, fast, geometries):
        x = geometries[:28].repeat(20000, 1, 1).to("cuda", fast.dtype)
        fast.energy_and_force(x[:64])
        fast.eager.chunk_bytes = 2**24
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        energy, force = fast.energy_and_force(x)
        results = energy.nbytes + force.nbytes
        assert torch.cuda.max_memory_allocated() - before < results + 2 * 2**24
