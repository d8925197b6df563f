"""A whitened Cartesian block in place of some internal coordinates: mixed coordinates of a molecule."""

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.coordinates import CartesianBlock
from boltzflow.coordinates.torus import wrap
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.transition import Bijection

__all__ = ["BlockToInternal"]


class BlockToInternal(Bijection):
    """Whitened body-frame positions of a few atoms in field "q" → their scaled internal coordinates; the rest stays.

    Before it, the columns of q that belong to the block are w in x = x₀ + S w: x₀ are the positions at `mean`, and S is
    the symmetric root of the covariance that positions have where `covariance` is that of the internal coordinates, to
    first order. After it they are deviations from `mean` in units of `scale`, as `InternalToCartesian` takes them: it
    comes next, and gives weight zero to what is no molecule.

    Args:
        block: Which columns, and the map to internal coordinates.
        mean: Centre of every internal coordinate of the block, in the order of `block.columns`, nm and rad.
        scale: Their widths, likewise.
        covariance: Their covariance, positive definite.
        field: Name of the flat field (batch, d).

    References:
        Boltzmann Generators (Noé et al., 2019), for mixed coordinates with a whitened Cartesian block.
    """

    def __init__(
        self,
        block: CartesianBlock,
        *,
        mean: Float[Tensor, " k"],
        scale: Float[Tensor, " k"],
        covariance: Float[Tensor, "k k"],
        field: str = "q",
    ) -> None:
        super().__init__()
        sizes = {"mean": (mean, 1), "scale": (scale, 1), "covariance": (covariance, 2)}
        wrong = {name: tuple(v.shape) for name, (v, n) in sizes.items() if tuple(v.shape) != (len(block.columns),) * n}
        if wrong:
            raise ValueError(f"BlockToInternal: expected {len(block.columns)} coordinates of the block, got {wrong}.")
        self.block, self.field = block, field
        positions = block.to_block(mean[None])[0][0]
        slopes = torch.autograd.functional.jacobian(lambda q: block.to_block(q[None])[0][0], mean)
        variances, axes = torch.linalg.eigh(slopes @ covariance @ slopes.T)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale", scale.clone())
        self.register_buffer("positions", positions)
        # symmetric, so that it is unique
        self.register_buffer("root", axes @ torch.diag(variances.sqrt()) @ axes.T)
        self.register_buffer("inverse_root", axes @ torch.diag(variances.rsqrt()) @ axes.T)
        log_det = 0.5 * variances.double().log().sum() - scale.double().log().sum()
        self.register_buffer("_log_det", log_det, persistent=False)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Measure the block; r = log|∂(internal coordinates)/∂w|."""
        q, columns = state[self.field], self.block.columns
        internal, log_det = self.block.to_internal(self.positions + q[:, columns] @ self.root.T)
        step = internal - self.mean
        step = step.index_copy(1, self.block.torsions, wrap(step[:, self.block.torsions]))
        return state.replace(**{self.field: q.index_copy(1, columns, step / self.scale)}), log_det + self._log_det

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """The exact inverse, with its log|det|."""
        q, columns = state[self.field], self.block.columns
        positions, log_det = self.block.to_block(self.mean + q[:, columns] * self.scale)
        w = (positions - self.positions) @ self.inverse_root.T
        return state.replace(**{self.field: q.index_copy(1, columns, w)}), log_det - self._log_det
