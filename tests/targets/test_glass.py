"""The ternary liquid: its published constants, energies from a plain double loop, forces, symmetries, temperature."""

import math

import numpy as np
import pytest
import torch

from boltzflow.paths import TemperedPath
from boltzflow.run import Run, make_rng
from boltzflow.targets import TernaryLiquid
from boltzflow.targets.bases import FramesBase
from boltzflow.targets.glass_kernel import library
from boltzflow.testing import assert_target

# the published constants and tables, written out once more
C0, C2, C4 = 0.04049023795, -0.00970155098, 0.00062012616
SIGMA = {11: 1.0, 22: 0.88, 33: 0.94, 12: 0.8, 13: 0.9, 23: 0.8}
EPSILON = {11: 1.0, 22: 0.5, 33: 0.75, 12: 1.5, 13: 0.75, 23: 1.5}


def pair(kind, r):
    x = r / SIGMA[kind]
    return 4 * EPSILON[kind] * (x**-12 - x**-6 + C0 + C2 * x**2 + C4 * x**4) if x < 2.5 else 0.0


def double_loop(x, counts, length):
    species = [a for a, n in enumerate(counts, 1) for _ in range(n)]
    total = 0.0
    for i in range(len(x)):
        for j in range(i):
            shifts = [(x[i] - x[j]) + length * np.array([a, b]) for a in (-1, 0, 1) for b in (-1, 0, 1)]
            r = min(float(np.hypot(*d)) for d in shifts)
            total += pair(10 * min(species[i], species[j]) + max(species[i], species[j]), r)
    return total


def disordered(liquid, n, seed=0):
    """Rows with no overlap worse than some kT: a lattice, shaken."""
    rng = make_rng(seed)
    x = liquid.start(n, rng)["positions"]
    return liquid.state(liquid.wrap(x + 0.08 * torch.randn(x.shape, dtype=x.dtype, generator=rng)))


@pytest.mark.parametrize(("kind", "counts"), [(11, (2, 0, 0)), (12, (1, 1, 0)), (23, (0, 1, 1)), (33, (0, 0, 2))])
def test_a_pair_follows_the_published_curve_and_ends_smoothly(kind, counts):
    liquid = TernaryLiquid(counts, length=6.0).double()
    cut = 2.5 * SIGMA[kind]
    r = torch.tensor([0.85, 1.0, 1.3, cut - 1e-4, cut, cut + 1e-4], dtype=torch.float64).requires_grad_()
    x = torch.stack([torch.zeros_like(r), r], 1)[:, :, None] * torch.tensor([0.6, 0.8], dtype=torch.float64)
    u = liquid.reduced_energy(liquid.state(x))
    expected = torch.tensor([pair(kind, distance) for distance in r.tolist()], dtype=torch.float64)
    torch.testing.assert_close(u.detach(), expected, rtol=0, atol=5e-9)
    (slope,) = torch.autograd.grad(u.sum(), r, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), r)
    # V, V' and V'' vanish at the cutoff; V''' does not, so just inside it they are of third, second and first order
    assert u[3:].abs().max() < 1e-11
    assert slope[3:].abs().max() < 1e-6
    assert curvature[3:].abs().max() < 1e-2
    assert u[5].abs() < 1e-15
    assert slope[5] == curvature[5] == 0


def test_energies_of_disordered_liquids_agree_with_a_double_loop():
    liquid = TernaryLiquid(temperature=0.4).double()
    assert liquid.length == pytest.approx(32.8962 / math.sqrt(30), rel=1e-12)
    x = disordered(liquid, 3)
    expected = [double_loop(row.numpy(), (20, 11, 12), liquid.length) / 0.4 for row in x["positions"]]
    found = liquid.reduced_energy(x)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=0)


def test_contract_of_targets():
    liquid = TernaryLiquid((5, 4, 3), length=5.2).double()
    assert_target(liquid, make_rng(1), state=disordered(liquid, 6), contexts=(None, {"temperature": 0.3}))
    assert liquid.measure == "torus"
    assert liquid.dimension == 24


