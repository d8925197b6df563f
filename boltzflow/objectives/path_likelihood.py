"""Maximum likelihood for stochastic Generators: the evidence upper bound of data traced back to the base."""

from boltzflow._typing import Float, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.decisions import decision_term
from boltzflow.objectives.objective import Objective, Step, masked_mean
from boltzflow.targets.target import Target
from boltzflow.transitions.transition import BatchStep

__all__ = ["PathLikelihood"]


class PathLikelihood(Objective):
    """mean(u_base(x_0) + Σ r) over data traced back, which differs from the EUBO mean(log w) by the mean energy alone.

    It is the KL divergence of the backward from the forward path measure up to a constant, so it bounds the negative
    log-likelihood from above, and equals it for bijections. Energies of the levels at which stochastic steps stand are
    evaluated, and counted. Decisions to accept or reject enter the gradient, see `decision_term`.

    Args:
        generator: What is trained; without BatchSteps.
        target: Whose energy the annealing path ends at; kept out of the module tree.

    Raises:
        TypeError: If the Generator resamples.

    References:
        Stochastic Normalizing Flows (Wu, Köhler, Noé, 2020), eq. 13 (J_ML).
    """

    needs_data = True

    def __init__(self, generator: Generator, target: Target) -> None:
        super().__init__(generator)
        if any(isinstance(t, BatchStep) for t in generator.transitions):
            raise TypeError(
                "PathLikelihood: resampled paths have no reverse to train on; train the Generator without BatchSteps."
            )
        self._target = (target,)

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The bound per row, over the rows that the model can map; the number of others is logged."""
        trajectory = self.generator.trace_back(step.data, self._target[0], step.rng, context=step.context)
        step.ledger.merge(trajectory.ledger)
        keep = trajectory.finite
        # what the decisions of a Transition can change lies between it and the base
        costs, total = [], trajectory.base_energy
        for ratio in trajectory.log_ratios:
            total = total + ratio
            costs.append(total)
        loss = masked_mean(total, keep)
        eubo = masked_mean(trajectory.log_weights.detach(), keep)
        loss_with_decisions = loss + decision_term(trajectory.decisions, costs, keep)
        return loss_with_decisions, {"nll_bound": loss.detach(), "eubo": eubo, "n_failed_data": (~keep).sum()}
