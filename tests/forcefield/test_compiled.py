"""The compiled kernel against its eager twin, its gradients, and what happens without a compiler."""

import copy
import logging
import os
import pickle
import shutil

import pytest
import torch

from boltzflow.forcefield import from_openmm, kernel
from boltzflow.forcefield.registry import CONVERTERS

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++", "c++")), reason="no C++ compiler"
)


@pytest.fixture
def fresh_library(monkeypatch, tmp_path):
    """Forget the loaded library before and after, and keep what is compiled meanwhile in an empty folder."""
    monkeypatch.setenv("BOLTZFLOW_CACHE_DIR", str(tmp_path))
    kernel.library.cache_clear()
    yield tmp_path
    kernel.library.cache_clear()


@pytest.fixture(scope="module")
def compiled(shipped):
    return from_openmm(shipped).compiled()


@needs_compiler
def test_a_compiler_is_used(compiled):
    assert compiled.backend == "compiled"


@needs_compiler
@pytest.mark.parametrize("name", ["shipped", "obc2", "gbsaobc", "gbn", "gbn2"])
def test_the_kernel_covers_every_term(make_system, geometries, name):
    forcefield = from_openmm(make_system(name)).compiled()
    forcefield(geometries[:1])
    assert forcefield._kernel.rest is None


def test_equals_the_eager_twin(system, geometries):
    eager = from_openmm(system)
    energy, force = eager.energy_and_force(geometries)
    fast_energy, fast_force = eager.compiled().energy_and_force(geometries)
    torch.testing.assert_close(fast_energy, energy, rtol=1e-11, atol=1e-11)
    scale = force.norm(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(fast_force / scale, force / scale, rtol=0, atol=1e-11)


@needs_compiler
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 31, 200])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_any_batch_on_any_number_of_threads(compiled, minimised, n, n_threads):
    """Tiles are padded and split between threads; each conformation must come back in its place."""
    noise = torch.randn(n, 22, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = minimised + 0.01 * noise
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        energy, force = compiled.energy_and_force(x)
    finally:
        torch.set_num_threads(before)
    for row in range(n):
        alone = compiled.energy_and_force(x[row : row + 1])
        assert torch.equal(energy[row : row + 1], alone[0])
        assert torch.equal(force[row : row + 1], alone[1])


def test_strided_positions(compiled, geometries):
    strided = geometries.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(compiled(strided), compiled(geometries))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_position_gives_nan_in_its_row_only(shipped, geometries, dtype, bad):
    compiled = from_openmm(shipped, dtype=dtype).compiled()
    good = compiled.energy_and_force(geometries[:20])
    for atom in range(22):
        x = geometries[:20].clone()
        x[5, atom, atom % 3] = bad
        energy, force = compiled.energy_and_force(x)
        assert not energy[5].isfinite()
        rest = torch.arange(20) != 5
        assert torch.equal(energy[rest], good[0][rest])
        assert torch.equal(force[rest], good[1][rest])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_atoms_are_huge_never_nan(shipped, minimised, dtype):
    x = minimised[None].repeat(22, 1, 1)
    for atom in range(22):
        x[atom, atom] = x[atom, (atom + 11) % 22]
    energy = from_openmm(shipped, dtype=dtype).compiled()(x)
    assert (energy > 1e15).all()


def test_backward_uses_the_force_of_the_forward_pass(compiled, geometries, monkeypatch):
    calls = []
    evaluate = type(compiled).energy_and_force
    monkeypatch.setattr(type(compiled), "energy_and_force", lambda self, x: calls.append(len(x)) or evaluate(self, x))
    x = geometries[:10].clone().requires_grad_()
    weight = torch.linspace(-1, 2, 10, dtype=torch.float64)
    (weight * compiled(2 * x)).sum().backward()
    assert calls == [10]
    force = evaluate(compiled, 2 * geometries[:10])[1]
    torch.testing.assert_close(x.grad, -2 * weight[:, None, None] * force, rtol=1e-13, atol=0)


def test_masked_rows_do_not_poison_the_gradient(compiled, geometries):
    x = geometries[:4].clone()
    x[2] = float("nan")
    x.requires_grad_()
    energy = compiled(x)
    torch.where(energy.isfinite(), energy, 0.0).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[2] == 0).all()
    assert (x.grad[[0, 1, 3]] != 0).any()


def test_double_backward_equals_the_eager_twin(compiled, geometries):
    products = []
    for forcefield in (compiled, compiled.eager):
        x = geometries[8:12].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(forcefield(x).sum(), x, create_graph=True)
        products.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(products[0], products[1], rtol=1e-12, atol=0)
    assert products[0].abs().max() > 0


def test_pickles_and_changes_dtype(compiled, geometries):
    clone = pickle.loads(pickle.dumps(compiled))
    assert torch.equal(clone(geometries), compiled(geometries))
    clone.float()
    assert clone.dtype == torch.float32
    torch.testing.assert_close(clone(geometries[:16]), compiled(geometries[:16]), rtol=1e-4, atol=1e-2)
    assert clone.energy_and_force(geometries.float())[1].dtype == torch.float32


def test_two_forces_of_a_kind(make_system, geometries, reference, errors):
    system = make_system("gbsaobc")
    other = make_system("obc1")
    for force in other.getForces():
        if type(force).__name__ in CONVERTERS:
            system.addForce(copy.deepcopy(force))
    du, df = errors(from_openmm(system).compiled().energy_and_force(geometries), reference(system, geometries))
    assert du < 1e-6
    assert df < 1e-5


def test_without_a_compiler_it_runs_eagerly_and_says_so_once(shipped, geometries, fresh_library, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(fresh_library))
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING, logger="boltzflow"):
        forcefield = from_openmm(shipped).compiled()
        energy, force = forcefield.energy_and_force(geometries)
        from_openmm(shipped).compiled()
    assert forcefield.backend == "eager"
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "no C++ compiler found (CXX, g++, clang++, c++)"
    ]
    expected = forcefield.eager.energy_and_force(geometries)
    assert torch.equal(energy, expected[0])
    assert torch.equal(force, expected[1])
    x = geometries[:3].clone().requires_grad_()
    forcefield(x).sum().backward()
    torch.testing.assert_close(x.grad, -force[:3])


def test_a_broken_compiler_is_named(shipped, fresh_library, monkeypatch, caplog):
    broken = fresh_library / "broken-compiler"
    broken.write_text("#!/bin/sh\necho 'no such thing as c++' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with caplog.at_level(logging.WARNING, logger="boltzflow"):
        assert from_openmm(shipped).compiled().backend == "eager"
    assert "broken-compiler" in caplog.text
    assert "no such thing as c++" in caplog.text
    assert len(caplog.records) == 1


@needs_compiler
def test_compiles_once_into_the_cache(shipped, fresh_library, caplog):
    with caplog.at_level(logging.INFO, logger="boltzflow.native"):
        from_openmm(shipped).compiled()
        kernel.library.cache_clear()
        assert from_openmm(shipped).compiled().backend == "compiled"
    assert len([record for record in caplog.records if "compiled the force-field kernel" in record.message]) == 1
    assert [path.suffix for path in (fresh_library / "kernels").iterdir()] == [".so"]


@needs_compiler
def test_an_unwritable_cache_is_no_obstacle(shipped, fresh_library, monkeypatch):
    (fresh_library / "file").write_text("")
    monkeypatch.setenv("BOLTZFLOW_CACHE_DIR", str(fresh_library / "file"))
    assert from_openmm(shipped).compiled().backend == "compiled"
