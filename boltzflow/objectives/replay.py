"""A prioritised replay buffer: weighted samples, drawn by weight, whose weights follow the model that they are for."""

from collections.abc import Mapping
from typing import Any

import torch

from boltzflow._typing import Float64, Int, Tensor
from boltzflow.state import Space, State

__all__ = ["ReplayBuffer"]


class ReplayBuffer:
    """Samples of p²/q with log-weights and the log q for which these were made; the oldest rows leave first.

    References:
        Flow Annealed Importance Sampling Bootstrap (Midgley et al., 2023), section 3.2.

    Example:
        >>> x, zero = torch.arange(3.0)[:, None], torch.zeros(3).double()
        >>> buffer = ReplayBuffer()
        >>> buffer.add(State({"x": x}, {"x": Space("line", (1,))}), zero, zero)
        >>> buffer.keep(2)
        >>> buffer.states(torch.tensor([0]))["x"]
        tensor([[1.]])
    """

    def __init__(self) -> None:
        self._state: State | None = None
        self._log_weights = self._log_q = torch.zeros(0, dtype=torch.float64)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._log_weights)

    def add(self, state: State, log_weights: Float64[Tensor, " rows"], log_q: Float64[Tensor, " rows"]) -> None:
        """Append samples with their log-weights under p²/q and the log q in it."""
        if self._state is None:
            self._state, self._log_weights, self._log_q = State(state.fields, state.spaces), log_weights, log_q
            return
        fields = {name: torch.cat([value, state[name]]) for name, value in self._state.fields.items()}
        self._state = State(fields, state.spaces)
        self._log_weights = torch.cat([self._log_weights, log_weights])
        self._log_q = torch.cat([self._log_q, log_q])

    def keep(self, n: int) -> None:
        """Drop all but the latest n rows."""
        if len(self) > n:
            fields = {name: value[-n:].clone() for name, value in self._state.fields.items()}
            self._state = State(fields, self._state.spaces)
            self._log_weights, self._log_q = self._log_weights[-n:].clone(), self._log_q[-n:].clone()

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, " n"]:
        """Rows in proportion to their weights, with replacement.

        Raises:
            ValueError: If the buffer is empty.
        """
        if not len(self):
            raise ValueError("ReplayBuffer: nothing to draw from; no annealed sample had a finite weight.")
        cumulative = torch.softmax(self._log_weights, 0).cumsum(0)
        at = torch.rand(n, dtype=torch.float64, generator=rng, device=rng.device).to(cumulative.device)
        return torch.searchsorted(cumulative, at * cumulative[-1]).clamp(max=len(self) - 1)

    def states(self, rows: Int[Tensor, " n"]) -> State:
        """The samples at rows."""
        return self._state.index(rows)

    def correct(self, rows: Int[Tensor, " n"], log_q: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Bring weights up to the present log q of rows; returns q_old/q, by which they change."""
        log_ratio = self._log_q[rows] - log_q
        # rows may repeat: assigned, not added
        self._log_weights[rows] = self._log_weights[rows] + log_ratio
        self._log_q[rows] = log_q
        return log_ratio.exp()

    def as_dict(self) -> dict[str, Any]:
        """Plain tensors, for checkpoints."""
        fields = {} if self._state is None else dict(self._state.fields)
        return {"fields": fields, "log_weights": self._log_weights.clone(), "log_q": self._log_q.clone()}

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], spaces: Mapping[str, Space], *, device: torch.device | str = "cpu"
    ) -> "ReplayBuffer":
        """From `as_dict`.

        Args:
            values: What `as_dict` returned.
            spaces: Of the fields.
            device: Where the rows are kept.
        """
        buffer = cls()
        if values["fields"]:
            fields = {name: value.to(device) for name, value in values["fields"].items()}
            buffer.add(State(fields, spaces), values["log_weights"].to(device), values["log_q"].to(device))
        return buffer
