"""Maximum likelihood: the forward KL divergence from data."""

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.objectives.objective import Objective, Step, finite_log_prob
from boltzflow.run import Run

__all__ = ["MaximumLikelihood"]


class MaximumLikelihood(Objective):
    """−mean log q(x) over the data; needs no energies.

    Where the last steps of the Generator drop auxiliary variables, these are drawn anew for every row, such as the
    orientation of a molecule; the mean over them, less their own log-density, bounds −log q(x) from above.

    Example:
        >>> MaximumLikelihood.needs_data
        True
    """

    needs_data = True

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Negative log-likelihood per row, over the rows that the model can map; the number of others is logged."""
        joint, dropped = self.generator.joint()
        data, drawn = step.data, torch.zeros(len(step.data), dtype=torch.float64, device=step.data.device)
        for drop in reversed(dropped):
            data, minus_ratio = drop.reverse(data, Run(step.rng, step.context))
            drawn = drawn - minus_ratio
        log_q, finite = finite_log_prob(joint, data, step.context)
        loss = -log_q.mean() + drawn.mean()
        return loss, {"nll": loss.detach(), "n_failed_data": (~finite).sum()}
