"""A Target at another temperature: energy, force, counts."""

import pytest
import torch

from boltzflow.run import Run, make_rng
from boltzflow.targets import DoubleWell, Tempered


def test_energy_and_force_scale_and_are_counted_under_the_name_of_the_target():
    well = DoubleWell().double()
    hot = Tempered(well)
    state = well.sample(20, make_rng(1))
    assert torch.equal(hot.reduced_energy(state), well.reduced_energy(state))
    run = Run(make_rng(0), {"inverse_temperature": 0.25})
    u, force, _ = run.evaluate_with_force(hot, state)
    expected, pull = well.energy_and_force(state)
    assert torch.allclose(u, expected / 4, rtol=1e-12)
    assert torch.allclose(force["x"], pull["x"] / 4, rtol=1e-12)
    x = state["x"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(hot.reduced_energy(well.state(x), {"inverse_temperature": 0.25}).sum(), x)
    assert torch.allclose(slope, -force["x"], rtol=1e-12)
    assert run.ledger.as_dict()["energy"] == {well.name: 20}
    assert hot.measure == well.measure
    assert hot.log_z is None  # that of another temperature


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_temperatures_must_be_positive_and_finite(beta):
    well = DoubleWell().double()
    with pytest.raises(ValueError, match="positive inverse_temperature"):
        Tempered(well).reduced_energy(well.sample(1, make_rng(0)), {"inverse_temperature": beta})
