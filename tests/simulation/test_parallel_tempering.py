"""Parallel tempering on the double well: populations, costs, resume, diagnostics; and its parts."""

import math
import re

import numpy as np
import pytest
import torch

from boltzflow.errors import CheckpointMismatchError, NonFiniteEnergyError
from boltzflow.run import Run, make_rng
from boltzflow.simulation import ParallelTempering, TemperedRows, entries, independent_visits, relax, split_r_hat
from boltzflow.state import Space
from boltzflow.statistics.chains import statistical_inefficiency
from boltzflow.statistics.groups import Groups
from boltzflow.statistics.means import expectation
from boltzflow.statistics.tempered import ladder_groups, tempered_weights
from boltzflow.targets import LennardJonesCluster
from boltzflow.targets.target import Target
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.metropolis import RandomWalkMetropolis

torch.set_num_threads(1)
TEMPERATURES = [300.0, 560.0, 1050.0, 2000.0]


class DoubleWell(Target):
    """u = -x1/2 - 6 x1² + x1⁴ + x2²/2: a barrier of 9.9 kT."""

    def __init__(self, name="well"):
        super().__init__({"x": Space("line", (2,))}, name=name)

    def reduced_energy(self, state, context=None):
        a, b = state["x"].unbind(1)
        return -0.5 * a - 6 * a**2 + a**4 + 0.5 * b**2


def p_left():
    x = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    p = torch.exp(0.5 * x + 6 * x**2 - x**4)
    return float(torch.trapezoid(p[x <= 0], x[x <= 0]) / torch.trapezoid(p, x))


def left(state):
    return (state["x"][:, 0] < 0).double()


def build(seed=1, *, n_chains=16, temperatures=TEMPERATURES, n_leapfrog=4, name="well", kernel=None, **options):
    target = DoubleWell(name)
    start = target.state(torch.tensor([[1.7, 0.0]], dtype=torch.float64))
    return ParallelTempering(
        target,
        start,
        temperatures=temperatures,
        n_chains=n_chains,
        kernels=[kernel or HMC(0.05, n_leapfrog=n_leapfrog)],
        observables={"left": left},
        seed=seed,
        **options,
    )


@pytest.fixture(scope="module")
def finished():
    simulation = build(n_chains=100)
    simulation.burn_in(100)
    return simulation, simulation.run(600, records_per_frame=40)


def test_population_and_energy_agree_with_quadrature(finished):
    _, result = finished
    series = result.observables["left"]
    g = statistical_inefficiency(list(series.T))
    p = p_left()
    error = math.sqrt(p * (1 - p) * g / series.numel())
    assert 1 < g < 200
    assert abs(float(series.mean()) - p) / error < 3.5
    assert error < 0.02


def test_chains_agree_and_walkers_travel(finished):
    _, result = finished
    d = result.diagnostics
    assert d["series"]["left"]["split_r_hat"] < 1.02
    assert d["series"]["reduced_energy"]["split_r_hat"] < 1.02
    assert len(d["swap_rates"]) == 3
    assert all(0.15 < rate < 0.95 for rate in d["swap_rates"])
    assert d["round_trips"] > 500
    visits = independent_visits(result.observables["left"] > 0)
    assert 100 < visits < float(result.observables["left"].sum())
    assert entries(result.observables["left"] > 0) > 100


def test_step_sizes_are_adapted_by_temperature_and_then_frozen(finished):
    simulation, result = finished
    acceptance = torch.tensor(result.diagnostics["acceptance"][0])
    assert (acceptance - 0.75).abs().max() < 0.1
    assert simulation.step_sizes[0].tolist() == result.diagnostics["step_sizes"][0]


def test_a_step_that_rejects_everything_is_reported(caplog):
    build().run(10)
    assert not caplog.text
    build(kernel=RandomWalkMetropolis(1e4)).run(10)
    assert re.search(
        r"RandomWalkMetropolis at rung \d with step size 1e\+04 accepts 0\.\d+% of its proposals, where 30% are aimed "
        r"at\. Take a step several times smaller, or give the burn-in that adapts it more sweeps",
        caplog.text,
    )


def test_without_a_ladder_the_chains_disagree():
    simulation = build(temperatures=[300.0])
    simulation.burn_in(100)
    result = simulation.run(200)
    assert result.diagnostics["swap_rates"] == []
    assert float(result.observables["left"].mean()) < 0.1  # all started on the right, and few crossed


def test_frames_are_the_records_of_their_sweep(finished):
    _, result = finished
    assert result.samples["x"].shape == (15, 100, 2)
    assert result.frames.tolist() == list(range(40, 601, 40))
    torch.testing.assert_close(result.reduced_energies, result.observables["reduced_energy"][39::40])
    flat = DoubleWell().state(result.samples["x"].reshape(-1, 2))
    torch.testing.assert_close(DoubleWell().reduced_energy(flat).reshape(15, 100), result.reduced_energies)


