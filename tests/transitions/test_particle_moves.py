"""Displacements and species swaps: the contract on exact samples, and one step at O(N) against whole energies."""

import copy
import math

import pytest
import torch

from boltzflow.paths import GeometricPath
from boltzflow.run import Run, make_rng
from boltzflow.simulation.parallel_tempering import TemperedRows
from boltzflow.state import Space
from boltzflow.targets import TernaryLiquid
from boltzflow.targets.glass_kernel import library
from boltzflow.targets.target import Target
from boltzflow.testing import assert_detailed_balance, assert_leaves_invariant, check_transition, run_at
from boltzflow.transitions import ParticleDisplacement, ParticleEnergies, SpeciesSwap, swap_monte_carlo

SPECIES = (0, 0, 1, 1, 1)


class Springs(Target):
    """Springs between all particles, stiffer between some species, and wells of a species' own: a normal density."""

    def __init__(self, *, local):
        super().__init__({"positions": Space("line", (5, 2))}, name="springs")
        kinds = torch.tensor(SPECIES)
        spring = torch.tensor([[0.2, 0.8], [0.8, 0.4]], dtype=torch.float64)[kinds[:, None], kinds[None]]
        self.spring = spring - torch.diag(spring.diag())
        self.well = torch.tensor([0.5, 2.0], dtype=torch.float64)[kinds]
        precision = torch.diag(self.well + self.spring.sum(1)) - self.spring
        self.factor = torch.linalg.cholesky(precision).mT
        if local:
            self.particle_energies = self._particle_energies

    def reduced_energy(self, state, context=None):
        x = state["positions"].double()
        squared = (x[:, :, None] - x[:, None]).square().sum(-1)
        return 0.25 * (self.spring * squared).sum((1, 2)) + 0.5 * (self.well * x.square().sum(-1)).sum(1)

    def sample(self, n, rng, context=None):
        noise = torch.randn(5, 2 * n, dtype=torch.float64, generator=rng)
        x = torch.linalg.solve_triangular(self.factor, noise, upper=True)
        return self.state(x.reshape(5, n, 2).permute(1, 0, 2).contiguous())

    def _particle_energies(self, columns, places, slots, *, without, context=None):
        others = [i for i in range(5) if i not in without]
        squared = (columns[:, others] - places[:, :, None]).square().sum(1)
        springs = self.spring[list(slots)][:, others, None]
        return 0.5 * (springs * squared).sum(1) + 0.5 * self.well[list(slots), None] * places.square().sum(1)


def kernels(n_steps=3):
    return {"displacement": ParticleDisplacement(0.8, n_steps=n_steps), "swap": SpeciesSwap(SPECIES, n_steps=n_steps)}


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("name", ["displacement", "swap"])
def test_detailed_balance(name, local):
    # one trial: several are reversible only over all the particles that rows may have drawn, which rows share
    target, kernel = Springs(local=local), kernels(n_steps=1)[name]
    assert isinstance(target, ParticleEnergies) == local
    assert_detailed_balance(kernel, target, n=20_000, rng=make_rng(1))
    assert_leaves_invariant(kernels()[name], target, n=20_000, rng=make_rng(2))
    assert 0.1 < kernel.acceptance_rate() < 0.9


@pytest.mark.parametrize("name", ["displacement", "swap"])
def test_contract_of_transitions(name):
    target, rng = Springs(local=True), make_rng(2)
    check_transition(kernels()[name].double(), target.sample(8, rng), run_at(target, rng))


def liquid_rows(temperature=0.6, n=5):
    liquid = TernaryLiquid(temperature=temperature).double()
    x = liquid.start(n, make_rng(3))["positions"]
    noise = torch.randn(x.shape, dtype=x.dtype, generator=make_rng(4))
    return liquid, liquid.state(x + 0.06 * noise)


def level_of(name, liquid, n):
    betas = torch.linspace(0.2, 1.0, n, dtype=torch.float64)
    return {"target": run_at(liquid, make_rng(5)).level, "tempered": TemperedRows(liquid, betas)}[name]


