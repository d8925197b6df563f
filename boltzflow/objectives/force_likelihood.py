"""Maximum likelihood by path gradients: data with their forces, which are evaluated once."""

from collections.abc import Mapping

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.objective import Objective, Step, masked_mean
from boltzflow.run import Context, Ledger, Run
from boltzflow.state import Evaluation, State
from boltzflow.targets.target import Target
from boltzflow.transitions.transition import Bijection

__all__ = ["ForceLikelihood"]

_ROWS = 1024
"""Rows of the data whose forces are evaluated at once."""


class ForceLikelihood(Objective):
    """KL(p‖q) over data x ~ p by gradients through z = T⁻¹(x) alone, of no variance at q = p.

    The divergence is also that of p pulled back to the base, p₀ = T⁻¹p, from the density q₀ of the base. Pulled back as
    well, the score ∂ log p = −∂u becomes that of p₀ at fixed parameters, and

        ∇KL(p‖q) = E_p[(∂ log p₀ − ∂ log q₀)(z) · ∇T⁻¹(x)].

    No derivative of a log-determinant by the parameters is formed. In `MaximumLikelihood`, of the same mean gradient,
    every row adds the noise of its own density; here the forces tell what the density is, and the noise vanishes with
    the error of the model. The data must be samples of p, at its temperature: nothing weighs them. Their forces are
    evaluated before the first step, and counted.

    Args:
        generator: What is trained; bijective, with a base of known log Z.
        target: Whose forces the data have; kept out of the module tree.

    Raises:
        TypeError: If the Generator is not bijective.
        ValueError: If log Z of the base is unknown.

    References:
        Fast and Unified Path Gradient Estimators for Normalizing Flows (Vaitl et al., 2024), forward KL,
        https://arxiv.org/abs/2403.15881; of continuous flows: Path gradients after flow matching (Vaitl, Klein, 2025),
        https://arxiv.org/abs/2505.10139
    """

    needs_data = True

    def __init__(self, generator: Generator, target: Target) -> None:
        super().__init__(generator)
        if not all(isinstance(t, Bijection) for t in generator.transitions):
            raise TypeError("ForceLikelihood: needs a Generator of Bijections, whose density is known.")
        if generator.base.log_z is None:
            raise ValueError(
                f"ForceLikelihood: log Z of {generator.base.name} is unknown, so there is no normalised density."
            )
        self._target = (target,)

    def prepare(self, data: State, context: Context | None, ledger: Ledger) -> State:
        """The data with energies and forces of all rows."""
        run, target = Run(torch.Generator(), context, ledger=ledger), self._target[0]
        energies, forces = [], []
        for start in range(0, len(data), _ROWS):
            energy, force, _ = run.evaluate_with_force(target, data.index(slice(start, start + _ROWS)))
            energies.append(energy)
            forces.append(force)
        force = {name: torch.cat([one[name] for one in forces]) for name in forces[0]}
        return data.with_evaluation(target, Evaluation(torch.cat(energies), force, context))

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A loss whose gradient is the estimate (its value means nothing), and the negative log-likelihood."""
        run = Run(step.rng, step.context, ledger=step.ledger, free=(self.generator.base,))
        _, score, data = run.evaluate_with_force(self._target[0], step.data)
        z, error, log_q = self._pulled_back(data, score, run)
        keep = _finite(z, error) & torch.isfinite(log_q)
        if not bool(keep.all()) and bool(keep.any()):
            # a mask on the result alone would leave 0·NaN in the gradients of the parameters
            score = {name: value[keep] for name, value in score.items()}
            z, error, log_q = self._pulled_back(data.index(keep), score, run)
        terms = (z[name] * value for name, value in error.items())
        loss = sum(term.flatten(1).sum(1, dtype=torch.float64) for term in terms).mean()
        return loss, {"nll": -masked_mean(log_q, torch.isfinite(log_q)), "n_failed_data": (~keep).sum()}

    def _pulled_back(
        self, state: State, score: Mapping[str, Tensor], run: Run
    ) -> tuple[State, dict[str, Tensor], Float64[Tensor, " batch"]]:
        """T⁻¹(x) with autograd history, ∂ log p₀ − ∂ log q₀ there by field, and log q(x), both without."""
        total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for transition in reversed(self.generator.transitions):
            state, ratio, score = transition.reverse_with_score(state, run, score)
            total = total + ratio.detach()
        energy, force, _ = run.evaluate_with_force(self.generator.base, state.detach())
        error = {name: value - force[name] for name, value in score.items() if name in force}
        return state, error, total - energy - self.generator.base.log_z


def _finite(z: State, error: Mapping[str, Tensor]) -> Tensor:
    rows = [torch.isfinite(value.detach()).flatten(1).all(1) for name in error for value in (z[name], error[name])]
    return torch.stack(rows).all(0)
