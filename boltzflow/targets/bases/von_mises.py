"""Von Mises distribution, the normal distribution's counterpart on the circle."""

import math

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import angles, uniform
from boltzflow.targets.bases._parameters import event_shape, parameter
from boltzflow.targets.target import Base

__all__ = ["VonMises", "sample_von_mises", "von_mises_constant"]


def von_mises_constant(concentration: Tensor) -> Float64[Tensor, "..."]:
    """Log ∫ exp(κ (cos x − 1)) dx = log(2π e^−κ I_0(κ)) over the circle, entry by entry, float64."""
    return (2 * math.pi * torch.special.i0e(concentration.double())).log()


def sample_von_mises(n: int, mean: Tensor, concentration: Tensor, rng: torch.Generator) -> Tensor:
    """Exact samples in (−π, π] by rejection from a wrapped Cauchy distribution; κ = 0 is uniform.

    Args:
        n: Number of samples.
        mean: Mean direction in rad, any shape.
        concentration: κ ≥ 0, of the same shape.
        rng: Random stream.

    Returns:
        Angles of shape (n, *shape), with the dtype of `mean`.

    References:
        Best and Fisher, Appl. Stat. 28, 152 (1979).
    """
    shape = (n, *mean.shape)
    kappa = concentration.double().expand(shape).reshape(-1)
    x = angles((kappa.numel(),), rng, mean)
    open_ = torch.nonzero(kappa > 1e-100).squeeze(1)
    while len(open_):  # at worst a third is rejected per round
        k = kappa[open_]
        tau = 1 + (1 + 4 * k.square()).sqrt()
        # (tau − sqrt(2 tau)) / 2k in the form that does not cancel at small k
        rho = 2 * k / (tau + (2 * tau).sqrt())
        r = (1 + rho.square()) / (2 * rho)
        u = uniform((3, len(open_)), rng, mean)
        c = torch.cos(math.pi * u[0])
        f = (1 + r * c) / (r + c)
        g = k * (r - f)
        accept = (g.log() - (1 - u[1]).log() + 1 - g) >= 0
        x[open_[accept]] = (torch.sign(u[2] - 0.5) * f.clamp(-1, 1).acos())[accept]
        open_ = open_[~accept]
    x = x.reshape(shape) + mean.double()
    return (math.pi - torch.remainder(math.pi - x, 2 * math.pi)).to(mean.dtype)


class VonMises(Base):
    """Von Mises density exp(κ cos(x − mean)) for every angle of one field, normalised; does not depend on the context.

    The density is periodic: an angle outside (−π, π] means the same as the one inside.

    Args:
        shape: Event shape of the field, or its number of entries.
        mean: Mean direction in rad, a number or a tensor that broadcasts to the shape.
        concentration: κ ≥ 0, likewise; 0 is the uniform density 1/2π.
        name: Name of the field.
    """

    measure = "torus"

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        mean: float | Tensor = 0.0,
        concentration: float | Tensor = 0.0,
        name: str = "x",
    ) -> None:
        shape = event_shape(shape)
        super().__init__({name: Space("circle", shape)}, log_z=0.0)
        self.register_buffer("mean", parameter(mean, shape, "VonMises mean"))
        self.register_buffer("concentration", parameter(concentration, shape, "VonMises concentration"))
        if not ((self.concentration >= 0) & self.concentration.isfinite()).all():
            raise ValueError("VonMises concentration: expected finite values of at least 0.")
        self.field = name

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """−log of the normalised density, shape (batch,)."""
        terms = self.concentration * (1 - torch.cos(state[self.field] - self.mean))
        return terms.flatten(1).sum(1, dtype=torch.float64) + von_mises_constant(self.concentration).sum()

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples in (−π, π]."""
        return self.state(sample_von_mises(n, self.mean, self.concentration, rng))
