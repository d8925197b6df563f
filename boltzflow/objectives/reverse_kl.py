"""Reverse KL divergence: training from the energy alone."""

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.decisions import decision_term
from boltzflow.objectives.objective import Objective, Step, ess_fraction, masked_mean
from boltzflow.targets.target import Target
from boltzflow.transitions.transition import BatchStep

__all__ = ["ReverseKL", "compress_energy"]


def compress_energy(u: Float64[Tensor, " batch"], *, base: float, cut: float) -> Float64[Tensor, " batch"]:
    """Replace u − base above `cut` by cut·(1 + log((u − base)/cut)), so that clashes train but do not rule.

    The function and its slope are continuous.

    Args:
        u: Reduced energies.
        base: Level from which the excess counts, kT.
        cut: Excess in kT above which it grows logarithmically.

    Example:
        >>> compress_energy(torch.tensor([1.0, 10.0]).double(), base=0.0, cut=10.0)
        tensor([ 1., 10.], dtype=torch.float64)
    """
    excess = u - base
    high = excess > cut
    return torch.where(high, base + cut * (1.0 + torch.log(torch.where(high, excess, cut) / cut)), u)


class ReverseKL(Objective):
    """mean(u(x_T) − u_base(x_0) − Σ r) over model paths, i.e. minus the ELBO.

    Decisions to accept or reject on these paths enter the gradient, see `decision_term`.

    Args:
        generator: What is trained.
        target: Whose energy trains it; kept out of the module tree.
        path_gradient: Leave out the score term of zero mean: the gradient is that of u(x) + log q(x) through x alone
            (Roeder, Wu, Duvenaud 2017), of zero variance at q = p. Needs bijections; a step takes 1.4 times as long.
        energy_cut: Excess energy above `energy_base` (kT) from which on it is compressed in the loss.
        energy_base: Level from which `energy_cut` counts, kT.
    """

    needs_samples = True
    is_static = True

    def __init__(
        self,
        generator: Generator,
        target: Target,
        *,
        path_gradient: bool = False,
        energy_cut: float = 1e3,
        energy_base: float = 0.0,
    ) -> None:
        super().__init__(generator)
        if any(isinstance(t, BatchStep) for t in generator.transitions):
            raise TypeError(
                "ReverseKL: resampled paths have no density to train on; train the Generator without BatchSteps."
            )
        if path_gradient and not generator.is_bijective:
            raise TypeError("ReverseKL: path_gradient needs a Generator of Bijections; set path_gradient to false.")
        self._target = (target,)
        self.path_gradient = path_gradient
        self.energy_cut = energy_cut
        self.energy_base = energy_base

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Minus the ELBO of the compressed energy, and the sampling efficiency of the batch."""
        trajectory = self.generator.rollout(
            step.n_samples, self._target[0], step.rng, context=step.context, path_density=self.path_gradient
        )
        step.ledger.merge(trajectory.ledger)
        keep = trajectory.finite
        u = compress_energy(trajectory.target_energy, base=self.energy_base, cut=self.energy_cut)
        if self.path_gradient:
            log_q = trajectory.path_log_prob
            loss = masked_mean(u + log_q, keep & torch.isfinite(log_q.detach()))
        else:
            # what the decisions of a Transition can change lies between it and the target
            costs, total = [], u
            for ratio in reversed(trajectory.log_ratios):
                total = total - ratio
                costs.insert(0, total)
            loss = masked_mean(total - trajectory.base_energy, keep)
            loss = loss + decision_term(trajectory.decisions, costs, keep)
        log_w = trajectory.log_weights.detach()
        elbo = masked_mean(log_w, keep)
        return loss, {"reverse_kl": -elbo, "ess_fraction": ess_fraction(log_w), "n_masked": (~keep).sum()}
