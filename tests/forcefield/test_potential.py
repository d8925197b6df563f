"""The torch force field: derivatives, storage, accessors, and what it does with bad input."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import boltzflow
from boltzflow.errors import FormatError
from boltzflow.forcefield import ForceField, from_openmm


@pytest.fixture(scope="module")
def forcefield(shipped) -> ForceField:
    return from_openmm(shipped)


def test_gradcheck(system, geometries):
    forcefield = from_openmm(system)
    x = geometries[[0, 12]].clone().requires_grad_()
    assert torch.autograd.gradcheck(forcefield, x, eps=1e-7, rtol=1e-5, atol=1e-3, fast_mode=True)


def test_double_backward(forcefield, geometries):
    """A Hessian-vector product against finite differences of the forces."""
    x = geometries[8:12].clone().requires_grad_()
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(forcefield(x).sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * v).sum(), x)
    h = 1e-6
    ahead, behind = (forcefield.energy_and_force(x.detach() + sign * h * v)[1] for sign in (1, -1))
    torch.testing.assert_close(product, (behind - ahead) / (2 * h), rtol=1e-6, atol=1e-2)


def test_the_sum_of_the_terms_is_the_energy(forcefield, geometries):
    total = sum(term(geometries) for term in forcefield.terms)
    torch.testing.assert_close(total, forcefield(geometries), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energies_are_float64_and_forces_follow_the_positions(shipped, geometries, dtype):
    energy, force = from_openmm(shipped, dtype=dtype).energy_and_force(geometries.float())
    assert energy.dtype == torch.float64
    assert force.dtype == torch.float32
    assert not energy.requires_grad


def test_save_and_load_without_openmm(forcefield, geometries, tmp_path):
    """In a process where openmm cannot be imported at all, eager and compiled."""
    forcefield.save(tmp_path / "parameters.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["parameters.pt"]
    torch.save(geometries, tmp_path / "positions.pt")
    script = (
        "import sys\n"
        "sys.modules['openmm'] = None\n"
        "import torch\n"
        "from boltzflow.forcefield import ForceField\n"
        "loaded = ForceField.load('parameters.pt')\n"
        "assert (loaded.n_atoms, loaded.n_constraints, loaded.dtype) == (22, 0, torch.float64)\n"
        "x = torch.load('positions.pt')\n"
        "torch.save([loaded(x), loaded.compiled()(x)], 'energies.pt')\n"
    )
    root = str(Path(boltzflow.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    eager, compiled = torch.load(tmp_path / "energies.pt")
    assert torch.equal(eager, forcefield(geometries))
    assert torch.equal(compiled, forcefield.compiled()(geometries))


def test_foreign_files_are_refused(forcefield, tmp_path):
    torch.save({"format": "something else"}, tmp_path / "foreign.pt")
    with pytest.raises(FormatError, match="something else"):
        ForceField.load(tmp_path / "foreign.pt")
    (tmp_path / "damaged.pt").write_bytes((tmp_path / "foreign.pt").read_bytes()[:200])
    with pytest.raises(FormatError, match=r"damaged\.pt does not hold"):
        ForceField.load(tmp_path / "damaged.pt")
    with pytest.raises(FileNotFoundError):
        ForceField.load(tmp_path / "missing.pt")
    state = forcefield.to_state()
    state["terms"][0]["tensors"]["k"] = state["terms"][0]["tensors"]["k"].clone().fill_(float("nan"))
    with pytest.raises(FormatError, match=r"\['k'\] of HarmonicBonds are not finite"):
        ForceField.from_state(state)
    state["terms"][0]["tensors"].pop("k")
    with pytest.raises(FormatError, match=r"another version .*'k'"):
        ForceField.from_state(state)
    state["terms"][0]["kind"] = "Mystery"
    with pytest.raises(FormatError, match="Mystery"):
        ForceField.from_state(state)


def test_accessors(forcefield, shipped, minimised):
    bonds, angles = forcefield.bonds, forcefield.angles
    assert bonds.atoms.shape == (21, 2)
    assert angles.atoms.shape == (36, 3)
    force = shipped.getForce(0)
    for row in range(force.getNumBonds()):
        i, j, r0, k = force.getBondParameters(row)
        assert bonds.atoms[row].tolist() == [i, j]
        assert (bonds.r0[row].item(), bonds.k[row].item()) == (r0._value, k._value)
    length = (minimised[bonds.atoms[:, 0]] - minimised[bonds.atoms[:, 1]]).norm(dim=-1)
    assert (length - bonds.r0).abs().max() < 0.003
    torsions = forcefield.torsions
    assert torsions.periodicity.dtype == torch.int64
    assert set(torsions.periodicity.tolist()) <= {1, 2, 3, 4}
    assert len(torsions.atoms) == len(torsions.k) == shipped.getForce(2).getNumTorsions()


def test_accessors_of_a_force_field_without_such_terms():
    empty = ForceField([], n_atoms=3)
    assert empty.bonds.atoms.shape == (0, 2)
    assert empty.torsions.periodicity.dtype == torch.int64
    assert torch.equal(empty(torch.zeros(4, 3, 3)), torch.zeros(4, dtype=torch.float64))
    for forcefield in (empty, empty.compiled()):
        assert forcefield.energy_and_force(torch.ones(4, 3, 3))[1].abs().max() == 0


@pytest.mark.parametrize("shape", [(22, 3), (5, 21, 3), (5, 66)])
def test_wrong_shapes_are_named(forcefield, shape):
    with pytest.raises(Exception, match=r"\(batch, 22, 3\)|batch n_atoms 3"):
        forcefield(torch.zeros(shape, dtype=torch.float64))


def test_empty_batch(forcefield):
    energy, force = forcefield.energy_and_force(torch.zeros(0, 22, 3))
    assert energy.shape == (0,)
    assert force.shape == (0, 22, 3)


def test_nan_stays_in_its_row(forcefield, geometries):
    x = geometries[:4].clone()
    x[1, 3, 2] = float("nan")
    energy, force = forcefield.energy_and_force(x)
    assert energy.isnan().tolist() == [False, True, False, False]
    assert force[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_atoms_are_huge_never_nan(shipped, minimised, dtype):
    x = minimised[None].repeat(22, 1, 1)
    for atom in range(22):
        x[atom, atom] = x[atom, (atom + 11) % 22]
    energy = from_openmm(shipped, dtype=dtype)(x)
    assert (energy > 1e15).all()
