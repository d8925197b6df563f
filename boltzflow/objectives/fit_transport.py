"""The maps of an annealed sampler from one population: least squares instead of gradient descent."""

import math
from dataclasses import dataclass, field

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.population import finite_weights, moved
from boltzflow.run import Context, Ledger, Run, make_rng, new_seed
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.transitions.euler_flow import EulerFlow

__all__ = ["TransportFit", "fit_transport"]

MARGIN = 1.5
"""A field of so many times the fitted size must not fold a row of the population."""


@dataclass(frozen=True, eq=False)
class TransportFit:
    """What `fit_transport` found.

    Args:
        explained: By map, the part of the variance of the energy change between its levels that it takes from the
            weights, to first order and adjusted for the number of fitted weights.
        scales: By map, the factor by which its field was made smaller so that it folds nowhere.
        seed: Of the population.
        ledger: Evaluations of the population, which the cost of the sampler includes.
    """

    explained: tuple[float, ...]
    scales: tuple[float, ...]
    seed: int
    ledger: Ledger = field(default_factory=Ledger)


@torch.no_grad()
def fit_transport(
    generator: Generator,
    target: Target,
    *,
    n: int = 1000,
    ridge: float = 1e-3,
    seed: int | None = None,
    context: Context | None = None,
) -> TransportFit:
    """Fit the maps of an annealed Generator, one after the other, on one population that they carry to the target.

    To first order a map changes the log-weight between two levels by h = ∇·v + F·v, with F the force of the level that
    it leads to, and h is linear in the weights of the field. Weighted least squares of u_{k+1} − u_k on these functions
    minimises the variance of the log-weights, and is one step of Newton's method on KL(T_k π_k ‖ π_{k+1}), whose
    gradient and Fisher matrix they give by Stein's identity. One population does what gradient descent takes hundreds
    for; where levels are far apart `AnnealedTransport` goes on from here. A field is made smaller where 1.5 times
    as much of it would fold the space at a row of the population, since rows that fold are failures of the sampler. The
    population is thrown away: `sample` draws others, and its weights are exact whatever the maps are.

    Args:
        generator: From `smc` or `annealed_importance` with maps that are `EulerFlow` of a field with Stein functions;
            their weights are overwritten.
        target: At λ = 1.
        n: Rows of the population.
        ridge: Penalty on the weights in units of the functions' variance.
        seed: Random by default; recorded.
        context: Passed on to every Target and Transition.

    Raises:
        TypeError: If there is no such map, or one is not followed by a step at a level.
        ValueError: If the population has too few effective rows for the number of weights.

    References:
        Escorted free energy simulations: Vaikuntanathan and Jarzynski, Phys. Rev. Lett. 100, 190601 (2008);
        annealed flow transport: Arbel, Matthews and Doucet, ICML 2021.
    """
    steps = list(generator.transitions)
    if not any(isinstance(step, EulerFlow) and hasattr(step.field, "stein") for step in steps):
        raise TypeError(
            "fit_transport: expected maps whose log-weight is linear in their weights; build the Generator with "
            "boltzflow.generators.smc(..., maps=[EulerFlow(PairField(...)), ...])."
        )
    seed = new_seed() if seed is None else seed
    rng, base = make_rng(seed, device=generator.device), generator.base
    run = Run(rng, context, free=(base,) if base.log_z is not None and base is not target else ())
    path = generator.path(base, target)
    state = base.sample(n, rng, context)
    u, state = run.evaluate(base, state)
    total, explained, scales = u, [], []
    for k, step in enumerate(steps):
        if not isinstance(step, EulerFlow):
            state, u, total = moved(step, state, run.at(path.at(step.level)), u, total)
            continue
        if k + 1 == len(steps) or steps[k + 1].level is None:
            raise TypeError("fit_transport: expected a step at a level after every map.")
        here = run.at(path.at(steps[k + 1].level))
        after, force, state = here.energy_and_force(state)
        explained.append(_fit(step, state, force, after - u, finite_weights(total - u), ridge))
        scales.append(_unfold(step, state, run))
        state, ratio = step(state, run)
        u, state = here.energy(state)
        total = total + ratio
    if "fit_transport" not in generator.trained_by:
        generator.trained_by = (*generator.trained_by, "fit_transport")
    return TransportFit(tuple(explained), tuple(scales), seed, run.ledger)


def _fit(
    flow: EulerFlow,
    state: State,
    force: dict[str, Tensor],
    change: Float64[Tensor, " batch"],
    log_weights: Float64[Tensor, " batch"],
    ridge: float,
) -> float:
    """Set the weights of the field; returns the adjusted part of the variance of `change` that it explains."""
    keep = torch.isfinite(change) & torch.isfinite(log_weights)
    w = torch.softmax(log_weights[keep], 0)
    functions = flow.field.stein(state[flow.name][keep], force[flow.name][keep]).double()
    solution, n_used, r_squared = _least_squares(functions, change[keep], w, ridge)
    n_effective = float(1.0 / w.square().sum())
    if n_effective < n_used + 2:
        raise ValueError(
            f"fit_transport: the population has {n_effective:.0f} effective rows for {n_used} weights of a map; take n "
            "some 10 times as large as the number of weights, or levels that are closer."
        )
    weights = flow.field.weights
    weights.copy_(solution.reshape(weights.shape[1:]).to(weights.dtype))
    return 1.0 - (1.0 - r_squared) * (n_effective - 1.0) / (n_effective - n_used - 1.0)


def _unfold(flow: EulerFlow, state: State, run: Run) -> float:
    """Make the field smaller until its margin folds no row; returns the factor."""
    fitted, scale = flow.field.weights.clone(), 1.0
    while True:
        flow.field.weights.copy_(MARGIN * scale * fitted)
        folds = bool(torch.isnan(flow(state, run)[1]).any())
        flow.field.weights.copy_(scale * fitted)
        if not folds:
            return scale
        scale *= 0.8


def _least_squares(
    functions: Float64[Tensor, "rows basis"],
    values: Float64[Tensor, " rows"],
    w: Float64[Tensor, " rows"],
    ridge: float,
) -> tuple[Float[Tensor, " basis"], int, float]:
    """Ridge regression with intercept, on standardised functions: coefficients, how many are not constant, R²."""
    functions, values = functions - w @ functions, values - w @ values
    scale = (w @ functions.square()).sqrt()
    used = scale > 1e-12 * scale.max().clamp_min(1e-300)
    a = functions[:, used] / scale[used]
    normal = (a.t() * w) @ a
    normal.diagonal().add_(ridge)
    found = torch.linalg.solve(normal, (a.t() * w) @ values)
    rest = values - a @ found
    coefficients = torch.zeros_like(scale)
    coefficients[used] = found / scale[used]
    variance = float(w @ values.square())
    r_squared = 1.0 - float(w @ rest.square()) / variance if variance > 0.0 else math.nan
    return coefficients, int(used.sum()), r_squared
