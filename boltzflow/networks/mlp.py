"""Small fully connected networks and the features that they see."""

import itertools
from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["MLP", "CoordinateFeatures", "ResidualMLP", "silu_slope"]


def silu_slope(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The derivative of SiLU."""
    sigmoid = torch.sigmoid(x)
    return sigmoid * (1.0 + x * (1.0 - sigmoid))


class MLP(torch.nn.Module):
    """Linear layers with SiLU between them.

    Args:
        n_in: Input features.
        n_out: Outputs of a last linear layer; None ends after the last activation (a trunk for heads of other shapes).
        hidden: Widths of the hidden layers.
        zero_init: Start with a last layer of zeros.
        layer: Class of the linear layers; `boltzflow.networks.Linear` is the faster one on a CPU.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int | None = None,
        *,
        hidden: Sequence[int] = (128, 128),
        zero_init: bool = False,
        layer: type[torch.nn.Linear] = torch.nn.Linear,
    ) -> None:
        super().__init__()
        widths = [n_in, *hidden]
        layers = []
        for a, b in itertools.pairwise(widths):
            layers += [layer(a, b), torch.nn.SiLU()]
        if n_out is not None:
            layers.append(_last_layer(layer(widths[-1], n_out), zero_init))
        self.layers = torch.nn.Sequential(*layers)
        self.n_out = widths[-1] if n_out is None else n_out

    @property
    def linears(self) -> list[torch.nn.Linear]:
        """The linear layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, torch.nn.Linear)]

    def forward(self, x: Float[Tensor, "batch n_in"]) -> Float[Tensor, "batch n_out"]:
        """Apply the layers."""
        return self.layers(x)


class ResidualMLP(torch.nn.Module):
    """A linear layer followed by residual blocks of two SiLU layers each.

    Args:
        n_in: Input features.
        n_out: Outputs of a last linear layer; None ends after the last activation.
        width: Width of the blocks.
        blocks: Number of blocks.
        zero_init: Start with a last layer of zeros.
        layer: Class of the linear layers.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int | None = None,
        *,
        width: int = 128,
        blocks: int = 2,
        zero_init: bool = False,
        layer: type[torch.nn.Linear] = torch.nn.Linear,
    ) -> None:
        super().__init__()
        silu = torch.nn.SiLU
        self.first = layer(n_in, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(silu(), layer(width, width), silu(), layer(width, width)) for _ in range(blocks)
        )
        self.last = (
            silu() if n_out is None else torch.nn.Sequential(silu(), _last_layer(layer(width, n_out), zero_init))
        )
        self.n_out = width if n_out is None else n_out

    def forward(self, x: Float[Tensor, "batch n_in"]) -> Float[Tensor, "batch n_out"]:
        """Apply the layers."""
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


class CoordinateFeatures(torch.nn.Module):
    """What a network sees of coordinates: cosines and sines of circles, intervals made standard, lines as they are.

    Args:
        kinds: "circle", "interval" or "line" for each coordinate.
        period: Period of the circles.
        harmonics: Number of harmonics 1 … harmonics of each circle; integers keep the features periodic.

    Attributes:
        n_out: Number of features.

    Example:
        >>> CoordinateFeatures(["circle", "interval"])(torch.tensor([[0.0, 0.5]]))
        tensor([[0., 1., 0.]])
    """

    def __init__(self, kinds: Sequence[str], *, period: float = 2.0 * torch.pi, harmonics: int = 1) -> None:
        super().__init__()
        straight = [i for i, kind in enumerate(kinds) if kind != "circle"]
        interval = torch.tensor([kinds[i] == "interval" for i in straight], dtype=torch.bool)
        # uniform on [0, 1] has standard deviation 1/sqrt(12)
        self.register_buffer("scale", torch.where(interval, 12.0**0.5, 1.0)[:, None])
        self.register_buffer("centre", torch.where(interval, 0.5, 0.0)[:, None])
        self.register_buffer("straight", torch.tensor(straight, dtype=torch.long))
        self.register_buffer(
            "circle", torch.tensor([i for i, kind in enumerate(kinds) if kind == "circle"], dtype=torch.long)
        )
        self.frequencies = [2.0 * torch.pi * n / period for n in range(1, harmonics + 1)]
        self.n_out = len(straight) + 2 * harmonics * len(self.circle)

    def forward(self, x: Float[Tensor, "batch dims"]) -> Float[Tensor, "batch features"]:
        """The features: straight coordinates first, then cosines and sines by harmonic."""
        rows = x.t()  # the flows keep coordinates as contiguous rows; so are the features
        parts = []
        if len(self.straight):
            parts.append((rows.index_select(0, self.straight) - self.centre) * self.scale)
        if len(self.circle):
            angles = rows.index_select(0, self.circle)
            for frequency in self.frequencies:
                parts += [torch.cos(frequency * angles), torch.sin(frequency * angles)]
        return torch.cat(parts).t()


def _last_layer(layer: torch.nn.Linear, zero_init: bool) -> torch.nn.Linear:  # noqa: FBT001
    if zero_init:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return layer
