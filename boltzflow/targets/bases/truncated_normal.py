"""Normal distribution cut off at bounds, entry by entry."""

import math

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import uniform
from boltzflow.targets.bases._parameters import event_shape, parameter
from boltzflow.targets.target import Base

__all__ = ["TruncatedNormal", "require_mass", "sample_truncated_normal", "truncated_normal_constant"]


def _standardised(mean: Tensor, scale: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds in units of the scale, mirrored to where tail probabilities keep their digits, and the sign of the mirror.

    An infinite scale (uniform) is replaced by 1; callers overwrite those entries.
    """
    mean, scale, lower, upper = (t.double() for t in (mean, scale, lower, upper))
    scale = torch.where(scale.isinf(), 1.0, scale)
    a, b = (lower - mean) / scale, (upper - mean) / scale
    mirror = a + b > 0  # NaN for unbounded entries, which need no mirror
    return torch.where(mirror, -b, a), torch.where(mirror, -a, b), torch.where(mirror, -1.0, 1.0)


def truncated_normal_constant(mean: Tensor, scale: Tensor, lower: Tensor, upper: Tensor) -> Float64[Tensor, "..."]:
    """Log ∫ exp(−(x − mean)²/2 scale²) dx between the bounds, entry by entry, float64; an infinite scale is uniform."""
    a, b, _ = _standardised(mean, scale, lower, upper)
    log_b = torch.special.log_ndtr(b)
    log_mass = log_b + torch.log1p(-torch.exp(torch.special.log_ndtr(a) - log_b))
    constant = log_mass + scale.double().log() + 0.5 * math.log(2 * math.pi)
    return torch.where(scale.isinf(), (upper.double() - lower.double()).log(), constant)


def sample_truncated_normal(
    n: int, mean: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, rng: torch.Generator
) -> Tensor:
    """Exact samples by the inverse of the cumulative distribution, shape (n, *shape), with the dtype of `mean`."""
    a, b, sign = _standardised(mean, scale, lower, upper)
    u = uniform((n, *mean.shape), rng, mean)
    # 0.5 erfc, because torch.special.ndtr is 0.5 (1 + erf), which has no digits left in the tail
    low, high = (0.5 * torch.erfc(-bound / math.sqrt(2)) for bound in (a, b))
    scaled = sign * torch.special.ndtri(low + (high - low) * u)
    x = torch.where(scale.isinf(), lower + (upper - lower) * u, mean + scale * scaled)
    return x.to(mean.dtype).clamp(lower, upper)


def require_mass(mean: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, what: str) -> None:
    """Check that bounds are ordered and hold enough of the normal's mass for exact sampling.

    Raises:
        ValueError: If a lower bound is not below its upper bound, or the bounds lie more than 30 scales from the mean.
    """
    if not (lower < upper).all():
        raise ValueError(f"{what}: expected every lower bound below its upper bound.")
    if (torch.maximum(lower - mean, mean - upper) / scale > 30).any():
        raise ValueError(f"{what}: the bounds lie more than 30 scales from the mean; move the mean or widen the scale.")


class TruncatedNormal(Base):
    """N(mean, scale²) restricted to [lower, upper] for every entry of one field, normalised over that interval.

    It does not depend on the context.

    Args:
        shape: Event shape of the field, or its number of entries.
        mean: Mean before truncation, a number or a tensor that broadcasts to the shape.
        scale: Standard deviation before truncation, likewise; positive.
        lower: Lower bounds, likewise; may be −inf.
        upper: Upper bounds, likewise; may be +inf.
        name: Name of the field.
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        mean: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        lower: float | Tensor = 0.0,
        upper: float | Tensor = 1.0,
        name: str = "x",
    ) -> None:
        shape = event_shape(shape)
        super().__init__({name: Space("interval", shape)}, log_z=0.0)
        self.register_buffer("mean", parameter(mean, shape, "TruncatedNormal mean"))
        self.register_buffer("scale", parameter(scale, shape, "TruncatedNormal scale", positive=True))
        self.register_buffer("lower", parameter(lower, shape, "TruncatedNormal lower"))
        self.register_buffer("upper", parameter(upper, shape, "TruncatedNormal upper"))
        require_mass(self.mean, self.scale, self.lower, self.upper, "TruncatedNormal")
        self.field = name

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """−log of the normalised density inside the bounds, +inf outside; shape (batch,)."""
        x = state[self.field]
        inside = ((x >= self.lower) & (x <= self.upper)).flatten(1).all(1)
        energy = 0.5 * ((x - self.mean) / self.scale).square().flatten(1).sum(1, dtype=torch.float64)
        constant = truncated_normal_constant(self.mean, self.scale, self.lower, self.upper).sum()
        return torch.where(inside, energy + constant, torch.inf)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        return self.state(sample_truncated_normal(n, self.mean, self.scale, self.lower, self.upper, rng))
