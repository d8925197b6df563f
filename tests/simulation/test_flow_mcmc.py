"""Flow-MCMC and NeuTra: exact with bad generators, learning in the burn-in and frozen after it, resume, refusals."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from boltzflow import cite
from boltzflow.errors import NonFiniteEnergyError
from boltzflow.generators.generator import Generator
from boltzflow.run import make_rng
from boltzflow.simulation import (
    ISIR,
    FlowTraining,
    LearnedMove,
    NeuTra,
    ParallelTempering,
    flow_mcmc,
    neutra,
)
from boltzflow.targets.bases import Gaussian
from boltzflow.targets.funnel import Funnel
from boltzflow.targets.mixture import GaussianMixture
from boltzflow.transitions.affine import Affine, AffineCoupling
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.mala import MALA
from boltzflow.transitions.transition import Bijection

torch.set_num_threads(1)
WEIGHTS = torch.tensor([0.2, 0.8], dtype=torch.float64)
MEANS = torch.tensor([[-3.0, 1.0], [3.0, -1.0]], dtype=torch.float64)


def mixture():
    return GaussianMixture(MEANS, scale=0.7, weights=WEIGHTS)


def narrow():
    """A Gaussian about the wrong mode that hardly reaches the other one, with couplings that can learn to."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        couplings = [
            AffineCoupling(["line", "line"], torch.tensor([k == 0, k == 1]), hidden=(16,), field="x") for k in (0, 1)
        ]
    shift = Affine(torch.tensor([-1.0, 0.0]), torch.tensor([2.0, 1.5]), field="x")
    return Generator(Gaussian(2), [*couplings, shift]).double()


def z_of_the_populations(ensemble):
    target, n_chains = mixture(), len(np.unique(ensemble.chain))
    inside = target.responsibilities(ensemble.to_state())[:, 0].reshape(-1, n_chains)
    mean = inside.mean(0)
    return float((mean.mean() - WEIGHTS[0]) / (mean.std() / math.sqrt(n_chains)))


@pytest.mark.parametrize("n_proposals", [None, 4])
def test_a_bad_generator_gives_exact_populations(n_proposals):
    ensemble = flow_mcmc(
        narrow(), mixture(), n=12_000, n_chains=400, burn_in=40, n_proposals=n_proposals, kernels=[MALA(0.1)], seed=1
    )
    assert abs(z_of_the_populations(ensemble)) < 3.5
    found = ensemble.provenance.extra
    assert found["method"] == "flow-mcmc"
    assert found["simulation"]["kernels"] == ["MALA", "LearnedMove" if n_proposals is None else "ISIR"]
    assert 1.0 < found["simulation"]["series"]["reduced_energy"]["split_r_hat"] < 1.3  # of 30 frames
    assert len(ensemble) == 12_000
    assert ensemble.normalisation == "none"
    assert ensemble.frame[ensemble.chain == 7].tolist() == list(range(1, 31))


def test_a_generator_that_learns_in_the_burn_in_is_accepted_more_and_leaves_the_chain_exact():
    rates, before = [], narrow()
    for training in (None, FlowTraining(steps=3, learning_rate=5e-3)):
        generator = narrow()
        ensemble = flow_mcmc(
            generator, mixture(), n=10_000, n_chains=250, burn_in=80, training=training, kernels=[MALA(0.1)], seed=2
        )
        assert abs(z_of_the_populations(ensemble)) < 3.5
        rates.append(ensemble.provenance.extra["simulation"]["acceptance"][1][0])
        same = [torch.equal(a, b) for a, b in zip(before.parameters(), generator.parameters(), strict=True)]
        assert all(same) == (training is None)
    assert rates[1] > 1.5 * rates[0]
    assert "flow-MCMC" in ensemble.provenance.methods
    assert "gabrie2022" in cite(ensemble)


def learning(seed=3, kernel=LearnedMove, **options):
    target = mixture()
    training = FlowTraining(batch_size=32, learning_rate=5e-3, memory=4)
    return ParallelTempering(
        target,
        target.state(MEANS),
        temperatures=[1.0, 3.0],
        n_chains=2,
        kernels=[HMC(0.2, n_leapfrog=2), kernel(narrow(), training=training, **options)],
        n_relax=0,
        seed=seed,
    )


def parameters(simulation):
    return torch.cat([p.detach().flatten() for p in simulation.kernels[1].generator.parameters()])


def test_the_generator_is_frozen_before_the_burn_in_ends():
    simulation, seen = learning(), []
    simulation.burn_in(20, on_sweep=lambda: seen.append(parameters(simulation)))
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    # three quarters of 20 sweeps; the 15th is the first after which nothing is learned
    assert changes == [True] * 13 + [False] * 6
    simulation.run(5)
    assert torch.equal(parameters(simulation), seen[-1])
    assert simulation.kernels[1].memory()["trainer"] is None


@pytest.mark.parametrize(("stop", "options"), [(6, {}), (18, {}), (6, {"kernel": ISIR, "n_proposals": 3})])
def test_a_broken_simulation_goes_on_bit_for_bit(stop, options, tmp_path):
    class Stop(Exception):
        pass

    whole, broken, resumed = (learning(**options) for _ in range(3))
    whole.burn_in(20, masses=True)
    first, expected = whole.run(3), whole.run(4)
    sweeps = iter(range(1, 21))

    def interrupt():
        if next(sweeps) == stop:
            raise Stop

    with pytest.raises(Stop):
        broken.burn_in(20, masses=True, on_sweep=interrupt)
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.burn_in(20, masses=True)
    assert torch.equal(resumed.run(3).samples["x"], first.samples["x"])
    torch.save(resumed.state_dict(), tmp_path / "state.pt")
    again = learning(**options)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(parameters(again), parameters(whole))
    assert torch.equal(again.run(4).samples["x"], expected.samples["x"])


