"""VectorField: velocities v(x, t) of particles with their divergence and Jacobian, by autograd unless known better."""

import abc

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["VectorField"]


class VectorField(torch.nn.Module, abc.ABC):
    """A velocity v(x, t) for every particle of every row.

    A subclass implements `forward`, and `divergence` and `jacobian` where it knows closed forms; those of this class
    cost one backward pass per coordinate.

    Attributes:
        is_gradient: Whether v = ∇Ψ for some Ψ(x, t), so that the Jacobian is symmetric. A step x + h v is then
            invertible wherever 1 + h ∂v/∂x is positive definite.
    """

    is_gradient: bool = False

    @abc.abstractmethod
    def forward(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch particles dim"]:
        """The velocities.

        Args:
            positions: (batch, N, D).
            t: Time in [0, 1], one for all rows or one each.
        """

    def jacobian(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
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
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, " batch"]:
        """Σ ∂v/∂x of every row, (batch,)."""
        return self.jacobian(positions, t).diagonal(dim1=1, dim2=2).sum(1)

    def velocity_and_jacobian(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch particles dim"], Float[Tensor, "batch coordinates coordinates"]]:
        """Both at once, for fields that share work between them."""
        return self(positions, t), self.jacobian(positions, t)