def test_evaluations_are_one_per_leapfrog_step_and_nothing_else():
    simulation = build(n_chains=3, n_relax=10)
    assert (simulation.ledger.n_energy(), simulation.ledger.n_force()) == (11, 11)  # one row is relaxed
    simulation.burn_in(5)
    result = simulation.run(7, sweeps_per_record=2)
    assert result.ledger.n_force() == 11 + 4 * 3 * 4 * (5 + 14)
    assert result.ledger.n_energy() == result.ledger.n_force()


def test_interrupted_run_equals_an_unbroken_one_bit_for_bit(tmp_path):
    whole = build(seed=5, n_chains=4)
    whole.burn_in(20)
    first, second = whole.run(15), whole.run(25)
    broken = build(seed=5, n_chains=4)
    broken.burn_in(20)
    broken.run(15)
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    resumed = build(seed=5, n_chains=4)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again = resumed.run(25)
    assert first.frames[-1] == 15
    assert torch.equal(second.samples["x"], again.samples["x"])
    assert torch.equal(second.reduced_energies, again.reduced_energies)
    assert torch.equal(second.frames, again.frames)
    assert second.ledger.as_dict() == again.ledger.as_dict()
    trajectory = {k: v for k, v in second.diagnostics.items() if k != "series"}
    assert trajectory == {k: v for k, v in again.diagnostics.items() if k != "series"}


def test_state_of_another_simulation_is_refused():
    saved = build(seed=5, n_chains=4).state_dict()
    for other in (
        build(seed=6, n_chains=4),
        build(seed=5, n_chains=4, name="other"),
        build(seed=5, n_chains=4, temperatures=[1.0, 2.0]),
    ):
        with pytest.raises(CheckpointMismatchError, match=r"seed|target|temperatures"):
            other.load_state_dict(saved)


def test_same_seed_same_chain_and_chunks_cover_all_frames():
    pieces = []
    simulation = build(seed=8, n_chains=2)
    result = simulation.run(10, records_per_frame=2, chunk=2, on_chunk=pieces.append)
    plain = build(seed=8, n_chains=2).run(10, records_per_frame=2)
    assert result.samples == {}
    assert [len(p.frames) for p in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([p.samples["x"] for p in pieces]), plain.samples["x"])
    assert torch.equal(torch.cat([p.reduced_energies for p in pieces]), plain.reduced_energies)
    assert torch.equal(result.observables["left"], plain.observables["left"])


def test_kernels_without_forces_work_and_any_seed_is_recorded():
    target = DoubleWell()
    start = target.state(torch.zeros(1, 2, dtype=torch.float32))
    simulation = ParallelTempering(
        target, start, temperatures=[1.0, 3.0], n_chains=5, kernels=[RandomWalkMetropolis(0.3)]
    )
    simulation.burn_in(50)
    result = simulation.run(20)
    assert result.samples["x"].dtype == torch.float32
    assert result.reduced_energies.dtype == torch.float64
    assert result.diagnostics["seed"] == simulation.seed >= 0
    assert simulation.ledger.n_energy() - simulation.ledger.n_force() == 10 * 70


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperatures": [300.0, 200.0]}, "temperatures"),
        ({"temperatures": []}, "temperatures"),
        ({"n_chains": 0}, "n_chains"),
    ],
)
def test_bad_settings_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        build(**options)
    with pytest.raises(ValueError, match="n_records"):
        build().run(0)


def test_tempered_rows_scale_energy_and_force_row_by_row():
    target = DoubleWell()
    beta = torch.tensor([1.0, 0.5], dtype=torch.float64)
    run = Run(make_rng(0), level=TemperedRows(target, beta))
    state = target.state(torch.ones(2, 2, dtype=torch.float64))
    u, force, state = run.energy_and_force(state)
    assert u.tolist() == [-5.0, -2.5]
    assert force["x"].tolist() == [[8.5, -1.0], [4.25, -0.5]]
    assert run.energy(state)[0].tolist() == [-5.0, -2.5]
    assert run.ledger.n_energy() == 2


def test_relaxation_goes_downhill_and_refuses_an_impossible_start():
    target = DoubleWell()
    run = Run(make_rng(0))
    start = target.state(torch.tensor([[9.0, 5.0], [1.0, 0.0]], dtype=torch.float64))
    relaxed = relax(target, start, run, n_steps=300, max_step=0.1)
    assert (target.reduced_energy(relaxed) < target.reduced_energy(start)).all()
    torch.testing.assert_close(relaxed["x"][1, 0].item(), 1.752520, rtol=0, atol=1e-2)
    with pytest.raises(NonFiniteEnergyError, match="1 of 1 rows"):
        relax(target, target.state(torch.full((1, 2), torch.nan, dtype=torch.float64)), run)


