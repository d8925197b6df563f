"""A differentiable energy whose backward pass uses the force that was computed together with it."""

from typing import Protocol, runtime_checkable

import torch

from boltzflow._typing import Float, Float64, Tensor

__all__ = ["PotentialWithForce", "energy_with_force"]


@runtime_checkable
class PotentialWithForce(Protocol):
    """What `energy_with_force` needs of a potential."""

    def energy_and_force(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (batch,) in kJ/mol and forces (batch, n_atoms, 3) in kJ/mol/nm, both detached."""

    def differentiable(self, positions: Tensor) -> Tensor:
        """Return the energies with a graph that can be differentiated again, or raise."""


class _EnergyWithForce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, positions, potential):
        energy, force = potential.energy_and_force(positions)
        ctx.potential = potential
        ctx.save_for_backward(positions, force)
        return energy

    @staticmethod
    def backward(ctx, weight):
        positions, force = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient will be differentiated again
            energy = ctx.potential.differentiable(positions)
            (gradient,) = torch.autograd.grad(energy, positions, weight, create_graph=True)
            return gradient, None
        weight = weight[:, None, None]
        # A row that the caller masked has weight zero and may have an infinite force: its gradient is zero, not NaN.
        return torch.where(weight == 0, 0.0, -weight * force).to(positions.dtype), None


def energy_with_force(
    potential: PotentialWithForce, positions: Float[Tensor, "batch n_atoms 3"]
) -> Float64[Tensor, "batch"]:
    """Return energies (kJ/mol); one evaluation of energy and force serves the forward and the backward pass.

    Args:
        potential: evaluates energy and force together.
        positions: in nm.

    Returns:
        Energies in float64. Rows whose energy is masked out downstream get gradient zero, even where the force is not
        finite.
    """
    if torch.is_grad_enabled() and positions.requires_grad:
        return _EnergyWithForce.apply(positions, potential)
    return potential.energy_and_force(positions)[0]
