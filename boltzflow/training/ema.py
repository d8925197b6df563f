"""Exponential moving average of parameters."""

import torch

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage:
    """Shadow parameters s ← d·s + (1−d)·p with d = min(decay, (1+t)/(10+t)), so that early steps are not remembered.

    Args:
        module: Whose parameters are averaged.
        decay: Asymptotic decay per step, in [0, 1).
    """

    def __init__(self, module: torch.nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        self._parameters = dict(module.named_parameters())
        self.shadow = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the present parameters."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        torch._foreach_lerp_(list(self.shadow.values()), list(self._parameters.values()), 1.0 - decay)

    def state_dict(self) -> dict[str, object]:
        """Tensors and the number of updates."""
        return {"shadow": dict(self.shadow), "n_updates": self.n_updates}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`."""
        self.n_updates = int(state["n_updates"])
        for name, value in self.shadow.items():
            value.copy_(state["shadow"][name])
