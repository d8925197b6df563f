"""Adaptive solvers: near the exact flow at a small tolerance, with an error that is measured, kept and warned of."""

import logging
import sys

import pytest
import torch

from boltzflow.ensemble import Ensemble
from boltzflow.generators import Generator
from boltzflow.networks import ShallowField, TorusField
from boltzflow.run import Run, make_rng
from boltzflow.targets import Gaussian, VonMises
from boltzflow.transitions import ApproximateAdaptiveFlow, RungeKuttaFlow


def field(size=0.5, made=None):
    made, rng = made or ShallowField(2, 16).double(), make_rng(3)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(size * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return made


def run():
    return Run(make_rng(2))


def test_without_torchdiffeq_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"pip install 'boltzflow\[ode\]'"):
        ApproximateAdaptiveFlow(field())


def test_it_is_the_continuous_flow():
    pytest.importorskip("torchdiffeq")
    state = Gaussian(2).double().sample(50, make_rng(1))
    made = ApproximateAdaptiveFlow(field(), tolerance=1e-8, name="x")
    with torch.no_grad():
        y, ratio = made(state, run())
        exact, log_det = RungeKuttaFlow(field(), n_steps=200, name="x")(state, run())
        x, minus = made.reverse(y, run())
    assert (y["x"] - exact["x"]).abs().max() < 1e-6
    assert (ratio - log_det).abs().max() < 1e-6
    assert (x["x"] - state["x"]).abs().max() < 1e-6
    assert (minus + ratio).abs().max() < 1e-6
    angles = VonMises(2, concentration=0.5).double().sample(20, make_rng(1))
    wrapped = ApproximateAdaptiveFlow(field(2.0, TorusField(2, 8).double()), name="x")(angles, run())[0]["x"]
    assert wrapped.abs().max() <= torch.pi


def test_rows_do_not_spoil_each_other():
    pytest.importorskip("torchdiffeq")
    state = Gaussian(2).double().sample(5, make_rng(1))
    x = state["x"].clone()
    x[2] = torch.nan
    y, ratio = ApproximateAdaptiveFlow(field(), name="x")(state.replace(x=x), run())
    assert torch.isnan(ratio).tolist() == [False, False, True, False, False]
    assert torch.isnan(y["x"]).any(1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(("tolerance", "warns"), [(1e-3, False), (0.03, True)])
def test_the_error_of_log_q_is_measured_and_kept(tolerance, warns, caplog, tmp_path):
    pytest.importorskip("torchdiffeq")
    target = Gaussian(2).double()
    made = Generator(target, [ApproximateAdaptiveFlow(field(), tolerance=tolerance, name="x")]).double()
    with caplog.at_level(logging.WARNING, logger="boltzflow"):
        ensemble = made.sample(100, target, seed=1, batch_size=50)
    errors = torch.tensor(ensemble.provenance.extra["log_q_errors"], dtype=torch.float64)
    assert errors.shape == (64,)  # 32 rows of every shard
    rms = float(errors.square().mean().sqrt())
    assert (rms > 0.01) == warns
    assert [f"{rms:.2g} nat" in record.message for record in caplog.records if "log q" in record.message] == [
        True
    ] * warns
    ensemble.save(tmp_path / "ensemble.h5")
    assert Ensemble.load(tmp_path / "ensemble.h5").provenance.extra["log_q_errors"] == errors.tolist()
    # it is that of the density itself: a fine solver pulls the samples back to the same base
    state = ensemble.to_state(dtype=torch.float64).index(slice(0, 32))
    with torch.no_grad():
        z, ratio = RungeKuttaFlow(field(), n_steps=200, name="x").reverse(state, run())
    log_q = ratio - target.reduced_energy(z)
    used = -torch.as_tensor(ensemble.log_weights[:32]) - target.reduced_energy(state)
    true = used - log_q
    assert (errors[:32] - true).square().mean().sqrt() < 0.05 * true.square().mean().sqrt()


def test_exact_flows_have_no_such_error():
    target = Gaussian(2).double()
    ensemble = Generator(target, [RungeKuttaFlow(field(), name="x")]).sample(20, target, seed=1)
    assert "log_q_errors" not in ensemble.provenance.extra


def test_the_step_limit_names_the_remedy():
    pytest.importorskip("torchdiffeq")
    made = ApproximateAdaptiveFlow(field(3.0), tolerance=1e-10, max_steps=3, name="x")
    with pytest.raises(RuntimeError, match=r"at most 3 steps at a tolerance of 1e-10.*Raise max_steps.*RungeKuttaFlow"):
        made(Gaussian(2).double().sample(5, make_rng(1)), run())
    with pytest.raises(ValueError, match="expected a positive number"):
        ApproximateAdaptiveFlow(field(), tolerance=0.0)
