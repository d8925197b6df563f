"""Annealing paths: values, forces, ends that never evaluate the other end."""

import pytest
import torch

from boltzflow.paths import GeometricPath, MixtureLevel, TemperedPath
from boltzflow.run import Run, make_rng
from boltzflow.targets import DoubleWell, Gaussian, Target


class Forbidden(Target):
    """Raises when it is evaluated."""

    def __init__(self):
        super().__init__(Gaussian(2).fields)

    def reduced_energy(self, state, context=None):
        raise AssertionError("evaluated")


class Nowhere(Forbidden):
    """Infinite everywhere."""

    def reduced_energy(self, state, context=None):
        return torch.full((len(state),), torch.inf, dtype=torch.float64)


def points(n=5):
    return Gaussian(2).double().sample(n, make_rng(1))


@pytest.mark.parametrize("level", [0.25, 0.5])
def test_the_geometric_path_mixes_energies_and_forces(level):
    base, target = Gaussian(2).double(), DoubleWell().double()
    run, x = Run(make_rng(0)), points()
    u, force, state = GeometricPath(base, target).at(level).energy_and_force(x, run)
    expected = (1 - level) * base.reduced_energy(x) + level * target.reduced_energy(x)
    assert torch.allclose(u, expected, rtol=1e-14)
    a, b = base.energy_and_force(x)[1]["x"], target.energy_and_force(x)[1]["x"]
    assert torch.allclose(force["x"], (1 - level) * a + level * b, rtol=1e-14)
    # the leaf energies serve every other level
    before = run.ledger.n_energy()
    again, _ = GeometricPath(base, target).at(0.9).energy(state, run)
    assert torch.allclose(again, 0.1 * base.reduced_energy(x) + 0.9 * target.reduced_energy(x), rtol=1e-14)
    assert run.ledger.n_energy() == before == 10


@pytest.mark.parametrize("other", [Forbidden, Nowhere])
def test_the_ends_do_not_evaluate_the_other_end(other):
    one, run, x = DoubleWell().double(), Run(make_rng(0)), points()
    for path, level in ((GeometricPath(one, other()), 0.0), (GeometricPath(other(), one), 1.0)):
        assert torch.equal(path.at(level).energy(x, run)[0], one.reduced_energy(x))
        u, force, _ = path.at(level).energy_and_force(x, run)
        assert torch.equal(u, one.reduced_energy(x))
        assert torch.equal(force["x"], one.energy_and_force(x)[1]["x"])


def test_the_tempered_path_scales_geometrically():
    target, run, x = DoubleWell().double(), Run(make_rng(0)), points()
    path = TemperedPath(Forbidden(), target, beta_0=0.01)
    for level, beta in ((0.0, 0.01), (0.5, 0.1), (1.0, 1.0)):
        u, force, _ = path.at(level).energy_and_force(x, run)
        assert torch.allclose(u, beta * target.reduced_energy(x), rtol=1e-12)
        assert torch.allclose(force["x"], beta * target.energy_and_force(x)[1]["x"], rtol=1e-12)


def test_values_outside_the_path_are_refused():
    target = DoubleWell().double()
    for level in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"expected λ in \[0, 1\]"):
            GeometricPath(target, target).at(level)
    for beta in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="beta_0"):
            TemperedPath(target, target, beta_0=beta)


def test_a_level_is_float64_for_float32_states():
    x = points().to(dtype=torch.float32)
    u, _ = MixtureLevel(((1.0, DoubleWell()),)).energy(x, Run(make_rng(0)))
    assert u.dtype == torch.float64