def test_relaxation_goes_on_while_particles_overlap():
    target = LennardJonesCluster(55, pair_sum="ordered").double()
    x = torch.randn(8, 55, 3, dtype=torch.float64, generator=make_rng(2))
    start, run = target.state(x - x.mean(1, keepdim=True)), Run(make_rng(0))
    assert target.reduced_energy(start).max() > 1e6
    assert target.reduced_energy(relax(target, start, run)).max() < -300
    assert 101 < run.ledger.n_force() / len(start) < 1000


def test_r_hat_tells_stuck_chains_from_mixed_ones():
    rng = make_rng(4)
    mixed = torch.randn(500, 8, generator=rng, dtype=torch.float64)
    assert split_r_hat(mixed) < 1.01
    assert split_r_hat(mixed + torch.arange(8)) > 1.5
    assert split_r_hat(torch.arange(8.0).expand(10, 8)) == math.inf
    assert math.isnan(split_r_hat(torch.ones(10, 2)))
    with pytest.raises(ValueError, match="at least 4"):
        split_r_hat(mixed[:3])


def test_visits_of_a_two_state_chain_equal_the_exact_inefficiency():
    # leaving with probability a and entering with b: the correlation decays as (1 - a - b)^t
    a, b, n, chains = 0.05, 0.01, 20_000, 20
    rng = make_rng(6)
    inside = torch.zeros(n, chains, dtype=torch.bool)
    now = torch.rand(chains, generator=rng) < b / (a + b)
    for t in range(n):
        uniform = torch.rand(chains, generator=rng)
        now = torch.where(now, uniform > a, uniform < b)
        inside[t] = now
    g = (2 - a - b) / (a + b)
    assert independent_visits(inside) == pytest.approx(float(inside.sum()) / g, rel=0.15)
    assert entries(inside) == pytest.approx(float((~inside).sum()) * b, rel=0.1)
    assert independent_visits(torch.zeros(10, 2, dtype=torch.bool)) == 0


def test_frames_of_all_rungs_hold_the_cold_ones():
    cold = build(seed=3, n_chains=5)
    every = build(seed=3, n_chains=5)
    one, other = cold.run(6, records_per_frame=2), every.run(6, records_per_frame=2, keep="all")
    assert one.rungs is None
    assert other.samples["x"].shape == (3, 4 * 5, 2)
    assert other.rungs.tolist() == [k for k in range(4) for _ in range(5)]
    assert other.chains.tolist() == list(range(5)) * 4
    assert torch.equal(other.samples["x"][:, :5], one.samples["x"])
    assert torch.equal(other.reduced_energies[:, :5], one.reduced_energies)
    assert torch.equal(other.observables["left"], one.observables["left"])
    # hotter walkers have higher energies, and are what they say
    by_rung = build(seed=4, n_chains=50)
    by_rung.burn_in(50)
    hot = by_rung.run(20, keep="all").reduced_energies.unflatten(1, (4, 50)).mean((0, 2))
    assert (hot.diff() > 0).all()


def test_every_sweep_is_reported():
    seen = []
    simulation = build(n_chains=2)
    simulation.burn_in(7, on_sweep=lambda: seen.append("burn-in"))
    simulation.run(3, sweeps_per_record=4, on_sweep=lambda: seen.append("run"))
    assert seen == ["burn-in"] * 7 + ["run"] * 12


def test_all_temperatures_together_give_the_population_with_honest_errors():
    # 25 simulations of 16 ladders in one batch; every one of them gives a population and an interval
    simulation = build(seed=11, n_chains=400)
    simulation.burn_in(100)
    result = simulation.run(40, sweeps_per_record=3, keep="all")
    betas = TEMPERATURES[0] / np.array(TEMPERATURES)
    inside = (result.samples["x"][..., 0] < 0).unflatten(1, (4, 25, 16)).numpy().astype(float)
    energies = result.reduced_energies.unflatten(1, (4, 25, 16)).numpy()
    values, errors, cold_values = [], [], []
    for k in range(25):
        u = energies[:, :, k]
        groups = np.broadcast_to(ladder_groups(40, 16)[:, None], u.shape).reshape(-1)
        weights = tempered_weights(u, betas).log_weights.reshape(-1)
        found = expectation(inside[:, :, k].reshape(-1), log_weights=weights, groups=Groups.of(groups, u.size))
        values.append(found.value)
        errors.append(found.error)
        cold_values.append(inside[:, 0, k].mean())
    z = (np.array(values) - p_left()) / np.array(errors)
    assert abs(z.mean()) < 3.5 / 5  # no bias, and errors of the right size
    assert 0.6 < z.std() < 1.6
    assert np.std(values) < np.std(cold_values)
