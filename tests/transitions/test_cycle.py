"""Rows that a step sends where another one goes, too, are seen on the way back."""

import torch

from boltzflow.networks import VectorField
from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.transitions import EulerFlow, cycle_error


class Squares(VectorField):
    """z → z² in the complex plane by one step: the determinant is 4|z|² > 0, and z and −z end at one point."""

    def forward(self, positions, t=0.0):
        re, im = positions.unbind(-1)
        return torch.stack([re * re - im * im, 2 * re * im], -1) - positions


def test_a_step_that_is_two_to_one_is_found_where_determinants_do_not():
    angles = torch.tensor([0.2, -0.9, 0.75 * torch.pi, 2.9], dtype=torch.float64)
    z = torch.stack([angles.cos(), angles.sin()], -1)[:, None]
    state = State({"positions": z}, {"positions": Space("line", (1, 2))})
    flow, run = EulerFlow(Squares(), n_steps=1), Run(make_rng(1))
    assert torch.isfinite(flow.forward(state, run)[1]).all()
    error = cycle_error(flow, state, run)
    assert (error[:2] < 1e-10).all()
    assert (error[2:] > 0.5).all()
