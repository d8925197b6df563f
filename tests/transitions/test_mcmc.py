"""Metropolis, MALA, HMC and Langevin kernels: invariance, counts, failures."""

import math

import pytest
import torch

from boltzflow.paths import path
from boltzflow.run import Ledger, Run, make_rng
from boltzflow.state import Space
from boltzflow.targets.target import Target
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.langevin import OverdampedLangevin
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.metropolis import RandomWalkMetropolis, centred_normal
from boltzflow.transitions.step_size import per_row

torch.set_num_threads(1)
LINE = {"x": Space("line", (2,))}


class DoubleWell(Target):
    """u = -x1/2 - 6 x1² + x1⁴ + x2²/2."""

    def __init__(self):
        super().__init__(LINE, name="well")

    def reduced_energy(self, state, context=None):
        a, b = state["x"].unbind(1)
        return -0.5 * a - 6 * a**2 + a**4 + 0.5 * b**2


class Harmonic(Target):
    """Independent normals of different widths on a named field."""

    def __init__(self, widths, fields):
        super().__init__(fields, name="harmonic")
        self.widths = widths

    def reduced_energy(self, state, context=None):
        (name,) = self.fields
        return 0.5 * (state[name] / self.widths).square().flatten(1).sum(1)


class Walled(Target):
    """Half of a normal: +inf for x1 < 0, NaN for x1 > 3."""

    def __init__(self):
        super().__init__(LINE, name="walled")

    def reduced_energy(self, state, context=None):
        a, b = state["x"].unbind(1)
        u = 0.5 * (a**2 + b**2)
        return torch.where(a < 0, torch.inf, torch.where(a > 3, torch.nan, u))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "kernel",
    [
        RandomWalkMetropolis(0.8, n_steps=10),
        MALA(0.3, n_steps=10),
        HMC(0.5, n_leapfrog=3, n_steps=5),
        HMC(0.3, n_leapfrog=3, n_steps=5, masses={"x": torch.tensor([0.2, 3.0], dtype=torch.float64)}),
    ],
    ids=["metropolis", "mala", "hmc", "hmc-masses"],
)
def test_kernels_leave_a_harmonic_target_invariant(kernel, dtype):
    widths = torch.tensor([0.7, 1.8], dtype=dtype)
    target = Harmonic(widths, LINE)
    run = Run(make_rng(3), level=path.MixtureLevel(((1.0, target),)))
    n = 20_000
    state = target.state(widths * torch.randn(n, 2, generator=run.rng, dtype=dtype))
    start = state["x"]
    moved, ratio = kernel(state, run)
    assert moved["x"].dtype == dtype
    assert ratio.dtype == torch.float64
    assert (moved["x"] - start).abs().mean() > 0.3
    scaled = (moved["x"] / widths).double()
    z = torch.cat([scaled.mean(0) * math.sqrt(n), (scaled.square().mean(0) - 1) / math.sqrt(2 / n)])
    assert z.abs().max() < 3.5
    assert 0.3 < kernel.acceptance_rate() < 1.0
    torch.testing.assert_close(
        ratio, target.reduced_energy(moved).double() - target.reduced_energy(state).double(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "kernel", [RandomWalkMetropolis(0.2, n_steps=20), MALA(0.02, n_steps=20), HMC(0.2, n_leapfrog=3, n_steps=8)]
)
def test_particles_without_translations_keep_their_centre_and_equipartition(kernel):
    fields = {"r": Space("line", (4, 2), dimension=6)}
    target = Harmonic(torch.tensor(0.5, dtype=torch.float64), fields)
    run = Run(make_rng(5), level=path.MixtureLevel(((1.0, target),)))
    n = 10_000
    x = 0.5 * torch.randn(n, 4, 2, generator=run.rng, dtype=torch.float64)
    moved, _ = kernel(target.state(x - x.mean(1, keepdim=True)), run)
    assert moved["r"].mean(1).abs().max() < 1e-12
    u = target.reduced_energy(moved)
    assert abs(float(u.mean()) - 3) * math.sqrt(n / 3) < 3.5


def test_hmc_with_masses_keeps_the_centre_of_mass():
    target = Harmonic(torch.tensor(1.0, dtype=torch.float64), {"r": Space("line", (3, 3), dimension=6)})

    class Spring(Harmonic):
        def reduced_energy(self, state, context=None):
            return 0.5 * (state["r"] - state["r"].roll(1, 1)).square().flatten(1).sum(1)

    target = Spring(None, target.fields)
    mass = torch.tensor([[1.0], [4.0], [9.0]], dtype=torch.float64)
    kernel = HMC(0.2, n_leapfrog=4, n_steps=3, masses={"r": mass})
    run = Run(make_rng(5), level=path.MixtureLevel(((1.0, target),)))
    state = target.state(torch.randn(50, 3, 3, generator=run.rng, dtype=torch.float64))
    moved, _ = kernel(state, run)
    torch.testing.assert_close((mass * moved["r"]).sum(1), (mass * state["r"]).sum(1), rtol=0, atol=1e-12)


def test_circle_field_samples_von_mises_and_stays_in_range():
    class VonMises(Target):
        def reduced_energy(self, state, context=None):
            return -2.0 * torch.cos(state["phi"] - 3.0).sum(1)

    target = VonMises({"phi": Space("circle", (1,))}, name="von mises")
    expected = float(torch.special.i1(torch.tensor(2.0)) / torch.special.i0(torch.tensor(2.0)))
    for kernel in (RandomWalkMetropolis(1.5, n_steps=30), MALA(0.4, n_steps=30), HMC(0.6, n_leapfrog=3, n_steps=10)):
        run = Run(make_rng(9), level=path.MixtureLevel(((1.0, target),)))
        phi = 2 * math.pi * torch.rand(20_000, 1, generator=run.rng, dtype=torch.float64) - math.pi
        moved, _ = kernel(target.state(phi), run)
        c = torch.cos(moved["phi"] - 3.0)
        assert moved["phi"].abs().max() <= math.pi
        assert abs(float(c.mean()) - expected) / float(c.std()) * math.sqrt(len(c)) < 3.5


@pytest.mark.parametrize(
    ("kernel", "n_energy", "n_force"),
    [
        (RandomWalkMetropolis(0.3, n_steps=4), 5, 0),
        (MALA(0.02, n_steps=4), 5, 5),
        (HMC(0.1, n_leapfrog=3, n_steps=4), 13, 13),
        (OverdampedLangevin(0.01), 2, 2),
    ],
    ids=["metropolis", "mala", "hmc", "langevin"],
)
def test_evaluations_are_counted_and_never_repeated(kernel, n_energy, n_force):
    target = DoubleWell()
    run = Run(make_rng(1), ledger=Ledger(), level=path.MixtureLevel(((1.0, target),)))
    state = target.state(torch.randn(7, 2, generator=run.rng, dtype=torch.float64))
    moved, _ = kernel(state, run)
    assert (run.ledger.n_energy(), run.ledger.n_force()) == (7 * n_energy, 7 * n_force)
    kernel(moved, run)  # the cached start is used
    assert (run.ledger.n_energy(), run.ledger.n_force()) == (7 * (2 * n_energy - 1), 7 * max(2 * n_force - 1, 0))


def test_ulas_ratio_of_a_pair_is_that_of_the_path():
    target = DoubleWell()
    run = Run(make_rng(1), level=path.MixtureLevel(((1.0, target),)))
    block = OverdampedLangevin(0.05)
    x = target.state(torch.randn(64, 2, generator=run.rng, dtype=torch.float64))
    y, r = block(x, run)
    torch.testing.assert_close(block.log_ratio(x, y, run), r)
    z, minus = block.reverse(y, run)
    torch.testing.assert_close(block.log_ratio(z, y, run), -minus)

    def log_density(a, b):
        force = -torch.autograd.functional.jacobian(lambda t: target.reduced_energy(target.state(t)).sum(), a)
        return -(b - a - 0.05 * force).square().sum(1) / 0.2

    torch.testing.assert_close(r, log_density(y["x"], x["x"]) - log_density(x["x"], y["x"]))


def test_non_finite_energies_are_rejected_and_rows_that_have_one_stay():
    target = Walled()
    run = Run(make_rng(2), level=path.MixtureLevel(((1.0, target),)))
    x = torch.randn(2000, 2, generator=run.rng, dtype=torch.float64)
    x[:1000, 0] = x[:1000, 0].abs().clamp(max=2.9)
    x[1000:, 0] = -0.1
    for kernel in (RandomWalkMetropolis(0.5, n_steps=3), MALA(0.1, n_steps=3), HMC(0.3, n_leapfrog=3, n_steps=2)):
        moved, ratio = kernel(target.state(x), run)
        u = target.reduced_energy(moved)
        assert torch.isfinite(u[:1000]).all()
        assert torch.equal(moved["x"][1000:], x[1000:])
        assert (ratio[1000:] == 0).all()
        # a chain of `step` alone may come in
        assert torch.isfinite(target.reduced_energy(kernel.step(target.state(x), run))[1000:]).any()
    assert run.ledger.as_dict()["nonfinite"]["walled"] > 0


def test_step_sizes_may_differ_by_row():
    target = DoubleWell()
    run = Run(make_rng(2), level=path.MixtureLevel(((1.0, target),)))
    step = torch.tensor([1e-9, 0.3], dtype=torch.float64).repeat(50)
    for kernel in (RandomWalkMetropolis(step), HMC(step, n_leapfrog=2)):
        state = target.state(torch.ones(100, 2, dtype=torch.float64))
        moved = kernel.step(state, run)
        distance = (moved["x"] - state["x"]).norm(dim=1)
        assert distance[0::2].max() < 1e-6
        assert distance[1::2].max() > 0.05
        assert kernel.last_acceptance.shape == (100,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MALA(0.0),
        lambda: RandomWalkMetropolis(math.nan),
        lambda: HMC(0.1, n_leapfrog=0),
        lambda: MALA(0.1, n_steps=0),
    ],
)
def test_bad_settings_are_named(make):
    with pytest.raises(ValueError, match=r"step_size|n_leapfrog|n_steps"):
        make()


def test_a_sphere_is_refused():
    target = Harmonic(1.0, {"q": Space("sphere", (4,), dimension=3)})
    run = Run(make_rng(2), level=path.MixtureLevel(((1.0, target),)))
    with pytest.raises(ValueError, match="sphere"):
        RandomWalkMetropolis(0.1)(target.state(torch.randn(3, 4, dtype=torch.float64)), run)


def test_counts_are_not_part_of_a_checkpoint():
    kernel = MALA(0.02)
    assert list(kernel.state_dict()) == ["step_size"]
    assert math.isnan(kernel.acceptance_rate())


def test_noise_helpers_keep_shape_and_centre():
    run = Run(make_rng(0))
    x = torch.zeros(5, 3, 2, dtype=torch.float64)
    assert centred_normal(x, Space("line", (3, 2), dimension=4), run).mean(1).abs().max() < 1e-15
    assert per_row(torch.ones(5, dtype=torch.float64), x).shape == (5, 1, 1)
