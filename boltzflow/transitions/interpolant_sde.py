"""InterpolantSDE: stochastic steps along a stochastic interpolant, exactly weighted by their own path ratio."""

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.interpolant import Interpolant
from boltzflow.transitions.metropolis import centred_normal
from boltzflow.transitions.step_size import at_least_one, require_one_step
from boltzflow.transitions.transition import Transition

__all__ = ["InterpolantSDE"]


class InterpolantSDE(Transition):
    """Euler-Maruyama steps of dx = (v + ε s) dt + √(2ε) dW, which has the marginals of dx = v dt for every ε.

    v is the mean velocity and s the score of x_t. With the mean η of the noise in x_t, of standard deviation γ_t,
    s = −η/γ_t; ε = diffusion · γ_t, so that no step divides by a noise that ends. Backwards the steps are those of the
    time-reversed equation, of drift −(v − ε s), and the log-ratio is that of the two Gaussians: weights are exact for
    every number of steps, whatever v and η are. They scatter by what the discrete paths are not reversed by, and by the
    errors of v and s, which the noise heals on the way. The deterministic equation is `EulerFlow` along the same field.

    Args:
        field: v.
        denoiser: η; None = where the base is normal and the interpolant adds no noise: what is left of the base is
            noise, and its mean follows from v.
        interpolant: What v and η are those of.
        base_scale: Standard deviation of the base, without a denoiser.
        n_steps: Steps.
        diffusion: ε/γ_t, positive.
        name: Name of the State's field of positions (batch, N, D), or of a flat one (batch, d).

    Raises:
        ValueError: If the diffusion is not positive, or there is neither a denoiser nor a base_scale, or both.

    References:
        Stochastic Interpolants (Albergo, Boffi, Vanden-Eijnden, 2023), section 2, https://arxiv.org/abs/2303.08797;
        weights: Nilmeier et al., PNAS 108, E1009 (2011).

    Example:
        >>> from boltzflow.generators import Generator
        >>> from boltzflow.networks import ShallowField
        >>> from boltzflow.targets import Gaussian
        >>> steps = InterpolantSDE(ShallowField(2, 8), base_scale=1.0, n_steps=20, diffusion=0.1, name="x").double()
        >>> ensemble = Generator(Gaussian(2).double(), [steps]).sample(1000, Gaussian(2).double(), seed=1)
        >>> ensemble.log_z().value < 5 * ensemble.log_z().error
        True
    """

    def __init__(
        self,
        field: VectorField,
        *,
        denoiser: VectorField | None = None,
        interpolant: Interpolant | None = None,
        base_scale: float | None = None,
        n_steps: int = 1,
        diffusion: float = 1.0,
        name: str = "positions",
    ) -> None:
        super().__init__()
        if (denoiser is None) == (base_scale is None):
            raise ValueError(
                "InterpolantSDE: expected a denoiser, or the base_scale of a normal base from which the mean of the "
                f"noise follows, got {'neither' if denoiser is None else 'both'}."
            )
        if not diffusion > 0:
            raise ValueError(
                f"InterpolantSDE diffusion: expected a positive number, got {diffusion}; without noise the steps have "
                "no path ratio, use EulerFlow along the same field."
            )
        self.interpolant = Interpolant() if interpolant is None else interpolant
        if denoiser is None and self.interpolant.noise > 0:
            raise ValueError("InterpolantSDE: an interpolant with noise needs a denoiser; give one, or set noise to 0.")
        self.field, self.denoiser, self.name = field, denoiser, name
        self.base_scale, self.diffusion = base_scale, diffusion
        self.n_steps = at_least_one("InterpolantSDE n_steps", n_steps)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The steps in order, with fresh noise."""
        x, space = state[self.name], state.spaces[self.name]
        ratio = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in range(self.n_steps):
            noise = centred_normal(x, space, run)
            y = self._ahead(x, k) + self._width(k) * noise
            ratio = ratio + _half_square(noise) - _half_square((x - self._back(y, k)) / self._width(k))
            x = y
        return state.replace(**{self.name: x}), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Steps of the time-reversed equation in opposite order; minus the forward ratio of the same path."""
        y, space = state[self.name], state.spaces[self.name]
        minus = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for k in reversed(range(self.n_steps)):
            noise = centred_normal(y, space, run)
            x = self._back(y, k) + self._width(k) * noise
            minus = minus + _half_square(noise) - _half_square((y - self._ahead(x, k)) / self._width(k))
            y = x
        return state.replace(**{self.name: y}), minus

    def log_ratio(self, before: State, after: State, run: Run) -> Float64[Tensor, " batch"]:
        """The forward ratio of one given step.

        Raises:
            ValueError: If the Transition makes several steps: what lies between is not in the pair.
        """
        require_one_step(self, self.n_steps)
        x, y = before[self.name], after[self.name]
        forward, back = y - self._ahead(x, 0), x - self._back(y, 0)
        return _half_square(forward / self._width(0)) - _half_square(back / self._width(0))

    def _ahead(self, x: Tensor, k: int) -> Tensor:
        v, pull = self._drifts(x, k / self.n_steps)
        return x + (v - pull) / self.n_steps

    def _back(self, y: Tensor, k: int) -> Tensor:
        v, pull = self._drifts(y, (k + 1) / self.n_steps)
        return y - (v + pull) / self.n_steps

    def _drifts(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The velocity, and −ε s = diffusion · η."""
        v = self.field(x, t)
        if self.denoiser is not None:
            return v, self.diffusion * self.denoiser(x, t)
        time = torch.as_tensor(t, dtype=torch.float64)
        (alpha, beta, _), (alpha_slope, beta_slope, _) = self.interpolant.at(time), self.interpolant.slopes(time)
        base = (float(beta_slope) * x - float(beta) * v) / float(alpha * beta_slope - alpha_slope * beta)
        return v, self.diffusion / self.base_scale * base

    def _width(self, k: int) -> float:
        """Standard deviation of the noise of a step, of both directions."""
        alpha, _, gamma = self.interpolant.at(torch.tensor((k + 0.5) / self.n_steps, dtype=torch.float64))
        amplitude = gamma if self.denoiser is not None else alpha * self.base_scale
        return float((2.0 * self.diffusion * amplitude / self.n_steps).sqrt())

    def extra_repr(self) -> str:
        """Steps, noise and the field of the State."""
        return f"n_steps={self.n_steps}, diffusion={self.diffusion}, name={self.name!r}"


def _half_square(x: Float[Tensor, "batch *event"]) -> Float64[Tensor, " batch"]:
    return 0.5 * x.double().flatten(1).square().sum(1)
