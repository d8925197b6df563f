"""VectorField: velocities v(x, t) with their divergence and Jacobian, by autograd unless known better."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from boltzflow._typing import Float, Tensor

__all__ = ["VectorField"]


class VectorField(torch.nn.Module, abc.ABC):
    """A velocity v(x, t) for every particle of every row, (batch, N, D), or of a flat field, (batch, d).

    A subclass implements `forward`, and `divergence`, `jacobian` and `jvp` where it knows closed forms; the first two
    of this class cost one backward pass per coordinate, the third a forward pass with tangents.

    Attributes:
        is_gradient: Whether v = ∇Ψ for some Ψ(x, t), so that the Jacobian is symmetric. A step x + h v is then
            invertible wherever 1 + h ∂v/∂x is positive definite.
        types: Type of every particle, if the field goes with permutations within types; None = unknown.
        rotates: Whether it goes with rotations.
        reflects: Whether it goes with reflections.
        is_compiled: Whether `evaluate` goes through `torch.compile`: minutes at the start, then less time per call; for
            training, where all batches have one size.
    """

    is_gradient: bool = False
    types: tuple[int, ...] | None = None
    rotates: bool = False
    reflects: bool = False
    is_compiled: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds its references."""
        return (type(self).__name__,)

    @abc.abstractmethod
    def forward(
        self, positions: Float[Tensor, "batch *event"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch *event"]:
        """The velocities.

        Args:
            positions: (batch, N, D), or (batch, d) where the field is flat.
            t: Time in [0, 1], one for all rows or one each.
        """

    def jacobian(
        self, positions: Float[Tensor, "batch *event"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch coordinates coordinates"]:
        """∂v/∂x of every row, (batch, N·D, N·D), rows v and columns x; differentiable where autograd is on."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            x = positions if positions.requires_grad else positions.detach().requires_grad_()
            v = self(x, t).flatten(1)
            rows = [
                torch.autograd.grad(v[:, k].sum(), x, retain_graph=True, create_graph=differentiable)[0].flatten(1)
                for k in range(v.shape[1])
            ]
        return torch.stack(rows, 1)

    def divergence(
        self, positions: Float[Tensor, "batch *event"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, " batch"]:
        """Σ ∂v/∂x of every row, (batch,)."""
        return self.jacobian(positions, t).diagonal(dim1=1, dim2=2).sum(1)

    def velocity_and_jacobian(
        self, positions: Float[Tensor, "batch *event"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch coordinates coordinates"]]:
        """Both at once, for fields that share work between them."""
        return self(positions, t), self.jacobian(positions, t)

    def velocity_and_divergence(
        self, positions: Float[Tensor, "batch *event"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
        """Both at once, for fields that share work between them."""
        return self(positions, t), self.divergence(positions, t)

    def jvp(
        self,
        positions: Float[Tensor, "batch *event"],
        tangent: Float[Tensor, "batch *event"],
        t: float | Float[Tensor, " batch"] = 0.0,
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"]]:
        """The velocities and ∂v/∂x · tangent, by forward-mode differentiation; differentiable where autograd is on."""
        with forward_ad.dual_level():
            v, pushed = forward_ad.unpack_dual(self(forward_ad.make_dual(positions, tangent), t))
        return v, torch.zeros_like(v) if pushed is None else pushed

    def evaluate(self, what: str, positions: Tensor, t: float | Tensor) -> Any:
        """The method of that name ("forward", "jacobian", …), compiled where `is_compiled`."""
        if not self.is_compiled:
            return getattr(self, what)(positions, t)
        # a tensor, since every number would be compiled anew
        times = t if isinstance(t, torch.Tensor) else positions.new_full((len(positions),), t)
        return _compiled(what)(self, positions, times)


@functools.cache
def _compiled(what: str) -> Callable:
    return torch.compile(lambda field, x, t: getattr(field, what)(x, t), dynamic=False)
