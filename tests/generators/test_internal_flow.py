"""The untrained flow over internal coordinates of molecules with rings, charged ends, bridges and several parts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.generators.families import build_generator
from boltzflow.io.config import GeneratorConfig
from boltzflow.preparation import prepare
from boltzflow.run import Run, make_rng

BRIDGE = Path(__file__).parent / "disulphide.pdb"

# With them the median of u - u(relaxed) in kT. A ring of 14 atoms does not close by itself, so no bound there.
INPUTS = {
    "uncapped": ({"sequence": "ALA ALA"}, 400),
    "proline": ({"sequence": "ACE PRO NME"}, 800),
    "disulphide": ({"pdb": BRIDGE}, math.inf),
    "two-chains": ({"sequence": "ACE ALA NME | ACE GLY NME"}, 1000),
}


@pytest.fixture(scope="module", params=INPUTS)
def case(request, tmp_path_factory):
    arguments, most = INPUTS[request.param]
    return prepare(tmp_path_factory.mktemp("systems") / request.param, **arguments), most


def test_every_sample_has_a_finite_weight_and_lies_in_the_sector(case):
    system, most = case
    generator = build_generator(system, GeneratorConfig(n_couplings=2, hidden=(32,)), dtype=torch.float64)
    ensemble = generator.sample(256, system.target, seed=1)
    assert np.isfinite(ensemble.log_weights).all()
    positions = torch.as_tensor(ensemble.samples["positions"])
    assert system.sector.contains(positions).all()
    relaxed = system.target.reduced_energy(system.target.state(system.positions[None])).item()
    assert 0 < np.median(ensemble.reduced_energies) - relaxed < most


def test_the_map_to_positions_is_inverted_and_closes_its_ratio(case):
    system, _ = case
    generator = build_generator(system, GeneratorConfig(n_couplings=2, hidden=(32,)), dtype=torch.float64)
    step, run = generator.transitions[-1], Run(make_rng(0))
    state = generator.base.sample(64, make_rng(2)).to(dtype=torch.float64)
    placed, ratio = step(state, run)
    back, opposite = step.reverse(placed, run)
    assert torch.isfinite(ratio).all()
    assert (ratio + opposite).abs().max() < 1e-9
    assert (back["q"] - state["q"]).abs().max() < 1e-9


@pytest.mark.parametrize("what", ["periodic", "sites"])
def test_boxes_and_virtual_sites_are_refused(case, monkeypatch, what):
    system, _ = case
    monkeypatch.setattr(type(system.potential), what, property(lambda self: what))
    expected = {"periodic": "is in a periodic box", "sites": "has virtual sites"}[what]
    with pytest.raises(UnsupportedForceError, match=f"system {system.name} {expected}"):
        build_generator(system, GeneratorConfig(family="internal_spline_flow"))
