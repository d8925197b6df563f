"""Both KL divergences from the Generator's own samples, by their weights: energies without forces, and no data."""

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.objective import Objective, Step, ess_fraction, finite_log_prob, masked_mean
from boltzflow.state import State
from boltzflow.targets.target import Target

__all__ = ["SelfWeightedKL"]


class SelfWeightedKL(Objective):
    """Gradients of KL(p‖q) and KL(q‖p) as −E_q[c(x) ∇log q(x)], with coefficients that vanish at q = p.

    With x ~ q held fixed and w = p(x)/q(x), normalised over the batch,

        ∇KL(p‖q) = −E_q[(w − 1) ∇log q],        ∇KL(q‖p) = −E_q[(log w − mean log w) ∇log q],

    since E_q[∇log q] = 0. Both estimates have no variance at q = p, where the likelihood of data has its full one. The
    second is the gradient of the log-variance loss. They refine a Generator that overlaps with the target and cannot
    see a mode that it misses: precede or accompany them by a likelihood. w is truncated at `max_weight`, log w below
    its median at −`max_deviation`, where rows of infinite energy count; the weight that the first removes is logged.

    Args:
        generator: What is trained; bijective.
        target: Whose energy gives the weights; kept out of the module tree.
        forward: Weight of KL(p‖q).
        reverse: Weight of KL(q‖p).
        max_weight: Largest w, in units of its mean.
        max_deviation: Largest fall of log w below its median, in nats; clashes count as this.

    Raises:
        TypeError: If the Generator is not bijective.

    References:
        Neural Importance Sampling (Müller et al., 2019), eq. 12; VarGrad (Richter et al., 2020), eq. 8, for the second.
    """

    needs_samples = True

    def __init__(
        self,
        generator: Generator,
        target: Target,
        *,
        forward: float = 1.0,
        reverse: float = 0.0,
        max_weight: float = 20.0,
        max_deviation: float = 10.0,
    ) -> None:
        super().__init__(generator)
        if not generator.is_bijective:
            raise TypeError("SelfWeightedKL: needs a Generator of Bijections, whose density is known.")
        self._target = (target,)
        self.forward_weight, self.reverse_weight = forward, reverse
        self.max_weight, self.max_deviation = max_weight, max_deviation

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A loss whose gradient is the estimate (its value means nothing), and the efficiency of the batch."""
        with torch.no_grad():
            trajectory = self.generator.rollout(step.n_samples, self._target[0], step.rng, context=step.context)
        step.ledger.merge(trajectory.ledger)
        # rows without an image under the flow have no density; those without energy have one, which should fall
        mapped = torch.isfinite(sum(trajectory.log_ratios, trajectory.base_energy)) & ~trajectory.failed
        mapped = mapped | ~mapped.any()  # if there are none, the loss is NaN and the step is left out
        end, log_w = trajectory.end.index(mapped), trajectory.log_weights[mapped]
        log_q, finite = finite_log_prob(self.generator, State(end.fields, end.spaces), step.context)
        coefficient, truncated = self._coefficient(log_w)
        loss = -(coefficient[finite] * log_q).mean() if bool(finite.any()) else log_q.mean()
        return loss, {
            "ess_fraction": ess_fraction(trajectory.log_weights),
            "elbo": masked_mean(log_w, torch.isfinite(log_w)),
            "truncated_weight": truncated,
            "n_masked": len(mapped) - finite.sum(),
        }

    def _coefficient(self, log_w: Float64[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        w = torch.softmax(log_w, 0) * len(log_w)
        kept = w.clamp(max=self.max_weight)
        median = torch.where(torch.isfinite(log_w), log_w, torch.nan).nanmedian()
        deviation = (log_w - median).clamp(min=-self.max_deviation)
        forward, reverse = kept - kept.mean(), deviation - deviation.mean()
        return self.forward_weight * forward + self.reverse_weight * reverse, 1.0 - kept.mean()