def evaluations(n, *trials_by_size):
    """Of trials on one particle, on two: their share of the pairs, and one evaluation of the result, per row."""
    shares = [2 * k * (n - k) * trials * 2 / (n * (n - 1)) for k, trials in enumerate(trials_by_size, 1)]
    return [math.ceil(share * 5) + 5 for share in shares if share]


@pytest.mark.parametrize("level", ["target", "tempered"])
def test_energies_of_particles_and_whole_energies_make_the_same_chain(level, monkeypatch):
    liquid, state = liquid_rows()
    ends, costs = [], []
    for local in (True, False):
        if not local:
            monkeypatch.setattr("boltzflow.transitions.particle_moves._one_term", lambda run: None)
        run, now, made = Run(make_rng(6), level=level_of(level, liquid, 5)), state, []
        for kernel, calls in ((ParticleDisplacement(0.05), 60), (SpeciesSwap(liquid.species), 40)):
            for _ in range(calls):
                now = kernel.step(now, run)
                made.append(kernel.last_acceptance)
            assert 0 < kernel.acceptance_rate() < 1
        ends.append((now["positions"], run.energy(now)[0], *made))
        costs.append(run.ledger.n_energy())
    for mine, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
    assert costs == [60 * evaluations(43, 1)[0] + 40 * evaluations(43, 0, 1)[0], (1 + 100) * 5]


@pytest.mark.parametrize("level", ["target", "tempered"])
def test_compiled_trials_and_their_eager_twin_make_the_same_chain(level, monkeypatch):
    liquid, state = liquid_rows()
    if library() is None:
        pytest.skip("no C++ compiler")
    ends = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(TernaryLiquid, "_compiles", lambda self, x: False)
        run, now, made = Run(make_rng(6), level=level_of(level, liquid, 5)), state, []
        for kernel in (ParticleDisplacement(0.05, n_steps=60), SpeciesSwap(liquid.species, n_steps=40)):
            now = kernel.step(now, run)
            made.append(kernel.last_acceptance)
            assert 0 < kernel.acceptance_rate() < 1
        ends.append((now["positions"], run.energy(now)[0], *made))
        assert run.ledger.n_energy() == sum(evaluations(43, 60, 40))
    for mine, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_a_level_of_two_energies_is_evaluated_as_a_whole():
    target, rng = Springs(local=True), make_rng(7)
    level = GeometricPath(target, Springs(local=True)).at(0.5)
    run = Run(rng, level=level)
    kernel = ParticleDisplacement(0.5, n_steps=4)
    state = kernel.step(target.sample(6, rng), run)
    assert run.ledger.n_energy() == 2 * 6 * (1 + 4)
    assert torch.isfinite(state["positions"]).all()


def test_swaps_exchange_unlike_particles_only():
    liquid, state = liquid_rows(n=1)
    kernel = SpeciesSwap(liquid.species)
    assert len(kernel.pairs) == 20 * 11 + 20 * 12 + 11 * 12
    rng, seen = make_rng(8), set()
    for i, j in kernel.picks(200, 43, rng):
        assert liquid.species[i] != liquid.species[j]
        seen.update((i, j))
    assert len(seen) == 43
    run = run_at(TernaryLiquid(temperature=1e6).double(), make_rng(9))
    swapped = kernel.step(state, run)["positions"]
    moved = (swapped != state["positions"]).any(-1)[0].nonzero()[:, 0]
    assert len(moved) == 2
    torch.testing.assert_close(swapped[0, moved], state["positions"][0, moved.flip(0)])


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least two of them"):
        SpeciesSwap([1, 1, 1])
    with pytest.raises(ValueError, match="swap_fraction"):
        swap_monte_carlo(SPECIES, swap_fraction=1.0)
    liquid, state = liquid_rows()
    with pytest.raises(ValueError, match="has the species of 5 particles, got 43"):
        SpeciesSwap(SPECIES).step(state, run_at(liquid, make_rng(1)))


def test_trials_of_a_sweep():
    displacements, swaps = swap_monte_carlo([0] * 20 + [1] * 23, swap_fraction=0.25, n_sweeps=2)
    assert (displacements.n_steps, swaps.n_steps) == (64, 22)
    (alone,) = swap_monte_carlo(SPECIES, swap_fraction=0.0)
    assert alone.n_steps == 5
    assert copy.deepcopy(alone).step_size == 0.1
