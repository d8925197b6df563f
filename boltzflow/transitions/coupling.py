"""SplineCoupling: rational-quadratic splines of some coordinates, conditioned on others."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.func import functional_call

from boltzflow._typing import Bool, Float, Float64, Tensor
from boltzflow.networks.linear import Linear, silu_rows, silu_rows_input_gradient
from boltzflow.networks.mlp import MLP, CoordinateFeatures, ResidualMLP
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.spline_kernels import conditioned_spline, n_spline_parameters, spline_score
from boltzflow.transitions.splines import kind_masks
from boltzflow.transitions.transition import Bijection

__all__ = ["Conditioner", "SplineCoupling", "alternating_masks"]


class SplineCoupling(Bijection):
    """Transforms some coordinates of a flat field by splines whose parameters are a function of other coordinates.

    Circles, intervals and lines may be mixed; all of them go through one fused kernel. A new coupling is the identity.
    Interval coordinates outside [0, 1] become NaN (the Generator counts them as failed); lines are left as they are
    beyond ±bound; circles are wrapped to (−period/2, period/2].

    Args:
        kinds: "circle", "interval" or "line" for each of the d coordinates of the field.
        transformed: Which coordinates are transformed; the rest conditions.
        field: Name of the field, of shape (batch, d).
        bins: Bins of each spline.
        hidden: Widths of the hidden layers of the conditioner.
        residual: Use residual blocks (one per two hidden layers, all of the first width).
        harmonics: Harmonics of the circles that the conditioner sees.
        context: Names in `run.context` to condition on, each with its number of features.
        bound: Half-length of the part of a line that is bent.
        period: Period of the circles.
        min_bin: Smallest width and height of a bin, as a fraction of the domain.
        min_derivative: Smallest derivative at a knot.
        fused: Compiled kernels with closed-form gradients; False uses plain eager operations, for torch.func
            transforms.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
        Normalizing Flows on Tori and Spheres (Rezende et al., 2020), https://arxiv.org/abs/2002.02428
    """

    def __init__(
        self,
        kinds: Sequence[str],
        transformed: Bool[Tensor, " d"],
        *,
        field: str = "q",
        bins: int = 8,
        hidden: Sequence[int] = (128, 128),
        residual: bool = False,
        harmonics: int = 1,
        context: Mapping[str, int] | None = None,
        bound: float = 5.0,
        period: float = 2.0 * torch.pi,
        min_bin: float = 1e-3,
        min_derivative: float = 1e-3,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.field, self.bins, self.fused = field, bins, fused
        self.bound, self.period, self.min_bin, self.min_derivative = bound, period, min_bin, min_derivative
        self.conditioner = Conditioner(
            kinds,
            transformed,
            n_spline_parameters(bins),
            hidden=hidden,
            residual=residual,
            harmonics=harmonics,
            context=context,
            period=period,
            fused=fused,
        )
        for name, mask in kind_masks([kinds[i] for i in self.conditioner.transformed]).items():
            self.register_buffer(name, mask)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Transform; the log-ratio is log|det ∂y/∂x|."""
        return self._apply_spline(state, run, inverse=False)

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The exact inverse, with its log|det|."""
        return self._apply_spline(state, run, inverse=True)

    def forward_with_score(
        self, state: State, run: Run, score: Mapping[str, Tensor]
    ) -> tuple[State, Float64[Tensor, " batch"], dict[str, Tensor]]:
        """As for every Bijection, by closed forms at the point x and one product with the Jacobian of the network."""
        rows = state[self.field].t().contiguous()
        raw, pull_back = self.conditioner.with_pull_back(rows, run)
        transformed = self.conditioner.transformed
        x = rows.index_select(0, transformed)
        y, ratio = self._bend(state, rows, x, raw, inverse=False)
        before = score[self.field].t()
        moved, by_raw = spline_score(
            before.index_select(0, transformed), x, raw, self.line, self.circle, **self._domain
        )
        after = (before + pull_back(by_raw)).index_copy(0, transformed, moved)
        return y, ratio, {**score, self.field: after.t()}

    @property
    def _domain(self) -> dict[str, float]:
        return {
            "bound": self.bound,
            "period": self.period,
            "min_bin": self.min_bin,
            "min_derivative": self.min_derivative,
        }

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds its references."""
        return ("SplineCoupling", "circular spline") if bool(self.circle.any()) else ("SplineCoupling",)

    def _apply_spline(self, state: State, run: Run, *, inverse: bool) -> tuple[State, Float64[Tensor, " batch"]]:
        # Coordinates stay contiguous rows from one coupling to the next: (batch, d) below is a transposed view.
        rows = state[self.field].t().contiguous()
        x = rows.index_select(0, self.conditioner.transformed)
        return self._bend(state, rows, x, self.conditioner(rows, run), inverse=inverse)

    def _bend(
        self, state: State, rows: Tensor, x: Tensor, raw: Tensor, *, inverse: bool
    ) -> tuple[State, Float64[Tensor, " batch"]]:
        y, log_derivative = conditioned_spline(
            x, raw, self.line, self.circle, inverse=inverse, fused=self.fused, **self._domain
        )
        rows = rows.index_copy(0, self.conditioner.transformed, y)
        return state.replace(**{self.field: rows.t()}), log_derivative.sum(0, dtype=torch.float64)

    def extra_repr(self) -> str:
        """Field, and how many coordinates condition and are transformed."""
        c = self.conditioner
        sizes = f"conditioning={len(c.conditioning)}, transformed={len(c.transformed)}, bins={self.bins}"
        return f"field={self.field!r}, {sizes}"


