"""ComposedField: fields in a row, each of which sees where those before it have moved the particles."""

from collections.abc import Iterable
from typing import Any

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.networks.vector_field import VectorField

__all__ = ["ComposedField"]


class ComposedField(VectorField):
    """v(x, t) = x_L − x, where x_0 = x and x_{l+1} = x_l + v_l(x_l, t): depth at the price of its parts.

    A particle hears of the neighbours of its neighbours, as through the layers of a graph network. The Jacobian is the
    product of those of the moves, so that where the parts have a cheap one, so does the whole.

    Args:
        fields: v_0, …, v_{L−1}, of the same particles.

    Raises:
        ValueError: If there are none, or their particles differ.

    References:
        Layers that move the particles, as in EGNN: Satorras, Hoogeboom, Welling (2021),
        https://arxiv.org/abs/2102.09844

    Example:
        >>> from boltzflow.networks import NeighbourField
        >>> field = ComposedField([NeighbourField([0] * 4, 2, reach=6.0) for _ in range(3)]).double()
        >>> field.velocity_and_jacobian(torch.rand(5, 4, 2, dtype=torch.float64), 0.5)[1].shape
        torch.Size([5, 8, 8])
    """

    def __init__(self, fields: Iterable[VectorField]) -> None:
        super().__init__()
        self.fields = torch.nn.ModuleList(fields)
        if not len(self.fields) or len({field.types for field in self.fields}) > 1:
            raise ValueError(
                "ComposedField: expected one field or more, of the same particles, got types "
                f"{[field.types for field in self.fields]}."
            )
        self.types = self.fields[0].types
        self.rotates = all(field.rotates for field in self.fields)
        self.reflects = all(field.reflects for field in self.fields)

    @property
    def methods(self) -> tuple[str, ...]:
        """Its own name and those of its parts."""
        return tuple(dict.fromkeys([type(self).__name__, *(name for f in self.fields for name in f.methods)]))

    def forward(
        self, positions: Float[Tensor, "batch *event"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch *event"]:
        """How far all moves have led."""
        moved = torch.zeros_like(positions)
        for field in self.fields:
            moved = moved + field.evaluate("forward", positions + moved, t)
        return moved

    def velocity_and_jacobian(
        self, positions: Float[Tensor, "batch *event"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch coordinates coordinates"]]:
        """Both at once; 1 + ∂v is the product of 1 + ∂v_l in order."""
        moved, total = self.fields[0].evaluate("velocity_and_jacobian", positions, t)
        for field in self.fields[1:]:
            v, jacobian = field.evaluate("velocity_and_jacobian", positions + moved, t)
            moved, total = moved + v, total + jacobian + jacobian @ total
        return moved, total

    def jacobian(
        self, positions: Float[Tensor, "batch *event"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch coordinates coordinates"]:
        """∂v/∂x, (batch, coordinates, coordinates)."""
        return self.velocity_and_jacobian(positions, t)[1]

    def evaluate(self, what: str, positions: Tensor, t: float | Tensor) -> Any:
        """The method of that name; its parts are compiled, if they are, one by one."""
        return getattr(self, what)(positions, t)
