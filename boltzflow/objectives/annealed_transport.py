"""Annealed flow transport: the maps between the levels of an annealed sampler, trained on its own populations."""

import itertools

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.objective import Objective, Step, ess_fraction
from boltzflow.objectives.population import bare, finite_weights, moved, weighted_mean
from boltzflow.run import Run
from boltzflow.targets.target import Target
from boltzflow.transitions.transition import Bijection

__all__ = ["AnnealedTransport"]


class AnnealedTransport(Objective):
    """Σ_k KL(T_k π_{k−1} ‖ π_k) over the maps T_k of an annealed Generator, each on the weighted population before it.

    A step runs one population through all levels; particles, weights and moves are constants, so that every map has a
    gradient of its own (CRAFT). With `steps_per_level` the maps are trained one after the other, each for so many steps
    while those before it stay and those after it are not run (AFT, with a fresh population at every step). Populations
    of the training are thrown away: `sample` draws others, and its weights are exact whatever the maps have learned.

    Args:
        generator: From `smc` or `annealed_importance` with maps.
        target: At λ = 1; kept out of the module tree.
        steps_per_level: None = all maps at every step.

    Raises:
        TypeError: If no map comes before a level.

    References:
        Matthews, Arbel, Rezende and Doucet, ICML 2022 (CRAFT); Arbel, Matthews and Doucet, ICML 2021 (AFT).
    """

    needs_samples = True

    def __init__(self, generator: Generator, target: Target, *, steps_per_level: int | None = None) -> None:
        super().__init__(generator)
        steps = list(generator.transitions)
        mapped = [isinstance(a, Bijection) and b.level is not None for a, b in itertools.pairwise(steps)]
        if not any(mapped) or isinstance(steps[-1], Bijection):
            raise TypeError(
                "AnnealedTransport: expected a map before every level and moves after the last; build the Generator "
                "with boltzflow.generators.smc(..., maps=[...])."
            )
        self._target = (target,)
        self.n_maps = sum(mapped)
        self.steps_per_level = steps_per_level

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The sum of the divergences, up to constants, and the effective fraction where the population ends."""
        generator, target = self.generator, self._target[0]
        base = generator.base
        free = (base,) if base.log_z is not None and base is not target else ()
        run = Run(step.rng, step.context, step.ledger, free=free)
        path = generator.path(base, target)
        last = None if self.steps_per_level is None else min(step.index // self.steps_per_level, self.n_maps - 1)
        with torch.no_grad():
            state = base.sample(step.n_samples, step.rng, step.context)
            u, state = run.evaluate(base, state)
        # A of the weights A − u_λ(x), and the log-ratio of the maps since the last level
        total, ratio, k = u, None, 0
        loss = torch.zeros((), dtype=torch.float64, device=state.device)
        for transition in generator.transitions:
            if isinstance(transition, Bijection):
                with torch.set_grad_enabled(last is None or k == last):
                    state, r = transition(bare(state), run) if ratio is None else transition(state, run)
                ratio = r if ratio is None else ratio + r
                continue
            here = run.at(path.at(transition.level))
            if ratio is not None:
                after, _ = here.energy(state)
                if last is None or k == last:
                    loss = loss + weighted_mean(total - u, after - ratio - u)
                total, u, state, ratio = total + ratio.detach(), after.detach(), bare(state), None
                if k == last:
                    break
                k += 1
            with torch.no_grad():
                state, u, total = moved(transition, state, here, u, total)
        return loss, {"transport": loss.detach(), "ess_fraction": ess_fraction(finite_weights(total - u))}
