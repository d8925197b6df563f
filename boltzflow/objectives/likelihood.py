"""Maximum likelihood: the forward KL divergence from data."""

from boltzflow._typing import Float, Tensor
from boltzflow.objectives.objective import Objective, Step, finite_log_prob

__all__ = ["MaximumLikelihood"]


class MaximumLikelihood(Objective):
    """−mean log q(x) over the data; needs no energies.

    Example:
        >>> MaximumLikelihood.needs_data
        True
    """

    needs_data = True

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Negative log-likelihood per row, over the rows that the model can map; the number of others is logged."""
        log_q, finite = finite_log_prob(self.generator, step.data, step.context)
        loss = -log_q.mean()
        return loss, {"nll": loss.detach(), "n_failed_data": (~finite).sum()}
