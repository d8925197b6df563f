"""FlowPerturbation: a continuous flow whose weight needs Jacobian-vector products alone, as a bijection with noise."""

import math
from itertools import islice

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.run import Run
from boltzflow.state import Space, State
from boltzflow.transitions.flow_noise import NOISE, centred_directions, noise_of, require_isotropic
from boltzflow.transitions.implicit_steps import ImplicitSteps
from boltzflow.transitions.step_size import at_least_one
from boltzflow.transitions.transition import Bijection

__all__ = ["FlowPerturbation", "PerturbedFlow"]


class FlowPerturbation(ImplicitSteps, Bijection):
    """(z, e) → (f(z), A e |e|/|A e|), f the steps of `ImplicitSteps` and A the Jacobian of their inverse.

    The log-ratio is −d ln(|A e|/|e|), with the dimension d of the field's space: no determinant is computed. Over
    isotropic e its exponential has the mean |det ∂f/∂z|, so weights are unbiased, and noisy in place of slow: a spread
    of about √d times that of the squared singular values of A. With one e for every step (FP++) the variance of the
    log-weight falls as 1/n_steps.

    The noise is the field "x_noise" of the State, (batch, n_noises, *event), that `DrawNoise` makes and `DropNoise`
    takes: `[DrawNoise(flow.n_noises), flow, DropNoise(flow.n_noises)]`. It takes part in the map: drawn afresh on the
    way back, it would bias the weight.

    Args:
        field: The velocities.
        n_steps: Steps.
        per_step: One direction for every step (FP++), or one for the whole map (FP).
        name: Name of the State's field of positions (batch, N, D), or of a flat one (batch, d).

    Attributes:
        n_noises: Directions that it takes.

    References:
        Flow Perturbation to Accelerate Boltzmann Sampling (Peng, Gao, 2024), https://arxiv.org/abs/2407.10666; a
        direction for every step: https://arxiv.org/abs/2601.21177

    Example:
        >>> from boltzflow.generators import Generator
        >>> from boltzflow.networks import ShallowField
        >>> from boltzflow.targets import Gaussian, Harmonic
        >>> from boltzflow.transitions import DrawNoise, DropNoise
        >>> flow = FlowPerturbation(ShallowField(3, 8), n_steps=2, name="x").double()
        >>> steps = [DrawNoise(2, name="x"), flow, DropNoise(2, name="x")]
        >>> ensemble = Generator(Gaussian(3).double(), steps).sample(100, Harmonic(torch.ones(3)).double(), seed=1)
        >>> round(float(ensemble.log_weights[0]), 6)  # untrained, it moves nothing
        2.756816
    """

    def __init__(self, field: VectorField, *, n_steps: int = 1, per_step: bool = True, name: str = "positions") -> None:
        super().__init__(field, n_steps=n_steps, name=name)
        self.per_step = per_step
        self.n_noises = n_steps if per_step else 1

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The steps in order; the log-ratio is −d Σ ln(|A e|/|e|)."""
        space, noise = self._space(state), noise_of(state, self.name, self.n_noises, "FlowPerturbation")
        x, ratio, turned = state[self.name], _zeros(state), []
        steps = self.along(x, space)
        for block, e in zip(self._blocks(), noise.unbind(1), strict=True):
            points = []
            for _, x, found in islice(steps, len(block)):
                ratio = torch.where(found, ratio, torch.nan)
                points.append(x)
            pulled = e
            for k, point in zip(reversed(block), reversed(points), strict=True):
                pulled = self.pull(point, pulled, k, space)
            log_stretch = _log_norm(pulled) - _log_norm(e)
            ratio = ratio - space.dimension * log_stretch
            turned.append(_scaled_down(pulled, log_stretch))
        return state.replace(**{self.name: x, self.name + NOISE: torch.stack(turned, 1)}), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The explicit inverses in opposite order, and e_b to A⁻¹ e_b of the length of e_b."""
        space, noise = self._space(state), noise_of(state, self.name, self.n_noises, "FlowPerturbation")
        x, ratio, turned = state[self.name], _zeros(state), []
        for block, e in zip(reversed(self._blocks()), reversed(noise.unbind(1)), strict=True):
            points = []
            for k in reversed(block):
                points.append(x)
                x = self.back(x, k, space)
            pushed = e
            for k, point in zip(block, reversed(points), strict=True):
                pushed, found = self.push(point, pushed, k, space)
                ratio = torch.where(found, ratio, torch.nan)
            log_stretch = _log_norm(pushed) - _log_norm(e)
            ratio = ratio - space.dimension * log_stretch
            turned.insert(0, _scaled_down(pushed, log_stretch))
        return state.replace(**{self.name: x, self.name + NOISE: torch.stack(turned, 1)}), ratio

    def _blocks(self) -> list[range]:
        """The steps that share a direction."""
        return [range(k, k + 1) for k in range(self.n_steps)] if self.per_step else [range(self.n_steps)]


