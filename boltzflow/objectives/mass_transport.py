"""Constrained mass transport: steps towards the target, bounded in KL divergence and in loss of entropy."""

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq

from boltzflow._typing import Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.buffered import BufferedKL
from boltzflow.targets.target import Target

__all__ = ["ConstrainedStep", "MassTransport", "constrained_step"]

_LARGEST = 1e18
"""Multipliers above this mean that a constraint cannot be met on the samples: the step is one of this size."""


@dataclass(frozen=True, eq=False)
class ConstrainedStep:
    """The density nearest to the target within the bounds, on samples of the present one.

    Attributes:
        trust: λ, multiplier of the bound on KL(q'‖q); 0 where it does not bind.
        entropy: η, multiplier of the bound on H(q) − H(q'); 0 where it does not bind.
        log_ratio: log q'/q of the samples, normalised over them, shape (n,).
        kl: KL(q'‖q) on the samples.
        entropy_loss: H(q) − H(q') on the samples.
    """

    trust: float
    entropy: float
    log_ratio: Tensor
    kl: float
    entropy_loss: float


def constrained_step(
    log_p: Float64[Tensor, " n"],
    log_q: Float64[Tensor, " n"],
    *,
    max_kl: float,
    max_entropy_loss: float = math.inf,
) -> ConstrainedStep:
    """Minimise KL(q'‖p) under KL(q'‖q) ≤ max_kl and H(q) − H(q') ≤ max_entropy_loss, from samples of q.

    The minimiser is q' ∝ q^(λ/(1+λ+η)) p^(1/(1+λ+η)); λ, η ≥ 0 maximise the concave dual

        g(λ, η) = −(1+λ+η) log E_q[exp((log p − (1+η) log q)/(1+λ+η))] − λ max_kl + η (H(q) − max_entropy_loss),

    whose derivatives are KL(q'‖q) − max_kl and H(q) − H(q') − max_entropy_loss. Each falls as its multiplier grows, and
    the zero of the second, with the best λ for every η, is found by bisection about that of the first.

    The difference of entropies is that in the measure of log q: it is not invariant under a change of coordinates.

    Args:
        log_p: Log-density of the target up to a constant, −inf allowed.
        log_q: Log-density of the samples.
        max_kl: Bound on KL(q'‖q), positive.
        max_entropy_loss: Bound on the loss of entropy, positive; inf = none.

    Raises:
        ValueError: If a bound is not positive, or no sample has density under p.

    References:
        Learning Boltzmann Generators via Constrained Mass Transport (von Klitzing et al., 2025), section 3.

    Example:
        >>> x = torch.linspace(-6, 6, 4001).double()
        >>> x = torch.special.ndtri((torch.arange(4000) + 0.5).double() / 4000)  # N(0, 1)
        >>> step = constrained_step(-50 * x**2, -0.5 * x**2, max_kl=0.5)
        >>> round(step.kl, 6)
        0.5
    """
    if not max_kl > 0.0 or not max_entropy_loss > 0.0:
        raise ValueError(
            f"constrained_step: expected positive bounds, got max_kl={max_kl}, max_entropy_loss={max_entropy_loss}."
        )
    if not bool(torch.isfinite(log_p).any()):
        raise ValueError("constrained_step: no sample has density under the target; widen the model's samples.")
    problem = _Dual(log_p, log_q)

    def best_trust(entropy: float) -> float:
        return _root(lambda trust: problem.at(trust, entropy).kl - max_kl)

    def excess(entropy: float) -> float:
        return problem.at(best_trust(entropy), entropy).entropy_loss - max_entropy_loss

    entropy = 0.0 if math.isinf(max_entropy_loss) else _root(excess)
    return problem.at(best_trust(entropy), entropy)


class _Dual:
    def __init__(self, log_p: Tensor, log_q: Tensor) -> None:
        self.log_p, self.log_q = log_p, log_q
        self.log_n = math.log(len(log_q))
        self.cross_entropy = -log_q.mean()

    def at(self, trust: float, entropy: float) -> ConstrainedStep:
        """The minimiser at given multipliers."""
        scaled = (self.log_p - (1.0 + entropy) * self.log_q) / (1.0 + trust + entropy)
        log_share = torch.log_softmax(scaled, 0)
        share, log_ratio = log_share.exp(), log_share + self.log_n
        held = share > 0
        kl = (share[held] * log_ratio[held]).sum()
        # H(q') = −Σ share log q', with log q' = log q + log_ratio
        new_entropy = -(share[held] * (self.log_q[held] + log_ratio[held])).sum()
        return ConstrainedStep(trust, entropy, log_ratio, float(kl), float(self.cross_entropy - new_entropy))


def _root(excess) -> float:
    """The multiplier at which a falling function of it vanishes; 0 where it is not positive to begin with."""
    if excess(0.0) <= 0.0:
        return 0.0
    high = 1.0
    while excess(high) > 0.0:
        if high > _LARGEST:
            return high
        high *= 10.0
    # multipliers spread over many decades
    return math.expm1(brentq(lambda t: excess(math.expm1(t)), 0.0, math.log1p(high), xtol=1e-10, rtol=1e-10))


class MassTransport(BufferedKL):
    """Stage k trains on the density nearest to the target within a KL trust region and a bound on the loss of entropy.

    It starts from any Generator, an untrained one included: the multipliers of the bounds shrink stage by stage as the
    model approaches the target, and where both are 0 the target itself is trained on. There is no schedule to choose.

    Args:
        generator: What is trained; bijective.
        target: Whose energy gives the weights.
        n_stages: Number of buffers.
        stage_steps: Optimisation steps on each.
        buffer_size: Samples in each buffer.
        batch_size: Rows per step.
        max_kl: Bound on KL(p_k‖q_k) per stage, nats; the effective sample size of a buffer is about exp(−2 max_kl).
        max_entropy_loss: Bound on the loss of entropy per stage, nats; inf = none.
        clip_fraction: Share of the rows whose weights are lowered to the largest of the others.
        control_variate: See `BufferedKL`.
        chi_squared: See `BufferedKL`.

    Raises:
        TypeError: If the Generator is not bijective.

    References:
        Learning Boltzmann Generators via Constrained Mass Transport (von Klitzing et al., 2025), section 3.
    """

    def __init__(
        self,
        generator: Generator,
        target: Target,
        *,
        n_stages: int,
        stage_steps: int,
        buffer_size: int,
        batch_size: int,
        max_kl: float,
        max_entropy_loss: float = math.inf,
        clip_fraction: float = 1e-4,
        control_variate: bool = True,
        chi_squared: float = 0.0,
    ) -> None:
        super().__init__(
            generator,
            target,
            n_stages=n_stages,
            stage_steps=stage_steps,
            buffer_size=buffer_size,
            batch_size=batch_size,
            clip_fraction=clip_fraction,
            control_variate=control_variate,
            chi_squared=chi_squared,
        )
        self.max_kl, self.max_entropy_loss = max_kl, max_entropy_loss

    def log_ratio(
        self, stage: int, u: Float64[Tensor, " buffer"], log_q: Float64[Tensor, " buffer"]
    ) -> tuple[Float64[Tensor, " buffer"], dict[str, float]]:
        """The log-ratio q'/q of the constrained step, and its multipliers."""
        found = constrained_step(-u, log_q, max_kl=self.max_kl, max_entropy_loss=self.max_entropy_loss)
        return found.log_ratio, {
            "trust_multiplier": found.trust,
            "entropy_multiplier": found.entropy,
            "stage_kl": found.kl,
            "stage_entropy_loss": found.entropy_loss,
        }
