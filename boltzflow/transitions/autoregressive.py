"""AutoregressiveFlow: every point moves by an affine map that those before it say."""

from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.networks.causal_transformer import CausalTransformer
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.transition import Bijection

__all__ = ["AutoregressiveFlow"]


class AutoregressiveFlow(Bijection):
    """y_i = μ_i + exp(α_i) x_i, with μ_i and α_i of a causal transformer on y_1 … y_{i−1}; log|det ∂y/∂x| = Σ α.

    One way of several that change the order of the points. `reverse`, from samples to the base, evaluates all points at
    once, and so does training by likelihood; `forward` makes one point after the other, with what the transformer has
    seen before kept as keys and values. A new one moves nothing.

    Args:
        types: Type of every point, an integer each; [0] * N for points without.
        n_dimensions: Of a point: 3 for atoms, 1 for the numbers of a flat field.
        backwards: Whether the last point comes first.
        width: Features of the transformer.
        n_layers: Its layers.
        head_width: Features of its attention heads.
        name: The State's field, (batch, N, n_dimensions), or (batch, N) where n_dimensions is 1.

    References:
        Normalizing Flows are Capable Generative Models (Zhai et al., 2024), section 2, https://arxiv.org/abs/2412.06329;
        on atoms: Scalable Equilibrium Sampling with Sequential Boltzmann Generators (Tan et al., 2025),
        https://arxiv.org/abs/2502.18462

    Example:
        >>> from boltzflow.run import make_rng
        >>> from boltzflow.targets import Gaussian
        >>> flow = AutoregressiveFlow([0] * 4, 3, width=16, n_layers=1, head_width=8).double()
        >>> state = Gaussian((4, 3), name="positions").double().sample(2, make_rng(1))
        >>> flow(state, Run(make_rng(1)))[1]  # untrained, it moves nothing
        tensor([0., 0.], dtype=torch.float64, grad_fn=<SumBackward1>)
    """

    def __init__(
        self,
        types: Sequence[int],
        n_dimensions: int,
        *,
        backwards: bool = False,
        width: int = 128,
        n_layers: int = 2,
        head_width: int = 64,
        name: str = "positions",
    ) -> None:
        super().__init__()
        self.n_dimensions, self.backwards, self.name = n_dimensions, backwards, name
        ordered = list(reversed(types)) if backwards else list(types)
        self.network = CausalTransformer(
            ordered, n_dimensions, 2 * n_dimensions, width=width, n_layers=n_layers, head_width=head_width
        )

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """One point after the other; the log-ratio is the sum of the log-scales."""
        x = self._points(state)
        y, log_scales, cache = x.new_zeros(len(x), self.n_dimensions), [], None
        points = []
        for i in range(x.shape[1]):
            parameters, cache = self.network.step(y, i, cache)
            shift, log_scale = parameters.chunk(2, -1)
            y = shift + torch.exp(log_scale) * x[:, i]
            points.append(y)
            log_scales.append(log_scale)
        return self._with_points(state, torch.stack(points, 1)), _total(torch.stack(log_scales, 1))

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """All points at once; minus the sum of the log-scales."""
        y = self._points(state)
        shift, log_scale = self.network(y).chunk(2, -1)
        return self._with_points(state, (y - shift) * torch.exp(-log_scale)), -_total(log_scale)

    def _points(self, state: State) -> Float[Tensor, "batch n_points n_dimensions"]:
        """The points in the order in which they come."""
        points = state[self.name].reshape(len(state), -1, self.n_dimensions)
        return points.flip(1) if self.backwards else points

    def _with_points(self, state: State, points: Tensor) -> State:
        points = points.flip(1) if self.backwards else points
        return state.replace(**{self.name: points.reshape(state[self.name].shape)})

    def extra_repr(self) -> str:
        """Order and the field of the State."""
        return f"backwards={self.backwards}, name={self.name!r}"


def _total(log_scale: Tensor) -> Float64[Tensor, " batch"]:
    return log_scale.flatten(1).sum(1, dtype=torch.float64)