def test_compiled_energies_and_forces_are_those_of_the_eager_twin(monkeypatch):
    liquid = TernaryLiquid(temperature=0.4).double()
    if library() is None:
        pytest.skip("no C++ compiler")
    x = disordered(liquid, 37)["positions"]
    x[5, 3, 0] = torch.nan
    compiled = liquid.energy_and_force(liquid.state(x)), liquid.reduced_energy(liquid.state(x))
    monkeypatch.setattr(TernaryLiquid, "_compiles", lambda self, x: False)
    (u, force), again = compiled
    expected, eager = liquid.energy_and_force(liquid.state(x))
    rest = torch.arange(37) != 5
    assert torch.isnan(u[5])
    torch.testing.assert_close(u[rest], expected[rest], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(again[rest], u[rest], rtol=1e-14, atol=0)
    torch.testing.assert_close(force["positions"][rest], eager["positions"][rest], rtol=1e-9, atol=1e-9)


def test_force_in_closed_form_is_that_of_autograd():
    liquid = TernaryLiquid(temperature=0.7).double()
    x = disordered(liquid, 4)
    leaf = x["positions"].clone().requires_grad_()
    u = liquid.reduced_energy(liquid.state(leaf))
    (gradient,) = torch.autograd.grad(u.sum(), leaf)
    energy, force = liquid.energy_and_force(x)
    torch.testing.assert_close(energy, u.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(force["positions"], -gradient, rtol=1e-9, atol=1e-9)


def test_symmetries_of_the_torus_and_of_the_species():
    liquid = TernaryLiquid().double()
    x, rng = disordered(liquid, 4)["positions"], make_rng(2)
    u = liquid.reduced_energy(liquid.state(x))
    shift = 3 * torch.randn(4, 1, 2, dtype=torch.float64, generator=rng)
    images = liquid.length * torch.randint(-2, 3, (4, 43, 2), generator=rng).double()
    quarter = torch.stack([-x[..., 1], x[..., 0]], -1)
    alike = torch.cat([torch.arange(20).flip(0), 20 + torch.arange(11).flip(0), 31 + torch.arange(12)])
    for moved in (x + shift, x + images, liquid.wrap(x + shift), quarter, x[:, alike]):
        torch.testing.assert_close(liquid.reduced_energy(liquid.state(moved)), u, rtol=1e-10, atol=1e-10)
    unlike = x.clone()
    unlike[:, [0, 30]] = x[:, [30, 0]]
    assert (liquid.reduced_energy(liquid.state(unlike)) - u).abs().min() > 1e-3


def test_energy_under_dilation_is_the_virial():
    liquid = TernaryLiquid((5, 4, 3), length=5.2).double()
    x = disordered(liquid, 5)
    differences = liquid.nearest_image(x["positions"][:, :, None] - x["positions"][:, None])
    # of every pair r·F, from the force between the two alone
    virial = torch.zeros(5, dtype=torch.float64)
    for i, j in liquid._pairs.T.tolist():
        counts = torch.bincount(liquid.species[[i, j]], minlength=3).tolist()
        order = sorted((i, j), key=lambda k: int(liquid.species[k]))
        two = TernaryLiquid(counts, length=liquid.length).double()
        _, force = two.energy_and_force(two.state(x["positions"][:, order]))
        virial += (differences[:, order[0], order[1]] * force["positions"][:, 0]).sum(-1)

    def at(scale):
        # a box dilated with the particles in it; the nearest images stay the same
        grown = TernaryLiquid((5, 4, 3), length=liquid.length * scale).double()
        return grown.reduced_energy(grown.state(x["positions"] * scale))

    h = 1e-5
    slope = (at(1 + h) - at(1 - h)) / (2 * h)
    torch.testing.assert_close(-slope, virial, rtol=1e-6, atol=1e-4)


def test_energies_of_moved_particles_add_up_to_the_change_of_the_energy():
    liquid = TernaryLiquid(temperature=0.5).double()
    x, rng = disordered(liquid, 6)["positions"], make_rng(3)
    columns = x.permute(2, 1, 0).contiguous()
    for context in (None, {"temperature": 0.2}):
        u = liquid.reduced_energy(liquid.state(x), context)
        for slots in ((7,), (3, 25), (40, 21)):
            old = columns[:, list(slots)].transpose(0, 1)
            noise = torch.randn(2, 6, dtype=torch.float64, generator=rng)
            new = old + 0.1 * noise if len(slots) == 1 else old.flip(0)
            moved = x.clone()
            moved[:, list(slots)] = new.permute(2, 0, 1)
            parts = liquid.particle_energies(columns, torch.cat([old, new]), slots * 2, without=slots, context=context)
            found = parts[len(slots) :].sum(0) - parts[: len(slots)].sum(0)
            expected = liquid.reduced_energy(liquid.state(moved), context) - u
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_temperatures_of_the_target_the_context_and_a_tempered_path_are_one():
    cold, hot = TernaryLiquid(temperature=0.3).double(), TernaryLiquid(temperature=1.0).double()
    x = disordered(cold, 3)
    u = hot.reduced_energy(x)
    torch.testing.assert_close(cold.reduced_energy(x, {"temperature": 1.0}), u)
    temperature = torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(cold.reduced_energy(x, {"temperature": temperature}), u)
    base = FramesBase(x, hot)
    level = TemperedPath(base, cold, beta_0=0.3).at(0.0)
    torch.testing.assert_close(level.energy(x, Run(make_rng(0)))[0], u)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": (1, 0, 0)}, "two particles"),
        ({"counts": (2, 3)}, "three numbers"),
        ({"counts": (3, 3, 3)}, "twice the longest cutoff"),
        ({"temperature": 0.0}, "temperature"),
        ({"length": math.inf}, "length"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TernaryLiquid(**arguments)


def test_particles_on_one_another_have_infinite_energy():
    liquid = TernaryLiquid().double()
    x = disordered(liquid, 2)["positions"]
    x[1, 4] = x[1, 9]
    u = liquid.reduced_energy(liquid.state(x))
    assert torch.isfinite(u[0])
    assert u[1] == torch.inf


def test_a_start_has_every_particle_on_a_site_of_its_own():
    x = TernaryLiquid().start(3, make_rng(0))["positions"]
    sites = (x * 7 / TernaryLiquid().length - 0.5).round().long()
    assert x.dtype == torch.float64
    assert all(len(row.unique(dim=0)) == 43 for row in sites)
    assert not torch.equal(x[0], x[1])
    assert TernaryLiquid().float().start(2, make_rng(0))["positions"].dtype == torch.float32