class Conditioner(torch.nn.Module):
    """Raw parameters of the transformed coordinates as a function of the other ones; zero before training.

    Args:
        kinds: Kind of each coordinate.
        transformed: Which are transformed.
        n_parameters: Raw parameters of each transformed coordinate.
        hidden, residual, harmonics, context, period, fused: See `SplineCoupling`.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        transformed: Bool[Tensor, " d"],
        n_parameters: int,
        *,
        hidden: Sequence[int],
        residual: bool,
        harmonics: int,
        context: Mapping[str, int] | None,
        period: float,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if len(kinds) != len(transformed):
            raise ValueError(
                f"coupling: expected one kind per coordinate, got {len(kinds)} kinds and a mask of {len(transformed)}."
            )
        if bool(transformed.all()) or not bool(transformed.any()):
            raise ValueError(
                "coupling: at least one coordinate must be transformed and one must condition; use ElementwiseSpline "
                "or Affine."
            )
        kind_masks(kinds)  # raises on unknown kinds
        self.register_buffer("transformed", torch.nonzero(transformed).flatten())
        self.register_buffer("conditioning", torch.nonzero(~transformed).flatten())
        self.context = dict(context or {})
        self.features = CoordinateFeatures([kinds[i] for i in self.conditioning], period=period, harmonics=harmonics)
        n_in = self.features.n_out + sum(self.context.values())
        layer = Linear if fused else torch.nn.Linear
        if residual:
            self.trunk = ResidualMLP(n_in, width=hidden[0], blocks=max(1, len(hidden) // 2), layer=layer)
        else:
            self.trunk = MLP(n_in, hidden=hidden, layer=layer)
        self.n_parameters = n_parameters
        self.head = layer(self.trunk.n_out, n_parameters * len(self.transformed))
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, rows: Float[Tensor, "d batch"], run: Run) -> Float[Tensor, "n_parameters n_transformed batch"]:
        """Parameters outermost, batch innermost, contiguous."""
        return self._shaped(self._network(self._inputs(rows, run)))

    def with_pull_back(
        self, rows: Float[Tensor, "d batch"], run: Run
    ) -> tuple[Float[Tensor, "n_parameters n_transformed batch"], Callable[[Tensor], Tensor]]:
        """`forward`, and a function from a gradient by its result to the one by the rows, at fixed parameters."""
        flat = self._network(self._inputs(rows, run))

        def pull_back(grad: Tensor) -> Tensor:
            by_inputs = silu_rows_input_gradient(flat, grad.reshape(flat.shape))
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                if by_inputs is not None:
                    return torch.autograd.grad(self._inputs(leaf, run), leaf, by_inputs)[0]
                # once more, without a graph for the parameters
                frozen = {name: p.detach() for name, p in self.named_parameters()}
                return torch.autograd.grad(functional_call(self, frozen, (leaf, run)), leaf, grad)[0]

        return self._shaped(flat), pull_back

    def _inputs(self, rows: Tensor, run: Run) -> Tensor:
        x = self.features(rows.index_select(0, self.conditioning).t())
        if self.context:
            x = torch.cat([x, *[self._context_features(name, n, x, run) for name, n in self.context.items()]], dim=1)
        return x

    def _network(self, x: Tensor) -> Tensor:
        if isinstance(self.head, Linear) and isinstance(self.trunk, MLP):
            return silu_rows(x, [*self.trunk.linears, self.head])
        return self.head(self.trunk(x)).t()

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.reshape(self.n_parameters, len(self.transformed), -1)

    def _context_features(self, name: str, n: int, like: Tensor, run: Run) -> Tensor:
        if run.context is None or name not in run.context:
            raise ValueError(
                f"coupling: conditioned on context {name!r} ({n} features), but run.context does not hold it."
            )
        value = torch.as_tensor(run.context[name], dtype=like.dtype, device=like.device)
        value = value.reshape(-1, n) if value.ndim != 1 or n == 1 else value
        return value.expand(like.shape[0], n)


def alternating_masks(kinds: Sequence[str], n_couplings: int, rng: torch.Generator) -> list[Bool[Tensor, " d"]]:
    """Masks of transformed coordinates in complementary pairs, so that coordinates get to condition each other.

    The first pair splits the coordinates in random halves, every further pair splits the groups that are still
    together: after 2 ⌈log2 d⌉ couplings every coordinate has conditioned every other one directly, and no choice of
        halves does it with fewer. Then it
    starts again with other halves. Every coordinate is transformed once per pair.

    Args:
        kinds: Kinds of the d coordinates, at least two.
        n_couplings: Number of masks.
        rng: Random stream (its device must be the CPU).

    Returns:
        One mask per coupling, True where a coordinate is transformed.
    """
    d = len(kinds)
    if d < 2:
        raise ValueError(f"alternating_masks: expected at least two coordinates, got {d}.")
    masks, groups = [], [torch.arange(d)]
    while len(masks) < n_couplings:
        mask, halves = torch.zeros(d, dtype=torch.bool), []
        for group in groups:
            group = group[torch.randperm(len(group), generator=rng)]
            # the odd one out goes where fewer are
            larger = len(group) % 2 and 2 * int(mask.sum()) < sum(len(half) for half in halves)
            cut = len(group) // 2 + int(larger)
            mask[group[:cut]] = True
            halves += [group[:cut], group[cut:]]
        groups = [half for half in halves if len(half)] if max(map(len, halves)) > 1 else [torch.arange(d)]
        masks += [mask, ~mask]
    return masks[:n_couplings]
