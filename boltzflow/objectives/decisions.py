"""The part of a gradient that goes through decisions to accept or reject, which no derivative of a path has."""

from collections.abc import Sequence

import torch

from boltzflow._typing import Bool, Float64, Tensor
from boltzflow.objectives.objective import masked_mean

__all__ = ["decision_term"]


def decision_term(
    decisions: Sequence[Float64[Tensor, " batch"] | None],
    costs: Sequence[Float64[Tensor, " batch"]],
    keep: Bool[Tensor, " batch"],
) -> Float64[Tensor, ""]:
    """A term of value 0 whose gradient completes that of a mean over paths with Metropolis tests in them.

    With noise n and decisions a, ∇E[f] = E[∇f(n, a) + f(n, a) ∇log P(a|n)]: the first part is what autograd finds at
    fixed decisions, and alone it is biased. The second is this term. For every Transition f is only what its decisions
    can change, less the mean of the other rows, neither of which changes the expectation.

    Args:
        decisions: log P of the decisions of every Transition, as in a `Trajectory`.
        costs: For every Transition the part of each row's loss that its decisions can change.
        keep: Rows that enter the mean.

    References:
        Williams, Machine Learning 8, 229 (1992); Schulman et al., NeurIPS 2015 (stochastic computation graphs), for
        costs to go.
    """
    total = torch.zeros((), dtype=torch.float64, device=keep.device)
    n = keep.sum()
    for log_p, cost in zip(decisions, costs, strict=True):
        if log_p is None:
            continue
        cost = torch.where(keep, cost.detach(), 0.0)
        # the mean over the other rows: with the row itself in it the estimate would be (n − 1)/n too small
        advantage = (cost - cost.sum() / n.clamp(min=1)) * n / (n - 1).clamp(min=1)
        total = total + masked_mean(advantage * log_p, keep)
    return total - total.detach()
