"""Likelihood of the data that the model gives too little density: what importance weights need most."""

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.objective import Objective, Step, finite_log_prob, masked_mean
from boltzflow.run import Run
from boltzflow.targets.target import Target

__all__ = ["CoverageLikelihood"]


class CoverageLikelihood(Objective):
    """−E_data[c log q], c = min((w − tolerance)₊, max_weight) with w = p(x)/q(x): what the model has too little of.

    E_p[w] is the inverse of the sampling efficiency, and −E_p[w ∇log q] its gradient, that of the χ² divergence
    (Midgley et al. 2023, eq. 3, with α = 2). Data that the model covers would only add noise to it: where w is below
    the tolerance they are left to other terms. A basin of probability 10⁻³ that the model holds too thin weighs next to
    nothing in the likelihood and in the reverse KL divergence; here it weighs as much as it spoils the weights.

    Coefficients are found for the whole batch without gradients, with Z from E_p[1/w] = 1; then rows are
    drawn in proportion to them. Energies of the data are evaluated, and counted.

    Args:
        generator: What is trained; bijective.
        target: Whose energy gives w; kept out of the module tree.
        tolerance: w from which on a row counts.
        max_weight: Largest coefficient.
        selected_fraction: Rows with a gradient, as a fraction of the batch.

    Raises:
        TypeError: If the Generator is not bijective.
    """

    needs_data = True

    def __init__(
        self,
        generator: Generator,
        target: Target,
        *,
        tolerance: float = 2.0,
        max_weight: float = 30.0,
        selected_fraction: float = 0.125,
    ) -> None:
        super().__init__(generator)
        if not generator.is_bijective:
            raise TypeError("CoverageLikelihood: needs a Generator of Bijections, whose density is known.")
        self._target = (target,)
        self.tolerance, self.max_weight = tolerance, max_weight
        self.selected_fraction = selected_fraction

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A loss whose gradient is the estimate, E_p[w] of the batch and the likelihood of its rows."""
        run = Run(step.rng, step.context, ledger=step.ledger)
        with torch.no_grad():
            u, _ = run.evaluate(self._target[0], step.data)
            log_q = self.generator.log_prob(step.data, context=step.context)
            coefficient, efficiency = self._coefficient(-u - log_q)
        n_selected = max(1, round(self.selected_fraction * len(step.data)))
        # a tiny constant keeps the draw defined where every row is covered
        probabilities = (coefficient + 1e-12).to(step.rng.device)
        rows = torch.multinomial(probabilities, n_selected, replacement=True, generator=step.rng)
        selected, _ = finite_log_prob(self.generator, step.data.index(rows.to(log_q.device)), step.context)
        loss = -coefficient.mean() * selected.mean()
        finite = log_q.isfinite()
        return loss, {
            "nll": -masked_mean(log_q, finite),
            "forward_ess_fraction": efficiency,
            "coverage": coefficient.mean(),
            "n_failed_data": (~finite).sum(),
        }

    def _coefficient(self, log_w: Float64[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        finite = log_w.isfinite()
        log_n = finite.sum().clamp(min=1).double().log()
        log_z = log_n - torch.logsumexp(torch.where(finite, -log_w, -torch.inf), 0)
        log_w = torch.where(finite, log_w - log_z, -torch.inf)
        coefficient = (log_w.exp() - self.tolerance).clamp(0.0, self.max_weight)
        return coefficient, torch.exp(log_n - torch.logsumexp(log_w, 0))
