"""CausalTransformer: what a sequence of points says of the next one, all at once or one after the other."""

from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["CausalTransformer"]

Cache = list[tuple[Tensor, Tensor]]


class CausalTransformer(torch.nn.Module):
    """Output i is a function of the points before point i alone; the first is one of nothing.

    Token i is a linear function of point i − 1 plus a learned vector of position i and one of the type of point i, so
    that every layer knows which point comes next. Layers are attention to what came before and a network of one hidden
    layer, each on normalised features and added to them; the output layer starts at zero.

    Args:
        types: Type of every point, an integer each, in the order in which they come; [0] * N for points without.
        n_dimensions: Of a point.
        n_outputs: For every point.
        width: Of the features, a multiple of `head_width`.
        n_layers: Layers.
        head_width: Features of an attention head.

    Raises:
        ValueError: If there is no point or no layer, or the width is not a multiple of that of the heads.

    References:
        Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762; normalised first: Xiong et
        al., ICML 2020, https://arxiv.org/abs/2002.04745

    Example:
        >>> network = CausalTransformer([0, 1, 0], 3, 6, width=16, n_layers=1, head_width=8)
        >>> network(torch.rand(5, 3, 3)).shape
        torch.Size([5, 3, 6])
    """

    def __init__(
        self,
        types: Sequence[int],
        n_dimensions: int,
        n_outputs: int,
        *,
        width: int = 128,
        n_layers: int = 2,
        head_width: int = 64,
    ) -> None:
        super().__init__()
        if not types or n_layers < 1 or width < 1 or head_width < 1 or width % head_width:
            raise ValueError(
                f"CausalTransformer: expected points, layers and a width that is a multiple of head_width, got "
                f"{len(types)} points, {n_layers} layers, width {width} and head_width {head_width}."
            )
        self.register_buffer("types", torch.tensor([int(t) for t in types]), persistent=False)
        self.of_point = torch.nn.Linear(n_dimensions, width)
        self.of_position = torch.nn.Parameter(0.02 * torch.randn(len(types), width))
        self.of_type = torch.nn.Parameter(0.02 * torch.randn(max(int(t) for t in types) + 1, width))
        self.layers = torch.nn.ModuleList(_Layer(width, width // head_width) for _ in range(n_layers))
        self.norm = torch.nn.LayerNorm(width)
        self.last = torch.nn.Linear(width, n_outputs)
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)

    def forward(
        self, points: Float[Tensor, "batch n_points n_dimensions"]
    ) -> Float[Tensor, "batch n_points n_outputs"]:
        """All outputs, given all points."""
        before = torch.nn.functional.pad(points, (0, 0, 1, -1))
        h = self.of_point(before) + self.of_position + self.of_type[self.types]
        for layer in self.layers:
            h, _ = layer(h)
        return self.last(self.norm(h))

    def step(
        self, before: Float[Tensor, "batch n_dimensions"], index: int, cache: Cache | None
    ) -> tuple[Float[Tensor, "batch n_outputs"], Cache]:
        """The output of one point, in the order of the points.

        Args:
            before: Point index − 1; zeros for the first one.
            index: Of the point whose output is wanted.
            cache: From the call for the point before it: keys and values of its layers; None for the first one.

        Returns:
            The output, and the cache for the next point.
        """
        h = (self.of_point(before) + self.of_position[index] + self.of_type[self.types[index]])[:, None]
        extended: Cache = []
        for k, layer in enumerate(self.layers):
            h, keys_and_values = layer(h, None if cache is None else cache[k])
            extended.append(keys_and_values)
        return self.last(self.norm(h))[:, 0], extended


class _Layer(torch.nn.Module):
    """Causal attention and a network of one hidden layer."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_attention, self.norm_network = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.projection, self.mixed = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)
        )

    def forward(
        self, h: Float[Tensor, "batch tokens width"], cached: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Float[Tensor, "batch tokens width"], tuple[Tensor, Tensor]]:
        """Features of the tokens, and keys and values of these and those that are cached before them."""
        heads = self.projection(self.norm_attention(h)).unflatten(2, (3, self.n_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if cached is not None:
            key, value = torch.cat([cached[0], key], 2), torch.cat([cached[1], value], 2)
        # a single token comes last and sees all
        seen = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=h.shape[1] > 1)
        h = h + self.mixed(seen.transpose(1, 2).flatten(2))
        return h + self.network(self.norm_network(h)), (key, value)
