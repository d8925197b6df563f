"""Both KL divergences from the Generator's own samples by path gradients: forces, and no data."""

from functools import partial

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.objective import Objective, Step, ess_fraction, masked_mean
from boltzflow.objectives.reverse_kl import compress_energy
from boltzflow.targets.target import Target

__all__ = ["PathKL", "flattening_power"]

_HALVINGS = 20


def flattening_power(log_weights: Float64[Tensor, " batch"], min_efficiency: float) -> Float64[Tensor, ""]:
    """Largest α ≤ 1 at which the weights w^α have an efficiency, ESS per row; by bisection, to 10⁻⁶.

    Args:
        log_weights: log w, −inf allowed.
        min_efficiency: Efficiency wanted; 0 gives α = 1. More than the share of finite rows gives α near 0.

    Example:
        >>> log_w = torch.tensor([0.0, 10.0]).double()
        >>> power = flattening_power(log_w, 0.8)  # ½ (1 + e^10α)² / (1 + e^20α) = 0.8 at e^10α = 3
        >>> round(power.item(), 4)
        0.1099
    """
    low, high = torch.zeros_like(log_weights[0]), torch.ones_like(log_weights[0])
    finite = torch.isfinite(log_weights)

    def reached(power: Tensor) -> Tensor:
        return ess_fraction(torch.where(finite, power * log_weights, -torch.inf)) >= min_efficiency

    whole = reached(high)
    for _ in range(_HALVINGS if min_efficiency > 0 else 0):
        middle = 0.5 * (low + high)
        enough = reached(middle)
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(whole, torch.ones_like(low), low.clamp(min=2.0**-_HALVINGS))


class PathKL(Objective):
    """Gradients of KL(p‖q) and KL(q‖p) through the samples x = T(z) alone, of no variance at q = p.

    With w = p(x)/q(x), normalised over the batch, and ∂ₓ taken at fixed parameters of q,

        ∇KL(p‖q) = −E_z[w ∂ₓ log w · ∇T(z)],        ∇KL(q‖p) = −E_z[∂ₓ log w · ∇T(z)].

    The second is the path gradient of `ReverseKL`. The first follows from ∇KL(p‖q) = −E_q[w ∇log q], since
    E_q[g(w) ∇log q] = E_z[g'(w) ∂ₓw · ∇T(z)] for every smooth g. Compared with `SelfWeightedKL`, which has the same two
    mean gradients, one sample gives as many numbers as it has coordinates, and an error of the model in one coordinate
    adds no noise to the others: the noise does not grow with the dimension. It costs a force.

    Far from the target a single row of a batch has all the weight. With `min_efficiency` w is replaced by w^α, with the
    largest α ≤ 1 at which the batch has that efficiency: the path gradient of the α-divergence between KL(q‖p), α → 0,
    and KL(p‖q), α = 1, which has its minimum at q = p for every α. In a flow that improves, α grows to 1 by itself.

    A mode that the model misses is invisible to both; KL(p‖q) holds on to those that it has. Weights are truncated at
    `max_weight`, which biases the gradient; the weight removed is logged. Energies are compressed as in `ReverseKL`.

    Where a flow almost folds ∂ₓ log q has no bound, and a single row can be longer than all others together. With
    `max_residual` the derivatives by x of every row count as at most so many times as long as their median in the
    batch; how many rows are longer is logged.

    Args:
        generator: What is trained; bijective.
        target: Whose energy and force train it; kept out of the module tree.
        forward: Weight of KL(p‖q).
        reverse: Weight of KL(q‖p).
        max_weight: Largest w, in units of its mean.
        min_efficiency: Efficiency of a batch, below which its weights are raised to a power α < 1; 0 leaves them.
        max_residual: Longest derivative of the loss of a row by x, in units of the median; None for any.
        energy_cut: Excess energy above `energy_base` (kT) from which on it is compressed in the loss.
        energy_base: Level from which `energy_cut` counts, kT.

    Raises:
        TypeError: If the Generator is not bijective.

    References:
        Sticking the landing (Roeder, Wu, Duvenaud, 2017), for KL(q‖p); doubly reparameterised gradients (Tucker et al.,
        2019; generalised by Bauer and Mnih, 2021) for the identity that gives the others; α-divergences: Amari (1985).
    """

    needs_samples = True
    is_static = True

    def __init__(
        self,
        generator: Generator,
        target: Target,
        *,
        forward: float = 1.0,
        reverse: float = 0.0,
        max_weight: float = 10.0,
        min_efficiency: float = 0.0,
        max_residual: float | None = None,
        energy_cut: float = 1e3,
        energy_base: float = 0.0,
    ) -> None:
        super().__init__(generator)
        if not generator.is_bijective:
            raise TypeError("PathKL: needs a Generator of Bijections, whose density is known.")
        self._target = (target,)
        self.forward_weight, self.reverse_weight = forward, reverse
        self.max_weight, self.min_efficiency, self.max_residual = max_weight, min_efficiency, max_residual
        self.energy_cut, self.energy_base = energy_cut, energy_base

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A loss whose gradient is the estimate (its value means nothing), and the efficiency of the batch."""
        trajectory = self.generator.rollout(
            step.n_samples, self._target[0], step.rng, context=step.context, path_density=True
        )
        step.ledger.merge(trajectory.ledger)
        log_w, keep = trajectory.log_weights.detach(), trajectory.finite
        u = compress_energy(trajectory.target_energy, base=self.energy_base, cut=self.energy_cut)
        log_q = trajectory.path_log_prob
        power = flattening_power(log_w, self.min_efficiency)
        w = torch.softmax(torch.where(keep, power * log_w, -torch.inf), 0) * keep.sum()
        kept = w.clamp(max=self.max_weight)
        coefficient = self.forward_weight * kept + self.reverse_weight
        loss = masked_mean(coefficient * (u + log_q), keep & torch.isfinite(log_q.detach()))
        n_long = torch.zeros((), dtype=torch.float64, device=log_w.device)
        if self.max_residual is not None:
            for point in trajectory.path_point.fields.values():
                if point.requires_grad:
                    point.register_hook(partial(_shortened, longest=self.max_residual, count=n_long))
        return loss, {
            "ess_fraction": ess_fraction(log_w),
            "elbo": masked_mean(log_w, keep),
            "truncated_weight": (w - kept).sum() / keep.sum(),
            "power": power,
            "n_masked": (~keep).sum(),
            "n_long_residuals": n_long,
        }


def _shortened(gradient: Tensor, *, longest: float, count: Float64[Tensor, ""]) -> Tensor:
    """Rows at most `longest` times as long as the median of those that are not 0; adds to `count` how many were."""
    lengths = gradient.flatten(1).norm(dim=1)
    bound = longest * torch.where(lengths > 0, lengths, torch.nan).nanmedian().nan_to_num(torch.inf)
    count.add_((lengths > bound).sum())
    return gradient * (bound / lengths).clamp(max=1.0).view(-1, *[1] * (gradient.ndim - 1))
