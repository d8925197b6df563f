"""Maximum likelihood: the forward KL divergence from data."""

from boltzflow._typing import Float, Tensor
from boltzflow.objectives.objective import Objective, Step, masked_mean

__all__ = ["MaximumLikelihood"]


class MaximumLikelihood(Objective):
    """−mean log q(x) over the data; needs no energies.

    Example:
        >>> MaximumLikelihood.needs_data
        True
    """

    needs_data = True

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Negative log-likelihood per row, and the number of rows that the model could not map."""
        log_q = self.generator.log_prob(step.data, context=step.context)
        finite = log_q.detach().isfinite()
        loss = -masked_mean(log_q, finite)
        return loss, {"nll": loss.detach(), "n_failed_data": (~finite).sum()}
