"""Natural gradient: steps of equal length in the metric of the density, by the Fisher matrix of recent samples."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.func import functional_call, grad, vmap

from boltzflow._typing import Float, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.generators.path_density import PathDensity
from boltzflow.io.natural_gradient_config import NaturalGradientConfig
from boltzflow.run import Context, Run
from boltzflow.state import State
from boltzflow.training.processes import Processes

__all__ = ["NaturalGradient", "parameter_scores"]

_LONGEST = 10.0
"""Lengths of scores beyond which they are shortened, in units of their median."""


class _Ends(torch.nn.Module):
    """Log-ratio of a row, and its end along a given direction: what scores are derivatives of."""

    def __init__(self, transitions: Iterable[torch.nn.Module], start: State, run: Run) -> None:
        super().__init__()
        self.transitions = torch.nn.ModuleList(transitions)
        self._spaces, self._run = start.spaces, run

    def forward(self, fields: dict[str, Tensor], directions: dict[str, Tensor]) -> Float[Tensor, ""]:
        state, total = State({name: row[None] for name, row in fields.items()}, self._spaces), 0.0
        for transition in self.transitions:
            state, ratio = transition(state, self._run)
            total = total + ratio[0]
        return total + sum((directions[name] * state[name][0]).sum() for name in directions)


def parameter_scores(
    generator: Generator, n: int, rng: torch.Generator, context: Context | None = None
) -> Float[Tensor, "n parameters"]:
    """∂ log q(x)/∂θ at fixed x, a row for each of n samples x of the Generator.

    With x = T_θ(z) and the log-ratio r of the steps, log q(T_θ(z)) = log q_0(z) − r_θ(z), so that

        ∂_θ log q(x) = −∂_θ r_θ(z) − ∂_x log q(x) · ∂_θ T_θ(z),

    which needs no inverse. Rows that are not finite, failures of the model, are zero.

    Args:
        generator: Of Bijections that `torch.func.vmap` can map, or along compiled fields, which are taken row by row;
            its base without parameters in training.
        n: Samples.
        rng: Random stream.
        context: Passed on to Transitions.

    Returns:
        (n, parameters in training), in the order of `generator.parameters()`.

    Raises:
        TypeError: If a step is not a Bijection or cannot be mapped, or the base is trained.
    """
    if any(p.requires_grad for p in generator.base.parameters()):
        raise TypeError(
            f"natural_gradient: {generator.base.name} is trained, and its samples move with its parameters; fix them, "
            "or set training.natural_gradient.rows to 0."
        )
    run = Run(rng, context)
    with torch.no_grad():
        start = generator.base.sample(n, rng, context)
        density = PathDensity(generator.base, list(generator.transitions), start, run)
        state, steps = start, []
        for transition in generator.transitions:
            if not density.needs_steps:
                break
            steps.append(transition)
            state, _ = density.step(transition, state, run)
    ends = _Ends(steps, start, run)
    fields, directions = dict(start.fields), dict(density.score)
    if any(getattr(m, "is_compiled", False) for m in ends.modules()):
        rows = _row_by_row(ends, fields, directions)
    else:
        rows = _mapped(ends, fields, directions)
    return torch.where(torch.isfinite(rows).all(1, keepdim=True), -rows, 0.0)


def _row_by_row(ends: _Ends, fields: dict[str, Tensor], directions: dict[str, Tensor]) -> Float[Tensor, "n parameters"]:
    """Derivatives of `ends` by its parameters, a pass for every row: what is compiled cannot be mapped."""
    parameters, rows = [p for p in ends.parameters() if p.requires_grad], []
    for k in range(len(next(iter(fields.values())))):
        one = ends({name: x[k] for name, x in fields.items()}, {name: x[k] for name, x in directions.items()})
        found = torch.autograd.grad(one, parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


def _mapped(ends: _Ends, fields: dict[str, Tensor], directions: dict[str, Tensor]) -> Float[Tensor, "n parameters"]:
    """Derivatives of `ends` by its parameters, all rows at once."""
    parameters = {name: p.detach() for name, p in ends.named_parameters() if p.requires_grad}
    per_row = vmap(grad(lambda p, x, s: functional_call(ends, p, (x, s))), (None, 0, 0))
    with _unfused(ends):
        try:
            made = per_row(parameters, fields, directions)
        except RuntimeError as error:
            if "functorch transforms" not in str(error):
                raise
            names = sorted({type(step).__name__ for step in ends.transitions})
            raise TypeError(
                f"natural_gradient: torch.func.vmap cannot map one of {', '.join(names)}, as it cannot the networks of "
                "couplings; set training.natural_gradient.rows to 0."
            ) from error
    return torch.cat([one.flatten(1) for one in made.values()], 1)


@contextmanager
def _unfused(module: torch.nn.Module) -> Iterator[None]:
    """Splines by operations that can be mapped, for the time being."""
    fused = [m for m in module.modules() if getattr(m, "fused", False)]
    for m in fused:
        m.fused = False
    try:
        yield
    finally:
        for m in fused:
            m.fused = True


class NaturalGradient(torch.optim.Optimizer):
    """θ ← θ − η (F + λ)⁻¹ g: g a running mean of gradients, F = E[s sᵀ] the Fisher matrix from scores s of samples.

    The Kullback-Leibler divergence between models before and after a step is ½ δᵀ F δ, so that steps are measured by
    what they do to the density and not to the parameters. Near q = p, F is the Hessian of both KL divergences, and the
    step is Newton's. F is never formed: of the last `rows` scores S, (F + λ)⁻¹ g takes a Cholesky factor of S Sᵀ and
    products with S; parameters × rows numbers are kept, and come into checkpoints of the training.

    Where a flow almost folds, scores can be a thousand times as long as elsewhere, and a single one of a thousand would
    be the whole of F. Scores longer than ten times the median count as that long; `shortened` says how many do.

    Args:
        generator: What is trained, see `parameter_scores`.
        settings: Sizes, damping, momentum and the longest step.
        world: The processes that train together, each of which draws a part of the samples.

    References:
        Amari, Neural Computation 10, 251 (1998); minimum-step reconfiguration: Chen, Heyl, Nature Physics 20, 1476
        (2024), https://arxiv.org/abs/2302.01941
    """

    def __init__(self, generator: Generator, settings: NaturalGradientConfig, world: Processes | None = None) -> None:
        self.generator, self.settings = generator, settings
        self._world = Processes() if world is None else world
        self._parameters = [p for p in generator.parameters() if p.requires_grad]
        super().__init__(self._parameters, {"lr": 1.0})
        first = self._parameters[0]
        n = sum(p.numel() for p in self._parameters)
        # PyTorch takes care of what it finds here in checkpoints
        self.state[first] = {
            "scores": first.new_zeros(settings.rows, n),
            "products": first.new_zeros(settings.rows, settings.rows),
            "mean_gradient": first.new_zeros(n),
            "n_steps": 0,
            "n_rows": 0,
        }
        self._factor: tuple[Tensor, Tensor, float] | None = None

    @property
    def shortened(self) -> Float[Tensor, ""]:
        """The fraction of the scores that are longer than they count."""
        return (self._factorised()[0] < 1).double().mean()

    def needs_draw(self, step: int) -> bool:
        """Whether new samples are due at a step; always before the first that is taken."""
        return not self.state[self._parameters[0]]["n_rows"] or step % self.settings.every == 0

    def draw(self, rngs: Sequence[torch.Generator], context: Context | None = None) -> None:
        """Replace the oldest scores by those of new samples; the first time, all.

        Args:
            rngs: Random streams of the shards of this process, each of which draws an equal part.
            context: Passed on to Transitions.
        """
        own, n_shards = self.state[self._parameters[0]], len(rngs) * self._world.size
        size = min(self.settings.batch_size, self.settings.rows)
        for _ in range(1 if own["n_rows"] else math.ceil(self.settings.rows / size)):
            parts = [parameter_scores(self.generator, size // n_shards, rng, context) for rng in rngs]
            new = self._world.gather(torch.cat(parts))
            places = (own["n_rows"] + torch.arange(size, device=new.device)) % self.settings.rows
            own["scores"][places] = new
            products = own["scores"] @ new.T
            own["products"][:, places] = products
            own["products"][places] = products.T
            own["n_rows"] += size
        self._factor = None

    @torch.no_grad()
    def step(self) -> None:
        """One step from the gradients of the parameters."""
        own, settings = self.state[self._parameters[0]], self.settings
        gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self._parameters])
        own["n_steps"] += 1
        own["mean_gradient"].lerp_(gradient, 1.0 - settings.momentum)
        mean = own["mean_gradient"] / (1.0 - settings.momentum ** own["n_steps"])
        change = self.solve(mean)
        size = (self._factorised()[0] * (own["scores"] @ change)).square().mean().sqrt()
        change = change * (self.param_groups[0]["lr"] * (settings.max_change / size).clamp(max=1.0))
        for p, part in zip(self._parameters, change.split([p.numel() for p in self._parameters]), strict=True):
            p.sub_(part.view_as(p))

    def solve(self, g: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"]:
        """(F + λ)⁻¹ g, refined once, for what rounding leaves in directions of much curvature."""
        scores, n = self.state[self._parameters[0]]["scores"], self.settings.rows
        counted, factor, damping = self._factorised()

        def once(y: Tensor) -> Tensor:
            inner = torch.cholesky_solve((counted * (scores @ y)).double()[:, None] / n, factor)[:, 0]
            return (y - scores.T @ (counted * inner.to(y))) / damping

        change = once(g)
        return change + once(g - damping * change - scores.T @ (counted.square() * (scores @ change)) / n)

    def _factorised(self) -> tuple[Tensor, Tensor, float]:
        """How much of every score counts, the Cholesky factor of S Sᵀ/rows + λ of what does, and λ."""
        if self._factor is not None:
            return self._factor
        own, n = self.state[self._parameters[0]], self.settings.rows
        products = own["products"].double() / n
        lengths = products.diagonal().sqrt()
        used = lengths[lengths > 0]
        if not len(used):
            raise ValueError(
                "natural_gradient: the density does not depend on any parameter at its samples, so there is no step to "
                "take; train by another objective first."
            )
        counted = (_LONGEST * used.median() / lengths).clamp(max=1.0)
        products = counted[:, None] * products * counted
        # the trace is that of F, shared among as many eigenvalues as there are parameters
        damping = self.settings.damping * float(products.trace()) / own["scores"].shape[1]
        products.diagonal().add_(damping)
        self._factor = counted.to(own["scores"]), torch.linalg.cholesky(products), damping
        return self._factor

    def load_state_dict(self, state_dict: dict) -> None:
        """As every optimizer; the factor is made anew."""
        super().load_state_dict(state_dict)
        self._factor = None
