"""Controlled generation: samples of a flow that make a cost small, found by moving their source points."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.run import Context, Run, make_rng, new_seed
from boltzflow.state import State
from boltzflow.transitions.step_size import at_least_one

__all__ = ["Controlled", "controlled"]


@dataclass(frozen=True)
class Controlled:
    """What `controlled` found; these rows are not samples of a density, and have no weights.

    Attributes:
        start: Source points under the base.
        end: Their images.
        cost: Of the images, (batch,), float64.
        cost_before: Of the images of the source points as they were drawn.
        seed: Of the source points.
    """

    start: State
    end: State
    cost: Float64[Tensor, " batch"]
    cost_before: Float64[Tensor, " batch"]
    seed: int


def controlled(
    generator: Generator,
    cost: Callable[[State], Tensor],
    n: int,
    *,
    prior: float = 0.0,
    n_steps: int = 20,
    seed: int | None = None,
    context: Context | None = None,
) -> Controlled:
    """Minimise cost(T(z)) − prior · log q_base(z) over source points z, from samples of the base.

    The gradient runs through the flow T, which bends it along the directions in which its samples vary: images stay
    near what the flow was trained on, where a minimisation over x itself would leave it. Rows are minimised together
    by L-BFGS with a line search; one whose cost is not finite is left as it was drawn.

    Args:
        generator: Bijective but for last steps that drop auxiliary variables; its parameters stay.
        cost: Of every row of a State of images, (batch,), differentiable.
        n: Rows.
        prior: Weight of the density of the source points, in units of the cost per nat.
        n_steps: Iterations of L-BFGS.
        seed: Random by default; recorded.
        context: Passed on to every Transition.

    Raises:
        TypeError: If the density of the generator is not known: its paths then have noise of their own.
        ValueError: If the cost has another shape than (batch,), or `n_steps` is not positive.

    References:
        D-Flow: Differentiating through Flows for Controlled Generation (Ben-Hamu et al., 2024), algorithm 1,
        https://arxiv.org/abs/2402.14017

    Example:
        >>> from boltzflow.targets import Gaussian
        >>> from boltzflow.transitions import Affine
        >>> flow = Generator(Gaussian(2), [Affine(torch.zeros(2), torch.full((2,), 3.0), field="x")]).double()
        >>> found = controlled(flow, lambda state: (state["x"] - 1.0).square().sum(1), 4, seed=1)
        >>> bool((found.cost < 1e-6).all())
        True
    """
    at_least_one("controlled n_steps", n_steps)
    if not generator.joint()[0].is_bijective:
        raise TypeError("controlled: a step of the generator is stochastic, so that its images are no function of z.")
    seed = new_seed() if seed is None else seed
    rng = make_rng(seed, device=generator.device)
    with torch.no_grad():
        drawn = generator.base.sample(n, rng, context)
    moved = [name for name, value in drawn.fields.items() if value.is_floating_point()]
    leaves = {name: drawn[name].clone().requires_grad_() for name in moved}
    run = Run(rng, context)

    def image(fields: dict[str, Tensor]) -> tuple[State, State, Tensor]:
        start = State({**drawn.fields, **fields}, drawn.spaces)
        state = start
        for transition in generator.transitions:
            state, _ = transition(state, run)
        value = cost(state)
        if value.shape != (n,):
            raise ValueError(f"controlled cost: expected one number per row, shape ({n},), got {tuple(value.shape)}.")
        return start, state, value.double()

    with torch.no_grad():
        _, _, before = image({name: drawn[name] for name in moved})
    usable = torch.isfinite(before)
    optimiser = torch.optim.LBFGS(list(leaves.values()), max_iter=n_steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        with torch.enable_grad():
            start, _, value = image(leaves)
            if prior:
                value = value - prior * generator.base.log_prob(start, context)
            total = torch.where(usable & torch.isfinite(value), value, 0.0).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            rows = usable.reshape(-1, *[1] * (leaf.ndim - 1))
            leaf.grad = torch.where(rows & torch.isfinite(gradient), gradient, 0.0).contiguous()
        return total.detach()

    optimiser.step(loss)
    with torch.no_grad():
        start, end, after = image({name: leaf.detach() for name, leaf in leaves.items()})
    return Controlled(start, end, after, before, seed)