def test_states_without_a_density_are_left_out_of_the_training():
    simulation = learning()
    state, trainer = mixture().state(torch.cat([MEANS, MEANS * torch.inf])), simulation.kernels[1]
    before = parameters(simulation)
    trainer.learn(state, simulation._run, progress=0.1)
    assert bool(torch.isfinite(parameters(simulation)).all())
    assert not torch.equal(parameters(simulation), before)


class FunnelMap(Bijection):
    """Most of what makes a funnel of a normal distribution: the widths grow as exp(1.2 z0) where 1.5 is exact."""

    def forward(self, state, run):
        z, n = state["x"], state["x"].shape[1] - 1
        log_width = 1.2 * z[:, :1]
        x = torch.cat([3 * z[:, :1], z[:, 1:] * log_width.exp()], 1)
        return state.replace(x=x), n * log_width[:, 0] + math.log(3)

    def reverse(self, state, run):
        x, n = state["x"], state["x"].shape[1] - 1
        log_width = 0.4 * x[:, :1]
        z = torch.cat([x[:, :1] / 3, x[:, 1:] * (-log_width).exp()], 1)
        return state.replace(x=z), -n * log_width[:, 0] - math.log(3)


def test_neutra_samples_a_funnel_where_plain_hmc_does_not():
    target, n_chains = Funnel(6).double(), 200
    generator = Generator(Gaussian(6).double(), [FunnelMap()])
    ensemble = neutra(generator, target, n=60 * n_chains, n_chains=n_chains, burn_in=80, seed=4)
    neck = torch.from_numpy(ensemble.samples["x"][:, 0]).reshape(-1, n_chains)
    for moment, expected in (
        (neck, 0.0),
        (neck.square(), 9.0),
        ((neck < -4).double(), 0.5 * math.erfc(4 / 3 / 2**0.5)),
    ):
        mean = moment.mean(0)
        assert abs(float(mean.mean() - expected) / float(mean.std()) * math.sqrt(n_chains)) < 3.5
    u = target.reduced_energy(ensemble.to_state())
    torch.testing.assert_close(u, torch.from_numpy(ensemble.reduced_energies), rtol=1e-9, atol=1e-9)
    assert {"NeuTra", "HMC", "dual averaging", "mass adaptation", "Funnel"} <= set(ensemble.provenance.methods)
    assert "hoffman2019" in cite(ensemble)
    # from the same start, plain HMC stays out of the neck
    start = target.sample(n_chains, make_rng(5)).replace(x=torch.zeros(n_chains, 6, dtype=torch.float64))
    plain = ParallelTempering(
        target, start, temperatures=[1.0], n_chains=n_chains, kernels=[HMC(0.1, n_leapfrog=5)], n_relax=0, seed=6
    )
    plain.burn_in(80, masses=True)
    found = plain.run(60)
    neck = found.samples["x"][..., 0]
    assert abs(float(neck.square().mean() - 9.0)) > 2.0
    g = ensemble.provenance.extra["simulation"]["series"]["reduced_energy"]["statistical_inefficiency"]
    assert g < 0.5 * found.diagnostics["series"]["reduced_energy"]["statistical_inefficiency"]


def test_neutra_counts_records_and_resumes(tmp_path):
    target = Funnel(3).double()

    def build():
        return NeuTra(
            Generator(Gaussian(3).double(), [FunnelMap()]),
            target,
            n_chains=4,
            observables={"neck": lambda state: state["x"][:, 0]},
            seed=7,
        )

    whole, resumed = build(), build()
    assert whole.ledger.n_energy("Funnel") == 8 + 4  # from twice as many draws as are needed, and the force at those
    whole.burn_in(10)
    result = whole.run(6)
    torch.testing.assert_close(result.observables["neck"], result.samples["x"][..., 0])
    # the start, whose force was not known, then a force per leapfrog step
    assert whole.ledger.n_force() == 4 * (1 + 5 * 16)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(resumed.run(3).samples["x"], whole.run(3).samples["x"])
    with pytest.raises(ValueError, match="coldest walkers only"):
        NeuTra(Generator(Gaussian(3).double(), [FunnelMap()]), target, n_chains=2, temperatures=[1.0, 2.0], seed=8).run(
            1, keep="all"
        )


def test_what_cannot_be_done_is_refused():
    stochastic = Generator(Gaussian(2).double(), [MALA(0.1)])
    with pytest.raises(TypeError, match="not a Bijection"):
        flow_mcmc(stochastic, mixture(), n=10)
    with pytest.raises(TypeError, match="not a Bijection"):
        neutra(stochastic, mixture(), n=10)
    with pytest.raises(ValueError, match="until"):
        FlowTraining(until=1.0)
    with pytest.raises(ValueError, match="FlowTraining"):
        FlowTraining(batch_size=0)
    fixed = Generator(Gaussian(2).double(), [Affine(torch.zeros(2).double(), torch.ones(2).double(), field="x")])
    with pytest.raises(ValueError, match="no parameters that require a gradient"):
        flow_mcmc(fixed, mixture(), n=10, n_chains=2, burn_in=4, training=FlowTraining())

    class Nowhere(GaussianMixture):
        def reduced_energy(self, state, context=None):
            return torch.full_like(super().reduced_energy(state), torch.inf)

    with pytest.raises(NonFiniteEnergyError, match="0 of 4 samples of the generator have a finite energy"):
        flow_mcmc(copy.deepcopy(fixed), Nowhere(MEANS, scale=1.0), n=10, n_chains=2)
