"""GaussianPerturbation: flow perturbation whose way back has a normal density of any shape that depends on x alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.networks.mlp import MLP
from boltzflow.networks.vector_field import VectorField
from boltzflow.run import Run
from boltzflow.state import Space, State
from boltzflow.transitions.flow_noise import NOISE, noise_of
from boltzflow.transitions.implicit_steps import ImplicitSteps
from boltzflow.transitions.transition import Bijection

__all__ = ["Factor", "GaussianPerturbation", "LearnedFactor"]

Factor = Callable[[Tensor, float], tuple[Tensor, Tensor | None, Tensor | None]]
"""Of (x, t): log s, (batch, d), and U and V, (batch, k, d), or None for both, of L = diag(s) (1 + Σ_k u_k v_kᵀ)."""


class GaussianPerturbation(ImplicitSteps, Bijection):
    """(z, e) → (f(z), L⁻¹ A e) with a direction for every step, A the Jacobian of its inverse, L(x) a factor.

    The noise of the way back has the covariance L Lᵀ. The log-ratio is −Σ log|det L|; with the densities of e before
    and after it makes weights whose mean over e is exact for any L: ∫ N(L⁻¹ A e) |det L⁻¹ A| de = 1. They are least
    noisy where L Lᵀ is A Aᵀ. Its root mean square diagonal is the best scalar; diagonal and low-rank factors leave the
    less, the more unlike the axes are and the less they mix; L = A leaves nothing, at the cost of a determinant.
    `FlowPerturbation` needs no factor, and has the noise of the best scalar without that of the length of e.

    The noise is the field "x_noise" of the State, which `DrawNoise` makes, `DropNoise` takes, or a `NoisyBase` has.

    Args:
        field: The velocities.
        factor: L at the end of a step and its time; a module is trained with the field, such as `LearnedFactor`.
        n_steps: Steps.
        name: Name of the State's field of positions, a flat one (batch, d).

    Attributes:
        n_noises: Directions that it takes.

    References:
        Flow Perturbation to Accelerate Boltzmann Sampling (Peng, Gao, 2024), the backward variance of eq. 8,
        https://arxiv.org/abs/2407.10666

    Example:
        >>> from boltzflow.generators import Generator
        >>> from boltzflow.networks import ShallowField
        >>> from boltzflow.targets import Gaussian, Harmonic
        >>> from boltzflow.transitions import DrawNoise, DropNoise
        >>> flow = GaussianPerturbation(ShallowField(3, 8), LearnedFactor(3, rank=1), n_steps=2, name="x").double()
        >>> steps = [DrawNoise(2, name="x"), flow, DropNoise(2, name="x")]
        >>> ensemble = Generator(Gaussian(3).double(), steps).sample(100, Harmonic(torch.ones(3)).double(), seed=1)
        >>> round(float(ensemble.log_weights[0]), 6)  # untrained, it moves nothing
        2.756816
    """

    def __init__(self, field: VectorField, factor: Factor, *, n_steps: int = 1, name: str = "positions") -> None:
        super().__init__(field, n_steps=n_steps, name=name)
        self.factor = factor
        self.n_noises = n_steps

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The steps in order; the log-ratio is −Σ log|det L|."""
        space, noise = self._flat(state), noise_of(state, self.name, self.n_noises, "GaussianPerturbation")
        x, ratio, turned = state[self.name], 0.0, []
        for e, (k, end, found) in zip(noise.unbind(1), self.along(x, space), strict=True):
            factor = self._factor(end, k)
            turned.append(factor.solve(self.pull(end, e, k, space)))
            ratio = torch.where(found, ratio - factor.log_det(), torch.nan)
            x = end
        return state.replace(**{self.name: x, self.name + NOISE: torch.stack(turned, 1)}), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The explicit inverses in opposite order, and e_b to A⁻¹ L e_b."""
        space, noise = self._flat(state), noise_of(state, self.name, self.n_noises, "GaussianPerturbation")
        x, ratio, turned = state[self.name], 0.0, []
        for k, e in zip(reversed(range(self.n_steps)), reversed(noise.unbind(1)), strict=True):
            factor = self._factor(x, k)
            pushed, found = self.push(x, factor.apply(e), k, space)
            turned.insert(0, pushed)
            ratio = torch.where(found, ratio + factor.log_det(), torch.nan)
            x = self.back(x, k, space)
        return state.replace(**{self.name: x, self.name + NOISE: torch.stack(turned, 1)}), ratio

    def _factor(self, x: Tensor, k: int) -> "_Factor":
        return _Factor(*self.factor(x, self._time(k)))

    def _flat(self, state: State) -> Space:
        space = self._space(state)
        if len(space.shape) != 1:
            raise ValueError(
                f"GaussianPerturbation: expected a flat field {self.name!r}, got one of shape {space.shape}, where "
                "scales would prefer axes, and move the centre of mass. Take FlowPerturbation."
            )
        return space


@dataclass(frozen=True)
class _Factor:
    """L = diag(exp(log_scale)) (1 + Uᵀ V) of every row; what is not diagonal is solved in k × k."""

    log_scale: Float[Tensor, "batch d"]
    left: Float[Tensor, "batch k d"] | None
    right: Float[Tensor, "batch k d"] | None

    def apply(self, e: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """L e."""
        if self.left is not None:
            e = e + torch.einsum("bkd,bk->bd", self.left, torch.einsum("bkd,bd->bk", self.right, e))
        return self.log_scale.exp() * e

    def solve(self, y: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """L⁻¹ y."""
        y = y * torch.exp(-self.log_scale)
        if self.left is None:
            return y
        inner = torch.linalg.solve_ex(self._inner(), torch.einsum("bkd,bd->bk", self.right, y)[..., None])[0]
        return y - torch.einsum("bkd,bk->bd", self.left, inner[..., 0])

    def log_det(self) -> Float64[Tensor, " batch"]:
        """log|det L|, by the determinant lemma."""
        total = self.log_scale.double().sum(1)
        return total if self.left is None else total + torch.linalg.slogdet(self._inner().double()).logabsdet

    def _inner(self) -> Float[Tensor, "batch k k"]:
        eye = torch.eye(self.left.shape[1], dtype=self.left.dtype, device=self.left.device)
        return eye + torch.einsum("bkd,bld->bkl", self.right, self.left)


class LearnedFactor(torch.nn.Module):
    """log s, U and V of `GaussianPerturbation` as outputs of a small network of (x, t); L = 1 before training.

    Args:
        d: Coordinates.
        rank: k; 0 = a diagonal factor.
        hidden: Widths of the hidden layers.

    Example:
        >>> [out.shape for out in LearnedFactor(4, rank=2)(torch.zeros(3, 4), 0.5)]
        [torch.Size([3, 4]), torch.Size([3, 2, 4]), torch.Size([3, 2, 4])]
    """

    def __init__(self, d: int, *, rank: int = 0, hidden: Sequence[int] = (32,)) -> None:
        super().__init__()
        self.d, self.rank = d, rank
        self.network = MLP(d + 1, d * (1 + 2 * rank), hidden=hidden, zero_init=True)
        # with U = V = 0 neither would ever move
        self.directions = torch.nn.Parameter(torch.randn(rank, d) / math.sqrt(d)) if rank else None

    def forward(self, x: Float[Tensor, "batch d"], t: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log s, U and V."""
        out = self.network(torch.cat([x, torch.full_like(x[:, :1], t)], 1))
        if self.rank == 0:
            return out, None, None
        left, right = out[:, self.d :].reshape(len(x), 2, self.rank, self.d).unbind(1)
        return out[:, : self.d], left, self.directions + right