class PerturbedFlow(ImplicitSteps):
    """The steps of `ImplicitSteps` with the perturbation drawn and given up inside, averaged over several directions.

    Every step has a log-ratio of log-mean-exp(−d ln |A u|) over K random orthonormal directions u. That is exact, each
    way: it is the ratio of choosing one direction with a probability that goes as |A u|^−d, which the map of
    `FlowPerturbation` turns, against drawing the turned one, mapping it back, and completing the frame at random. The
    State carries no noise, so that the weight is that of the positions; its variance falls about as 1/K.

    Args:
        field: The velocities.
        n_steps: Steps.
        n_directions: K, at most the dimension of the field's space; a Jacobian-vector product each.
        name: Name of the State's field of positions (batch, N, D), or of a flat one (batch, d).
        noise: Distribution of the directions before they are normalised: "normal".

    Raises:
        ValueError: If numbers are not positive, or the noise is not isotropic.

    References:
        Flow Perturbation to Accelerate Boltzmann Sampling (Peng, Gao, 2024), https://arxiv.org/abs/2407.10666; a
        direction for every step: https://arxiv.org/abs/2601.21177

    Example:
        >>> from boltzflow.generators import Generator
        >>> from boltzflow.networks import ShallowField
        >>> from boltzflow.targets import Gaussian, Harmonic
        >>> flow = PerturbedFlow(ShallowField(3, 8), n_steps=2, n_directions=2, name="x").double()
        >>> ensemble = Generator(Gaussian(3).double(), [flow]).sample(100, Harmonic(torch.ones(3)).double(), seed=1)
        >>> round(float(ensemble.log_weights[0]), 6)  # untrained, it moves nothing
        2.756816
    """

    def __init__(
        self,
        field: VectorField,
        *,
        n_steps: int = 1,
        n_directions: int = 1,
        name: str = "positions",
        noise: str = "normal",
    ) -> None:
        super().__init__(field, n_steps=n_steps, name=name)
        require_isotropic("PerturbedFlow", noise)
        self.n_directions = at_least_one("PerturbedFlow n_directions", n_directions)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The steps in order, with directions of their own."""
        space = self._space(state)
        x, ratio = state[self.name], _zeros(state)
        for k, x, found in self.along(x, space):  # noqa: B020
            u = _frame(self._directions(x, space, self.n_directions, run))
            ratio = torch.where(found, ratio + self._mean(x, u, k, space), torch.nan)
        return state.replace(**{self.name: x}), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The explicit inverses in opposite order; the first direction of every frame is the turned one mapped back."""
        space = self._space(state)
        x, ratio = state[self.name], _zeros(state)
        for k in reversed(range(self.n_steps)):
            directions = self._directions(x, space, self.n_directions, run)
            chosen, found = self.push(x, directions[:, 0], k, space)
            u = _frame(torch.cat([chosen[:, None], directions[:, 1:]], 1))
            ratio = torch.where(found, ratio - self._mean(x, u, k, space), torch.nan)
            x = self.back(x, k, space)
        return state.replace(**{self.name: x}), ratio

    def _mean(self, y: Tensor, frame: Tensor, k: int, space: Space) -> Float64[Tensor, " batch"]:
        powers = [-space.dimension * _log_norm(self.pull(y, u, k, space)) for u in frame.unbind(1)]
        return torch.logsumexp(torch.stack(powers), 0) - math.log(len(powers))

    def _directions(self, x: Tensor, space: Space, n: int, run: Run) -> Tensor:
        if n > space.dimension:
            raise ValueError(
                f"PerturbedFlow n_directions: expected at most the dimension {space.dimension} of field {self.name!r}, "
                f"got {n}: no more are orthogonal."
            )
        return centred_directions(x, space, n, run)


def _frame(directions: Float[Tensor, "batch n *event"]) -> Float[Tensor, "batch n *event"]:
    """Orthonormal directions that span what the first 1, 2, … span; signs are of no account."""
    q = torch.linalg.qr(directions.flatten(2).mT).Q
    return q.mT.reshape(directions.shape)


def _log_norm(e: Float[Tensor, "batch *event"]) -> Float64[Tensor, " batch"]:
    return 0.5 * e.double().flatten(1).square().sum(1).log()


def _scaled_down(e: Tensor, log_factor: Float64[Tensor, " batch"]) -> Tensor:
    return e * torch.exp(-log_factor).to(e.dtype).reshape(-1, *[1] * (e.ndim - 1))


def _zeros(state: State) -> Float64[Tensor, " batch"]:
    return torch.zeros(len(state), dtype=torch.float64, device=state.device)
