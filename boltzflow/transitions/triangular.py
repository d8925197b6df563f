"""A learned triangular affine map of some coordinates: linear correlations in one exact step."""

from collections.abc import Mapping

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.transition import Bijection

__all__ = ["TriangularAffine"]


class TriangularAffine(Bijection):
    """y = L x + b on the coordinates named, L lower triangular with positive diagonal; starts as the identity.

    With a standard normal before it, the covariance after it is L Lᵀ: any covariance can be reached.

    Args:
        index: Coordinates of the field to map, (k,) int64.
        field: Name of the flat field (batch, d).
    """

    def __init__(self, index: Tensor, *, field: str = "q") -> None:
        super().__init__()
        k = len(index)
        self.field = field
        self.register_buffer("index", index.clone())
        self.register_buffer("_below", torch.tril(torch.ones(k, k), -1))
        self.lower = torch.nn.Parameter(torch.zeros(k, k))
        self.log_diagonal = torch.nn.Parameter(torch.zeros(k))
        self.shift = torch.nn.Parameter(torch.zeros(k))

    def _matrix(self) -> Tensor:
        return self.lower * self._below + torch.diag(self.log_diagonal.exp())

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Map; r = Σ log diagonal."""
        x = state[self.field]
        y = x[:, self.index] @ self._matrix().T + self.shift
        ratio = self.log_diagonal.double().sum().expand(len(state))
        return state.replace(**{self.field: x.index_copy(1, self.index, y)}), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Solve the triangular system."""
        y = state[self.field]
        centred = (y[:, self.index] - self.shift).T
        x = torch.linalg.solve_triangular(self._matrix(), centred, upper=False).T
        ratio = -self.log_diagonal.double().sum().expand(len(state))
        return state.replace(**{self.field: y.index_copy(1, self.index, x)}), ratio

    def forward_with_score(
        self, state: State, run: Run, score: Mapping[str, Tensor]
    ) -> tuple[State, Float64[Tensor, " batch"], dict[str, Tensor]]:
        """As for every Bijection: L⁻ᵀ times the score."""
        y, ratio = self.forward(state, run)
        before = score[self.field]
        with torch.no_grad():
            moved = torch.linalg.solve_triangular(self._matrix().T, before[:, self.index].T, upper=True).T
        return y, ratio, {**score, self.field: before.index_copy(1, self.index, moved)}
