"""How well a Bijection comes back, row by row: what shows where a map is not one to one."""

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.transition import Bijection

__all__ = ["cycle_error"]


@torch.no_grad()
def cycle_error(bijection: Bijection, state: State, run: Run) -> Float64[Tensor, " batch"]:
    """Largest |x′ − x| of every row, x′ = reverse(forward(x)); NaN where the inverse fails.

    The determinant of a long step can be positive everywhere and the step still send two points to one: its density is
    then a sum over both, and weights with one of them are wrong. Such a row comes back elsewhere.

    Args:
        bijection: What is checked, for example a flow of few steps.
        state: Points.
        run: Handed on.

    References:
        Few-step Accurate Likelihoods for Continuous Flows (Rehman et al., 2025), https://arxiv.org/abs/2512.09914

    Example:
        >>> from boltzflow.run import make_rng
        >>> from boltzflow.state import Space
        >>> from boltzflow.transitions import Affine
        >>> state = State({"x": torch.ones(2, 3)}, {"x": Space("line", (3,))})
        >>> cycle_error(Affine(torch.zeros(3), torch.ones(3), field="x"), state, Run(make_rng(0)))
        tensor([0., 0.], dtype=torch.float64)
    """
    y, _ = bijection.forward(state, run)
    back, _ = bijection.reverse(y, run)
    names = [name for name, value in state.fields.items() if value.is_floating_point()]
    return torch.stack([(back[n] - state[n]).double().abs().flatten(1).amax(1) for n in names]).amax(0)
